"""Makes a two-layer Llama that reads single characters, and an adapter for it: `python tiny_language_model.py FOLDER`.

A process of its own, because transformers and peft warn on import and tests turn warnings into errors.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?{}:\"'0123456789\n|<>_"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {c: i + 3 for i, c in enumerate(CHARACTERS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.chat_template = TEMPLATE
    return made


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=96, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        max_position_embeddings=512, bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8.0) if parameter.dim() > 1 else None
    return made


def main(folder: Path) -> None:
    for name, seed in (("base", 0), ("other", 1)):
        model(seed).save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(folder / "base"), config)
    adapted.save_pretrained(folder / "adapter")
    settings = folder / "adapter" / "adapter_config.json"
    written = json.loads(settings.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(folder / "base")}
    settings.write_text(json.dumps(written), encoding="utf-8")
    folded = adapted.merge_and_unload()
    folded.save_pretrained(folder / "folded")
    tokenizer().save_pretrained(folder / "folded")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
