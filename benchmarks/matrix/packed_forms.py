#!/usr/bin/env python3
"""Every form of packed weights as the base, as a source and under an adapter of a merge.

usage: packed_forms.py [--only WORD...] [--rows FILE]

A tiny model is packed by the library that owns the form (GPTQ's and AWQ's packing is written out bit by bit; of GGUF's types that
gguf cannot write the blocks are random). What it stands for is what that library unpacks. Each output tensor is held against
float64 task arithmetic on these values, and verify has to recompute the merge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from safetensors.torch import save_file

from benchmarks.matrix.forms import LOADS, Verdict, row, run, tried
from mcp_server.formats.quantised.ggml import TYPES
from mcp_server.steps.verify import verify
from tests.engine.packers import FORMS, Tensors
from tests.engine.synthetic import load
from tests.engine.test_quantised import weights, write, write_adapter
from tests.formats.test_gguf import TINY, valid_blocks, with_config, with_embedding

USES = ("base", "source", "adapter")
GGUF = [kind for kind, _, _ in TYPES.values() if kind != "F64"]
WEIGHT = 0.5
NEAR = 2.0**-20
"""Of float32: half a unit in the last place, and the difference between orders of summation."""


def main() -> int:
    forms = [*FORMS, *(f"GGUF {kind}" for kind in GGUF)]
    return run(__doc__, [f"{form}, as {use}" for form in forms for use in USES], packed_row)


def packed_row(name: str) -> dict[str, str]:
    form, _, use = name.rpartition(", as ")
    make = of_gguf if form.startswith("GGUF ") else of_safetensors
    kind = form if form.startswith("GGUF ") else FORMS[form].kind
    return row(name, lambda place: judged(place, use, *make(place, form))) | {"packed": form, "kind": kind, "use": use}


def of_safetensors(place: Path, form: str) -> tuple[str, Tensors, Tensors, Tensors]:
    torch.manual_seed(0)
    packed = write(place / "packed", weights(0), FORMS[form])
    plain = write(place / "plain", weights(1, weights(0)))
    return str(place / "packed"), packed, plain, write_adapter(place / "adapter", 3)


def of_gguf(place: Path, form: str) -> tuple[str, Tensors, Tensors, Tensors]:
    """A model of nothing but its embedding, and an adapter of that."""
    named = gguf.GGMLQuantizationType[form.removeprefix("GGUF ")]
    rows, columns, name = 24, 256, "model.embed_tokens.weight"
    per, wide = gguf.GGML_QUANT_SIZES[named]
    config = TINY | {"model_type": "qwen2", "vocab_size": rows, "num_hidden_layers": 0, "hidden_size": columns}
    numbers = np.random.default_rng(0)
    if per == 1:
        raw = gguf.quants.quantize(numbers.standard_normal((rows, columns)).astype(np.float32), named)
    else:
        raw = valid_blocks(named, rows * columns // per).reshape(rows, columns // per * wide)
    value = torch.from_numpy(dequantize(raw, named).copy())
    with_embedding(place / "packed", config, raw, named)
    other = value + torch.from_numpy(numbers.standard_normal((rows, columns)).astype(np.float32))
    with_config(place / "plain", config)
    save_file({name: other}, place / "plain" / "model.safetensors", {"format": "pt"})
    a, b = (torch.from_numpy(numbers.standard_normal(shape).astype(np.float32)) for shape in ((2, rows), (columns, 2)))
    stem = "base_model.model.model.embed_tokens.lora_embedding_"
    (place / "adapter").mkdir()
    save_file({f"{stem}A": a, f"{stem}B": b}, place / "adapter" / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["embed_tokens"], "bias": "none"}
    (place / "adapter" / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    return str(place / "packed" / "m.gguf"), {name: value}, {name: other}, {name: (b.double() @ a.double()).T}


def judged(place: Path, use: str, packed: str, values: Tensors, plain: Tensors, deltas: Tensors) -> Verdict:
    base, model = {
        "base": (packed, str(place / "plain")),
        "source": (str(place / "plain"), packed),
        "adapter": (packed, f"{packed}+{place / 'adapter'}"),
    }[use]
    entries: list[Any] = [{"model": model, "parameters": {"weight": WEIGHT}}]
    recipe = json.dumps({"merge_method": "task_arithmetic", "base_model": base, "models": entries, "dtype": "float32"})
    if (verdict := tried(recipe, place, LOADS, "its library unpacks it", early=True)) is not None:
        return verdict
    found = load(place / "out")
    for name, value in values.items():
        start = (plain if use == "source" else values)[name].double()
        end = {"base": plain[name].double(), "source": value.double()}.get(use)
        change = deltas.get(name, torch.zeros(())) if end is None else end - start
        wanted = (start + WEIGHT * change).numpy()
        if not np.allclose(found[name], wanted, rtol=NEAR, atol=NEAR * float(np.abs(wanted).max())):
            return "wrong", f"{name} is off by {np.abs(found[name] - wanted).max():g}"
    checks = {check.name: check for check in verify(place / "out", recipe=recipe, full=True).checks}
    recomputed = checks["recomputed"]
    return ("right", "") if recomputed.passed else ("wrong", f"verify: {recomputed.detail}")


if __name__ == "__main__":
    sys.exit(main())
