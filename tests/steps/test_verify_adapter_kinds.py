"""Adapters that verify computes on its own: stacks of experts, and updates that a tied embedding and head share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.request import Request
from mcp_server.errors import Malformed
from mcp_server.steps.verify import verify
from tests.engine.synthetic import Tensors, load, low_rank, random_tensors, run, save, write_adapter, write_model

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


def recomputed(out: Path, base: Path, adapter: Path) -> tuple[bool | None, str]:
    found = verify(out, full=True, base=str(base), sources=[str(adapter)])
    return next((check.passed, check.detail) for check in found.checks if check.name == "recomputed")


ROWS = np.random.default_rng(7).standard_normal((20, HIDDEN))
EMBEDDINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "LLaVA": ("language_model.model.embed_tokens", ("model.language_model.embed_tokens",)),
    "Qwen2-VL": ("model.embed_tokens", ("model.language_model.embed_tokens",)),
    "T5": ("shared", ("decoder.embed_tokens", "encoder.embed_tokens", "lm_head", "shared")),
}
"""Name on disk, and the modules for which PEFT stores trained tokens."""


@pytest.mark.parametrize("shape", EMBEDDINGS)
@pytest.mark.parametrize("kind", ["tokens", "LoRA"])
def test_embeddings_that_are_named_otherwise_in_memory(tmp_path: Path, shape: str, kind: str) -> None:
    stored, modules = EMBEDDINGS[shape]
    tensors = {f"{stored}.weight": ROWS, "model.layers.0.self_attn.q_proj.weight": np.eye(HIDDEN)}
    base = write_model(tmp_path / "base", tensors, "float32", config={"model_type": shape.lower(), "tie_word_embeddings": True})
    merged, numbers = ROWS.copy(), np.random.default_rng(8)
    if kind == "tokens":
        listed = [3, 5, 9]
        delta = numbers.standard_normal((3, HIDDEN))
        factors = {f"{module}.trainable_tokens_delta": delta for module in modules}
        write_adapter(
            tmp_path / "adapter", factors, peft_type="TRAINABLE_TOKENS", target_modules=[modules[-1]], token_indices=listed
        )
        merged[listed] = delta
    else:
        a, b = numbers.standard_normal((2, 20)), numbers.standard_normal((HIDDEN, 2))
        factors = {f"{modules[-1]}.lora_embedding_{letter}": part for letter, part in (("A", a), ("B", b))}
        factors[f"{modules[-1]}.base_layer.weight"] = ROWS
        write_adapter(tmp_path / "adapter", factors, target_modules=[modules[-1]])
        merged += 2 * (b @ a).T
    out = write_model(tmp_path / "out", tensors | {f"{stored}.weight": merged}, "float32", config={"model_type": shape.lower()})
    assert recomputed(out, base, tmp_path / "adapter")[0] is True
    merged[5] = ROWS[5]
    save(out / "model.safetensors", tensors | {f"{stored}.weight": merged}, "float32")
    passed, detail = recomputed(out, base, tmp_path / "adapter")
    assert passed is False
    assert f"{stored}.weight" in detail


def test_one_adapter_of_several_without_a_base_in_the_recipe(tmp_path: Path) -> None:
    base = random_tensors(0)
    write_model(tmp_path / "base", base, "float32")
    shapes = {"model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN), "model.layers.1.mlp.up_proj": (16, HIDDEN)}
    for n in (1, 2):
        write_adapter(tmp_path / f"lora{n}", low_rank(n, shapes, 2))
    models = [{"model": f"{tmp_path}/base+{tmp_path}/lora{n}", "parameters": {"weight": w}} for n, w in ((1, 0.6), (2, 0.4))]
    recipe = json.dumps({"merge_method": "linear", "models": models, "dtype": "float32"})
    out = tmp_path / "out"
    merge_adapters(Request(recipe, out, tmp_path / "journal", threads=1), lambda *_: None)
    found = verify(out, full=True)
    assert next(check.passed for check in found.checks if check.name == "recomputed") is True, found
    factors = load(out)
    odd = next(name for name in factors if "up_proj.lora_B" in name)
    save(out / "adapter_model.safetensors", factors | {odd: -factors[odd]}, "float32")
    found = verify(out, full=True, recipe=recipe)
    check = next(check for check in found.checks if check.name == "recomputed")
    assert check.passed is False
    assert "up_proj" in check.detail


@pytest.mark.parametrize(
    "pattern",
    [r".*\.0\.mlp\.up_proj$", r"^model\.layers\.[0-1]\.mlp\.up_proj", r"(?!.*q_proj).*_proj", r"layers\.\d{1,2}\.mlp\.up_proj"],
)
def test_patterns_of_alpha_are_read_as_PEFT_reads_them(tmp_path: Path, pattern: str) -> None:
    base = random_tensors(0)
    write_model(tmp_path / "base", base, "float32")
    shapes = {"model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN), "model.layers.0.mlp.up_proj": (16, HIDDEN)}
    factors = low_rank(1, shapes, 2)
    write_adapter(tmp_path / "adapter", factors, alpha_pattern={pattern: 10})
    values = load(tmp_path / "base")
    for module, scale in zip(shapes, (SCALE, 5.0), strict=True):
        a, b = (factors[f"{module}.lora_{letter}.weight"].astype(np.float32).astype(np.float64) for letter in "AB")
        values[f"{module}.weight"] = values[f"{module}.weight"] + scale * b @ a
    out = write_model(tmp_path / "out", values, "float32")
    assert recomputed(out, tmp_path / "base", tmp_path / "adapter")[0] is True


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"layers_to_transform": [0]}, True),
        ({"layers_to_transform": 1}, True),
        ({"layers_to_transform": [0, 1], "layers_pattern": "layers"}, False),
        ({"layers_to_transform": []}, False),
    ],
)
def test_factors_that_the_config_leaves_out_are_no_part_of_the_adapter(
    tmp_path: Path, settings: dict[str, object], refused: bool
) -> None:
    write_model(tmp_path / "base", random_tensors(0), "float32")
    shapes = {f"model.layers.{layer}.self_attn.q_proj": (HIDDEN, HIDDEN) for layer in (0, 1)}
    write_adapter(tmp_path / "adapter", low_rank(1, shapes, 2), **settings)
    models = [{"model": f"{tmp_path}/base+{tmp_path}/adapter", "parameters": {"weight": 1.0}}]
    recipe = json.dumps({"merge_method": "task_arithmetic", "base_model": str(tmp_path / "base"), "models": models})
    if not refused:
        run(recipe, tmp_path / "out")
        return
    with pytest.raises(Malformed, match=r"leaves layer \d out, so PEFT would ignore it"):
        run(recipe, tmp_path / "out")
