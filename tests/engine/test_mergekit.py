"""The same recipes through mergekit 0.1.5 itself, at dtype float32: one process, many recipes.

mergekit computes in float32 too, with sums in another order, so results agree to a few parts in 10⁶ except where a method is
discontinuous: a sign election near zero, equal magnitudes at a threshold. Those elements are counted and must be few.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.engine.signatures import SIGNATURES
from tests.engine.synthetic import HIDDEN, INTERMEDIATE, load, run, shapes, write_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

REAL = {
    "model.layers.{}.self_attn.k_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.{}.self_attn.v_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.{}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.{}.mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
    "model.layers.{}.post_attention_layernorm.weight": (HIDDEN,),
}
"""What a real Llama has besides the tests' usual tensors: mergekit insists on all of them."""


def llama(seed: int, around: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    table = {name: shape for name, shape in shapes(4).items() if not name.endswith("bias")}
    table |= {pattern.format(layer): shape for layer in range(4) for pattern, shape in REAL.items()}
    generator = np.random.default_rng(seed)
    noise = {name: generator.standard_normal(shape) for name, shape in table.items()}
    return {name: around[name] + 0.3 * values for name, values in noise.items()} if around else noise


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    base = llama(0)
    extra = {"num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    refs = {"base": str(write_model(root / "base", base, "float32", config=extra))}
    for n, dtype in ((1, "float32"), (2, "float32"), (3, "bfloat16")):
        refs[f"m{n}"] = str(write_model(root / f"m{n}", llama(n, base), dtype, shards=n, config=extra))
    tied = {k: v for k, v in base.items() if k != "lm_head.weight"}
    refs["tied"] = str(write_model(root / "tied", tied, "float32", config=extra))
    return refs


def entry(ref: str, layers: list[int] | None = None, **parameters: Any) -> dict[str, Any]:
    return {"model": ref, "parameters": parameters} | ({"layer_range": layers} if layers else {})


def three(weights: tuple[float, ...] = (0.7, 0.4, 0.2), **parameters: Any) -> list[dict[str, Any]]:
    return [entry(f"m{n}", weight=w, **parameters) for n, w in enumerate(weights, 1)]


GRADIENT, FILTER = [0.1, 0.9], [{"filter": "self_attn", "value": 0.8}, {"filter": "mlp", "value": [0.2, 0.6]}, {"value": 0.4}]
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "models": three()},
    "linear, not normalised, filters": {
        "merge_method": "linear",
        "models": [entry("m1", weight=FILTER), entry("m2", weight=0.3)],
        "parameters": {"normalize": False},
    },
    "linear, tied and untied": {"merge_method": "linear", "models": [entry("tied", weight=1), entry("m1", weight=2)]},
    "slerp, gradient by filter": {
        "merge_method": "slerp",
        "base_model": "base",
        "models": [entry("m1"), entry("base")],
        "parameters": {"t": FILTER},
    },
    "slerp in slices": {
        "merge_method": "slerp",
        "base_model": "base",
        "slices": [
            {"sources": [entry("base", [0, 2]), entry("m1", [0, 2])], "parameters": {"t": GRADIENT}},
            {"sources": [entry("base", [2, 4]), entry("m1", [2, 4])]},
        ],
        "parameters": {"t": 0.3},
    },
    "nuslerp": {"merge_method": "nuslerp", "models": three((0.7, 0.4))},
    "nuslerp around a base": {"merge_method": "nuslerp", "base_model": "base", "models": three((0.7, 0.4))},
    "multislerp": {"merge_method": "multislerp", "base_model": "base", "models": three()},
    "model_stock": {"merge_method": "model_stock", "base_model": "base", "models": three()},
    "task_arithmetic": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": three(),
        "parameters": {"lambda": 0.7},
    },
    "task_arithmetic, gradients, normalised": {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [entry("m1", weight=GRADIENT), entry("m2", weight=[0.5, 0.1, 0.9])],
        "parameters": {"normalize": True},
    },
    "ties": {"merge_method": "ties", "base_model": "base", "models": three(density=0.4)},
    "ties, rescaled, not normalised": {
        "merge_method": "ties",
        "base_model": "base",
        "models": three(density=FILTER),
        "parameters": {"rescale": True, "normalize": "no", "lambda": "1e0"},
    },
    "ties in overlapping slices": {
        "merge_method": "ties",
        "base_model": "base",
        "slices": [
            {
                "sources": [
                    entry("base", [0, 3]),
                    entry("m1", [0, 3], weight=1, density=0.5),
                    entry("m2", [0, 3], weight=GRADIENT),
                ]
            },
            {"sources": [entry("base", [1, 4]), entry("m1", [1, 4], weight=0.5), entry("m2", [1, 4], weight=1)]},
        ],
        "parameters": {"density": 0.7},
    },
    "breadcrumbs": {"merge_method": "breadcrumbs", "base_model": "base", "models": three(density=0.6, gamma=0.05)},
    "breadcrumbs_ties": {"merge_method": "breadcrumbs_ties", "base_model": "base", "models": three(density=0.6)},
    "karcher": {"merge_method": "karcher", "models": [entry("m1"), entry("m2"), entry("m3")]},
    "nearswap": {"merge_method": "nearswap", "base_model": "base", "models": [entry("m1")], "parameters": {"t": GRADIENT}},
    "ram": {"merge_method": "ram", "base_model": "base", "models": [entry("m1"), entry("m2")], "parameters": {"epsilon": 0.2}},
    "ramplus_tl": {
        "merge_method": "ramplus_tl",
        "base_model": "base",
        "models": [entry("m1"), entry("m2"), entry("m3")],
        "parameters": {"epsilon": 0.2, "r": 0.5, "alpha": 0.8},
    },
    "sce": {"merge_method": "sce", "base_model": "base", "models": [entry("m1"), entry("m2"), entry("m3")]},
    "sce that selects": {
        "merge_method": "sce",
        "base_model": "base",
        "models": [entry("m1"), entry("m2"), entry("m3")],
        "parameters": {"select_topk": 0.4},
    },
    "arcee_fusion": {"merge_method": "arcee_fusion", "base_model": "base", "models": [entry("m1")]},
    "dare that drops nothing": {"merge_method": "dare_ties", "base_model": "base", "models": three(density=1.0)},
    "passthrough of stacked slices, scaled": {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [entry("m1", [0, 3])]},
            {"sources": [entry("m2", [1, 4], scale=[{"filter": "o_proj", "value": 0.5}, {"value": 1.0}])]},
        ],
    },
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_engine_agrees_with_mergekit(models: dict[str, str], tmp_path: Path, name: str) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    text = json.dumps(RECIPES[name] | {"dtype": "float32"})
    for key, path in models.items():
        text = text.replace(f'"{key}"', json.dumps(path))
    run_merge(
        MergeConfiguration.model_validate_json(text), str(tmp_path / "theirs"), MergeOptions(quiet=True, copy_tokenizer=False)
    )
    run(text, tmp_path / "ours")
    ours, theirs = load(tmp_path / "ours"), load(tmp_path / "theirs")
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    odd = total = 0
    for tensor, values in theirs.items():
        odd += int((~np.isclose(ours[tensor], values, rtol=2e-6, atol=4e-6)).sum())
        total += values.size
    allowed = 2e-4 if "ties" in name else 0
    assert odd <= allowed * total, f"{odd} of {total} elements differ"
    configs = [json.loads((tmp_path / side / "config.json").read_text("utf-8")) for side in ("ours", "theirs")]
    assert configs[0]["num_hidden_layers"] == configs[1]["num_hidden_layers"]


def test_the_signatures_are_mergekits() -> None:
    from mergekit.merge_methods.base import BasePolicy, ParameterScope
    from mergekit.merge_methods.registry import registered_methods

    policies = {BasePolicy.REQUIRED: "required", BasePolicy.OPTIONAL: "optional", BasePolicy.IGNORED: "ignored"}
    found = {method.spec.name: method.spec for method in registered_methods() if method.spec.name in SIGNATURES}
    assert sorted(found) == sorted(SIGNATURES)
    for name, spec in found.items():
        signature, contract = SIGNATURES[name], spec.contract
        assert policies[contract.base] == signature.base
        assert (contract.min_inputs, contract.max_inputs) == signature.needs
        assert ((contract.min_non_base or 0), contract.max_non_base) == signature.needs_non_base
        for parameter in spec.parameters:
            table = signature.shared if parameter.scope == ParameterScope.SHARED else signature.source
            kind, default = table[parameter.name]
            assert (kind == "flag") == (parameter.value_type is bool), (name, parameter.name)
            assert parameter.required or parameter.default == default, (name, parameter.name)
        assert {p.name for p in spec.parameters} == {*signature.shared, *signature.source}
