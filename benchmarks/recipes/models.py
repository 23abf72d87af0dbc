"""Tiny models for recipes: a Llama of eight layers, fine-tunes and adapters of it, each by the name that recipes give it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

LAYERS, HIDDEN, WIDE, WORDS = 8, 12, 20, 16
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": WORDS, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False, "torch_dtype": "float32",
    "hidden_act": "silu",
}  # fmt: skip
NAMES = ("BASE", "A", "B", "C", "TIED", "WORDS", "LORA1", "LORA2")
Tensors = dict[str, np.ndarray]


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, HIDDEN)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        found |= {stem + f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qo"}
        found |= {stem + f"self_attn.{name}_proj.weight": (HIDDEN // 2, HIDDEN) for name in "kv"}
        found |= {stem + f"mlp.{name}_proj.weight": (WIDE, HIDDEN) for name in ("gate", "up")}
        found[stem + "mlp.down_proj.weight"] = (HIDDEN, WIDE)
        found |= {stem + f"{name}_layernorm.weight": (HIDDEN,) for name in ("input", "post_attention")}
    return found | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (WORDS, HIDDEN)}


def write_models(folder: Path) -> dict[str, str]:
    """All of them under `folder`; returns name → path."""
    base = noise(0)
    tuned = {name: {key: base[key] + 0.3 * value for key, value in noise(n).items()} for n, name in enumerate("ABC", 1)}
    tied = {key: base[key] + 0.3 * value for key, value in noise(4).items() if key != "lm_head.weight"}
    words = {key: base[key] + 0.3 * value for key, value in noise(5).items()}
    vocabulary = ["<s>", "</s>", "<unk>", *(f"w{n}" for n in range(3, WORDS - 1)), "hello"]
    other = [*vocabulary[:-2], "hello", "more"]  # one word elsewhere, one lost, one new
    for name, tensors in {"BASE": base, **tuned, "TIED": tied, "WORDS": words}.items():
        _model(folder / name, tensors, other if name == "WORDS" else vocabulary)
    _adapter(folder / "LORA1", 10, 2, ("q_proj", "down_proj"))
    _adapter(folder / "LORA2", 11, 4, ("q_proj", "up_proj", "v_proj"))
    return {name: str(folder / name) for name in NAMES}


def noise(seed: int) -> Tensors:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes().items()}


def _model(folder: Path, tensors: Tensors, vocabulary: list[str]) -> None:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _write(folder / "config.json", CONFIG | {"tie_word_embeddings": "lm_head.weight" not in tensors})
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": None,
        "added_tokens": [{"id": n, "content": word} | special for n, word in enumerate(vocabulary[:3])],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {word: n for n, word in enumerate(vocabulary)}, "unk_token": "<unk>"},
    }  # fmt: skip
    _write(folder / "tokenizer.json", tokenizer)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | names)


def _adapter(folder: Path, seed: int, rank: int, targets: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    generator, factors = np.random.default_rng(seed), {}
    for name, shape in shapes().items():
        if name.split(".")[-2] in targets:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{stem}.lora_A.weight"] = generator.standard_normal((rank, shape[1])).astype(np.float32)
            factors[f"{stem}.lora_B.weight"] = 0.2 * generator.standard_normal((shape[0], rank)).astype(np.float32)
    save_file(factors, folder / "adapter_model.safetensors", {"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)}
    _write(folder / "adapter_config.json", settings | {"base_model_name_or_path": "BASE", "bias": "none"})


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
