"""Adapters that verify computes on its own: stacks of experts, and updates that a tied embedding and head share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcp_server.steps.verify import verify
from tests.engine.synthetic import Tensors, load, random_tensors, run, save, write_adapter, write_model

EXPERTS, HIDDEN, WIDE, RANK, SCALE = 3, 12, 10, 2, 2.0
MODULE = "model.layers.0.mlp.experts"
GENERATOR = np.random.default_rng(4)
SHAPES = {"gate_up_proj": (2 * WIDE, HIDDEN), "down_proj": (HIDDEN, WIDE)}
"""(out, in) of one expert."""
FACTORS = {
    leaf: (GENERATOR.standard_normal((RANK * EXPERTS, inside)), GENERATOR.standard_normal((outside, RANK * EXPERTS)))
    for leaf, (outside, inside) in SHAPES.items()
}


def change(leaf: str, expert: int) -> np.ndarray:
    """What PEFT adds to one expert: A is stored expert by expert, B rank by rank, the experts of each rank side by side."""
    a, b = FACTORS[leaf]
    return SCALE * sum(
        np.outer(b[:, rank * EXPERTS + expert], a[expert * RANK + rank]) for rank in range(RANK)
    )  # fmt: skip


def stacked(turned: bool) -> Callable[[Tensors], tuple[Tensors, Tensors]]:
    def both(rest: Tensors) -> tuple[Tensors, Tensors]:
        base, merged = dict(rest), dict(rest)
        for leaf, shape in SHAPES.items():
            start = np.random.default_rng(6).standard_normal((EXPERTS, *shape))
            end = start + np.stack([change(leaf, expert) for expert in range(EXPERTS)])
            base[f"{MODULE}.{leaf}"], merged[f"{MODULE}.{leaf}"] = (v.swapaxes(1, 2) if turned else v for v in (start, end))
        return base, merged

    return both


def one_by_one(rest: Tensors) -> tuple[Tensors, Tensors]:
    base, merged = stacked(turned=False)(rest)
    for tensors in (base, merged):
        both, down = tensors.pop(f"{MODULE}.gate_up_proj"), tensors.pop(f"{MODULE}.down_proj")
        for expert in range(EXPERTS):
            tensors[f"{MODULE}.{expert}.gate_proj.weight"] = both[expert, :WIDE]
            tensors[f"{MODULE}.{expert}.up_proj.weight"] = both[expert, WIDE:]
            tensors[f"{MODULE}.{expert}.down_proj.weight"] = down[expert]
    return base, merged


FORMS = {"stacked": stacked(turned=False), "stacked, in by out": stacked(turned=True), "one by one": one_by_one}


@pytest.mark.parametrize("form", FORMS)
def test_an_adapter_of_experts_that_another_tool_folded_is_verified_and_a_missing_expert_named(tmp_path: Path, form: str) -> None:
    base, merged = FORMS[form](random_tensors(0, layers=1))
    config = {"model_type": "gpt_oss" if form.endswith("out") else "qwen3_moe"}
    write_model(tmp_path / "base", base, "float32", config=config)
    out = write_model(tmp_path / "out", merged, "float32", config=config)
    names = {f"{MODULE}.base_layer": "gate_up_proj", MODULE: "down_proj"}  # the first parameter is wrapped first
    factors = {f"{m}.lora_{letter}.weight": FACTORS[leaf]["AB".index(letter)] for m, leaf in names.items() for letter in "AB"}
    targets = ["experts.gate_up_proj", "experts.down_proj"]
    write_adapter(tmp_path / "adapter", factors, target_modules=[], target_parameters=targets)

    def failed() -> dict[str, str]:
        checks = verify(out, full=True, base=str(tmp_path / "base"), sources=[str(tmp_path / "adapter")]).checks
        return {check.name: check.detail for check in checks if check.passed is not True and check.name != "provenance"}

    assert failed() == {}
    for name in [name for name in merged if MODULE in name]:
        spoilt = merged[name].copy()
        spoilt[1] = base[name][1]  # one expert of a stack, or one row of an expert
        save(out / "model.safetensors", merged | {name: spoilt}, "float32")
        assert f"{name} " in failed()["recomputed"]
        assert "in row 1" in failed()["recomputed"]


@pytest.mark.parametrize("keeps", [True, False])
def test_an_update_of_a_tied_embedding_is_verified_in_either_reading(tmp_path: Path, keeps: bool) -> None:
    base = random_tensors(0, head=False)
    write_model(tmp_path / "base", base, "float32")
    rows, width = base["model.embed_tokens.weight"].shape
    factors = {
        "model.embed_tokens.lora_embedding_A": GENERATOR.standard_normal((RANK, rows)),
        "model.embed_tokens.lora_embedding_B": GENERATOR.standard_normal((width, RANK)),
    }
    write_adapter(tmp_path / "adapter", factors, target_modules=["embed_tokens"])
    models = [{"model": f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"}]
    recipe = {"merge_method": "passthrough", "models": models, "dtype": "float32", "parameters": {"adapter_keeps_ties": keeps}}
    out = tmp_path / "out"
    run(json.dumps(recipe), out)
    found = verify(out, full=True)
    assert (found.verdict, [check for check in found.checks if check.passed is not True]) == ("verified", [])
    merged = load(out)
    assert ("lm_head.weight" in merged) is not keeps
    save(out / "model.safetensors", merged | {"model.embed_tokens.weight": base["model.embed_tokens.weight"]}, "float32")
    (check,) = [check for check in verify(out, full=True).checks if check.name == "recomputed"]
    assert "model.embed_tokens.weight" in check.detail
    assert check.passed is False
