"""Merges over packed weights: as base, as source, under an adapter; what does not fit is refused unwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mcp_server.formats.source import inspect_source
from mcp_server.steps.validate import validate
from mcp_server.steps.verify import verify
from tests.engine.packers import FORMS, Form, Tensors
from tests.engine.synthetic import load, run

NAMES = [f"model.layers.{layer}.{part}.weight" for layer in (0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]
SHAPES = {"self_attn.q_proj.weight": (64, 64), "mlp.up_proj.weight": (96, 64)}


every_form = pytest.mark.parametrize("form", FORMS)


def weights(seed: int, around: Tensors | None = None) -> Tensors:
    numbers = torch.Generator().manual_seed(seed)

    def random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        fresh = torch.randn(shape, generator=numbers) * (0.05 if around else 1.0)
        return fresh + around[name] if around else fresh

    shapes = (
        {"model.embed_tokens.weight": (20, 64)} | {n: SHAPES[n.split(".", 3)[3]] for n in NAMES} | {"model.norm.weight": (64,)}
    )
    return {name: random(name, shape) for name, shape in shapes.items()}


def write(folder: Path, tensors: Tensors, *forms: Form, packed: list[str] = NAMES, **config: Any) -> Tensors:
    """A two-layer model, its matrices packed (in turn, of several forms); returns the values that it stands for."""
    folder.mkdir(parents=True)
    stored: Tensors = {}
    values: Tensors = {}
    metadata = {"format": "pt"}
    for name, tensor in tensors.items():
        if forms and name in packed:
            made = forms[packed.index(name) % len(forms)].pack(name, tensor)
            stored |= {key: part.contiguous() for key, part in made.stored.items()}
            metadata |= made.metadata
            values[name] = made.value
        else:
            stored[name] = values[name] = tensor.bfloat16()
    save_file(stored, folder / "model.safetensors", metadata=metadata)
    settings = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "vocab_size": 20,
        "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    said = [form.config for form in forms if form.config]
    quantisation = {"quantization_config": said[0]} if said else {}
    (folder / "config.json").write_text(json.dumps(settings | quantisation | config), encoding="utf-8")
    return values


def write_adapter(folder: Path, seed: int) -> Tensors:
    """Rank 2 with scale 2 on every matrix; returns ΔW by name, in float64."""
    folder.mkdir(parents=True)
    numbers = torch.Generator().manual_seed(seed)
    factors: Tensors = {}
    deltas: Tensors = {}
    for name in NAMES:
        rows, columns = SHAPES[name.split(".", 3)[3]]
        a, b = torch.randn((2, columns), generator=numbers) * 0.1, torch.randn((rows, 2), generator=numbers) * 0.1
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        factors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        deltas[name] = 2 * (b.double() @ a.double())
    save_file(factors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "up_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return deltas


def arithmetic(base: Path, *models: str | Path, weight: float = 0.5) -> str:
    entries = [{"model": str(model), "parameters": {"weight": weight}} for model in models]
    return json.dumps({"merge_method": "task_arithmetic", "base_model": str(base), "models": entries, "dtype": "bfloat16"})


def is_close(out: Path, want: dict[str, torch.Tensor]) -> None:
    """bf16 of what was wanted: half a unit in the last place, and float32's noise."""
    found = load(out)
    assert [*found] and set(found) == set(want)
    for name, value in want.items():
        wanted = value.double().numpy()
        assert np.allclose(found[name], wanted, rtol=2**-8, atol=1e-6), name


@every_form
def test_a_packed_base_a_packed_source_and_an_adapter(tmp_path: Path, small_blocks: None, form: str) -> None:
    torch.manual_seed(0)
    plain, packed = weights(0), FORMS[form]
    base = write(tmp_path / "base", plain, packed)
    tuned = write(tmp_path / "tuned", weights(1, plain), packed)
    full = write(tmp_path / "full", weights(2, plain))
    deltas = write_adapter(tmp_path / "adapter", 3)
    text = arithmetic(tmp_path / "base", tmp_path / "tuned", tmp_path / "full", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    assert validate(text).ok
    run(text, tmp_path / "out")
    is_close(
        tmp_path / "out",
        {
            n: v.double() + 0.5 * (tuned[n].double() - v) + 0.5 * (full[n].double() - v) + 0.5 * deltas.get(n, torch.zeros(1))
            for n, v in base.items()
        },
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert ("quantization_config" in config, config["dtype"]) == (False, "bfloat16")
    found = verify(tmp_path / "out", recipe=text, full=True)
    assert found.verdict == "verified", found
    seen = inspect_source(str(tmp_path / "base"))
    plainly = inspect_source(str(tmp_path / "full"))
    assert (seen.kind, packed.kind in seen.detail, seen.is_model) == ("quantised", True, True)
    assert (seen.parameters, seen.tensors, seen.architecture_hash) == (
        plainly.parameters, plainly.tensors, plainly.architecture_hash,
    )  # fmt: skip
    assert seen.bytes is not None and plainly.bytes is not None
    assert seen.bytes < plainly.bytes


def test_forms_that_differ_from_model_to_model_and_within_one(tmp_path: Path, small_blocks: None) -> None:
    """Also modules that were left unpacked, and a packed head."""
    plain = weights(0) | {"lm_head.weight": torch.randn((20, 64), generator=torch.Generator().manual_seed(9))}
    untied: dict[str, Any] = {"tie_word_embeddings": False}
    some = [*NAMES[:2], "lm_head.weight"]
    base = write(tmp_path / "base", plain, FORMS["nf4"], FORMS["fp8 rows"], packed=some, **untied)
    one = write(tmp_path / "one", plain, FORMS["int4 groups"], FORMS["LLM.int8"], packed=[*NAMES, "lm_head.weight"], **untied)
    two = write(tmp_path / "two", plain, FORMS["gptq"], **untied)
    text = arithmetic(tmp_path / "base", tmp_path / "one", tmp_path / "two")
    assert validate(text).ok
    run(text, tmp_path / "out")
    is_close(tmp_path / "out", {n: 0.5 * (one[n].double() + two[n].double()) for n in base})


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("use", ["base", "source"])
def test_scales_of_attention_and_its_cache_are_no_weights(tmp_path: Path, packed: bool, use: str) -> None:
    """Servers keep the cache in 8 bits: their scales lie at the block or at its projections, also where all weights are plain."""
    attention = "model.layers.0.self_attn"
    forms = [FORMS["fp8 rows"]] if packed else []
    said = {} if packed else {"quantization_config": {"quant_method": "fp8", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}}
    value = weights(0) | {f"{attention}.k_proj.weight": torch.randn((32, 64), generator=torch.Generator().manual_seed(5))}
    served = write(tmp_path / "served", value, *forms, **said)
    file = tmp_path / "served" / "model.safetensors"
    scales = (f"{attention}.k_proj.k_scale", f"{attention}.v_scale", f"{attention}.q_scale", f"{attention}.prob_output_scale")
    save_file(load_file(file) | {name: torch.ones(1) for name in scales}, file, {"format": "pt"})
    plain = write(tmp_path / "plain", {name: 2 * part for name, part in value.items()})
    names = ("served", "plain") if use == "base" else ("plain", "served")
    text = arithmetic(*(tmp_path / name for name in names))
    assert validate(text).ok
    run(text, tmp_path / "out")
    is_close(tmp_path / "out", {name: 0.5 * (part.double() + plain[name].double()) for name, part in served.items()})
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert verify(tmp_path / "out", recipe=text, full=True).verdict == "verified"
