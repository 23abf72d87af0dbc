"""Makes a two-layer Llama with a SentencePiece tokenizer that llama.cpp reads, an adapter, and the two folded by PEFT."""

from __future__ import annotations

import sys
from pathlib import Path

import sentencepiece
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

TEXT = "the sea is wide and the sky is blue and one two three four five are numbers of the capital"


def pieces_of(folder: Path) -> LlamaTokenizer:
    """A tokenizer of 320 pieces at most, which llama.cpp knows the form of; `folder` keeps its tokenizer.model."""
    text = folder / "text.txt"
    text.write_text("\n".join(f"{TEXT} {word}" for word in TEXT.split()), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=320, model_type="bpe", byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return LlamaTokenizer.from_pretrained(folder, vocab_file=str(folder / "tokenizer.model"))


def save_with_pieces(tokenizer: LlamaTokenizer, folder: Path) -> None:
    """Save a model's tokenizer, and with it the tokenizer.model beside its folder, which llama.cpp's converter reads."""
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes((folder.parent / "tokenizer.model").read_bytes())


def main(folder: Path) -> None:
    tokenizer = pieces_of(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.float16).save_pretrained(folder / "base")
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    torch.manual_seed(5)
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32), lora)
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "folded")
    for name in ("base", "folded"):
        save_with_pieces(tokenizer, folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
