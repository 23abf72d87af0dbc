#!/usr/bin/env python3
"""Make one small merge of every kind in a folder, by the product's own engines. usage: kinds.py FOLDER

Two-layer models of 256 dimensions with a SentencePiece vocabulary, because llama.cpp needs a tokenizer that it knows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from mcp_server import api

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.workers.tiny_llama_export import pieces_of, save_with_pieces

SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1,
}  # fmt: skip
KINDS: dict[str, str] = {
    "full": "two full models (linear)",
    "tied": "two full models with tied embeddings (linear)",
    "folded": "an adapter merged into its base",
    "deeper": "a self-merge, deeper (passthrough of slices)",
    "franken": "layers of two models (passthrough of slices)",
    "vocabulary": "vocabularies joined (tokenizer union)",
    "moe": "experts from two models (mergekit-moe)",
    "adapter": "two adapters merged to one adapter",
}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = pieces_of(folder)
    for name, tie in (("base", False), ("tied-base", True)):
        _model(folder / name, tokenizer, seed=0, tie=tie)
        for number in (1, 2):
            _model(folder / f"{name}-tune-{number}", tokenizer, seed=0, tie=tie, moved=number)
    _wider(folder / "base-tune-2", folder / "wider")
    for number in (1, 2):
        torch.manual_seed(number)
        lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
        base = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        for name, weight in (model := get_peft_model(base, lora)).named_parameters():
            weight.data *= 0.3 if "lora_" in name else 1.0
        model.save_pretrained(folder / f"lora-{number}")
    for kind, recipe in _recipes(folder).items():
        if not (folder / kind).is_dir():
            api.merge(recipe, folder / kind, output="adapter" if kind == "adapter" else "model")


def _recipes(folder: Path) -> dict[str, dict[str, Any]]:
    def linear(*names: str) -> dict[str, Any]:
        models = [{"model": str(folder / name), "parameters": {"weight": 0.5}} for name in names]
        return {"merge_method": "linear", "models": models, "dtype": "bfloat16"}

    def stacked(*parts: tuple[str, int, int]) -> dict[str, Any]:
        slices = [{"sources": [{"model": str(folder / name), "layer_range": [a, b]}]} for name, a, b in parts]
        return {"merge_method": "passthrough", "slices": slices, "dtype": "bfloat16"}

    def adapters(*numbers: int) -> dict[str, Any]:
        models = [
            {"model": f"{folder / 'base'}+{folder / f'lora-{n}'}", "parameters": {"weight": 1 / len(numbers)}} for n in numbers
        ]
        return {"merge_method": "task_arithmetic", "base_model": str(folder / "base"), "models": models, "dtype": "bfloat16"}

    experts = [{"source_model": str(folder / f"base-tune-{n}"), "positive_prompts": ["sea"]} for n in (1, 2)]
    return {
        "full": linear("base-tune-1", "base-tune-2"),
        "tied": linear("tied-base-tune-1", "tied-base-tune-2"),
        "folded": adapters(1),
        "deeper": stacked(("base", 0, 2), ("base", 0, 2)),
        "franken": stacked(("base-tune-1", 0, 2), ("base-tune-2", 1, 2)),
        "vocabulary": linear("base-tune-1", "wider") | {"tokenizer": {"source": "union"}},
        "moe": {"base_model": str(folder / "base"), "gate_mode": "random", "dtype": "bfloat16", "experts": experts},
        "adapter": adapters(1, 2),
    }


def _model(folder: Path, tokenizer: LlamaTokenizer, *, seed: int, tie: bool, moved: int = 0) -> None:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=tie, **SHAPE))
    torch.manual_seed(100 + moved)
    for weight in model.parameters() if moved else ():
        weight.data += 0.02 * torch.randn_like(weight)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_with_pieces(tokenizer, folder)


def _wider(source: Path, folder: Path) -> None:
    """The model with three more tokens."""
    tokenizer = LlamaTokenizer.from_pretrained(source)
    tokenizer.add_tokens(["<call>", "</call>", "<think>"])
    model = LlamaForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    save_with_pieces(tokenizer, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    print(json.dumps(sorted(KINDS)))
