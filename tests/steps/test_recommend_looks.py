"""recommend opens what it is told about: the verdict follows the files, and never disagrees with inspect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mcp_server.errors import NotAModel
from mcp_server.formats.safetensors import read_header
from mcp_server.schemas.plan import Plan
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.recommend import read_scenario, recommend
from tests.engine.synthetic import low_rank, random_tensors
from tests.engine.synthetic import shapes as wide_shapes
from tests.engine.synthetic import write_adapter as write_lora
from tests.engine.synthetic import write_model as write_wide
from tests.tiny import write_adapter, write_model, write_tokenizer

MODULES = {name.removesuffix(".weight"): shape for name, shape in wide_shapes().items() if "_proj.weight" in name}


def plan_for(base: Path | str, *refs: Path, **more: Any) -> Plan:
    sources = [{"name": ref.name, "ref": str(ref)} for ref in refs]
    return recommend(read_scenario({"sources": sources, "base_model": str(base), **more}))


def edited(folder: Path, file: str, **changes: Any) -> Path:
    data = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**data, **changes}), encoding="utf-8")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_tokenizer(write_model(tmp_path / "base"))


def test_two_adapters_of_the_base_are_merged_and_their_facts_filled_in(base: Path, tmp_path: Path) -> None:
    plan = plan_for(
        base, write_adapter(tmp_path / "a", base, rank=2, seed=1), write_adapter(tmp_path / "b", base, rank=4, seed=2)
    )
    assert plan.observed is not None
    assert (plan.verdict, plan.observed.compatible, plan.observed.looked_at) == ("merge", True, ["a", "b"])
    assert [(s.kind, s.rank) for s in plan.scenario.sources or []] == [("lora", 2), ("lora", 4)]
    assert "ranks_differ" in {w.code for w in plan.warnings}


def test_norm_and_cosine_from_the_factors_are_those_of_the_formed_deltas(base: Path, tmp_path: Path) -> None:
    adapters = [write_adapter(tmp_path / name, base, rank=rank, seed=rank) for name, rank in (("a", 2), ("b", 3))]
    plan = plan_for(base, *adapters)
    deltas = []
    for adapter in adapters:
        stored = load_file(adapter / "adapter_model.safetensors")
        modules = sorted({name.split(".lora_")[0] for name in stored})
        formed = [2.0 * stored[f"{m}.lora_B.weight"] @ stored[f"{m}.lora_A.weight"] for m in modules]
        deltas.append(np.concatenate([delta.astype("float64").ravel() for delta in formed]))
    assert [s.norm for s in plan.scenario.sources or []] == [pytest.approx(np.linalg.norm(d), rel=1e-3) for d in deltas]
    cosine = deltas[0] @ deltas[1] / np.linalg.norm(deltas[0]) / np.linalg.norm(deltas[1])
    assert [r.cosine for r in plan.scenario.relations or []] == [pytest.approx(cosine, abs=1e-3)]


def test_an_adapter_that_names_another_base_is_no_plain_merge(base: Path, tmp_path: Path) -> None:
    good = write_adapter(tmp_path / "good", base)
    bad = edited(write_adapter(tmp_path / "bad", base, seed=2), "adapter_config.json", base_model_name_or_path="org/Other-1B")
    plan, seen = plan_for(base, good, bad), inspect_models([str(base), str(good), str(bad)])
    assert (plan.verdict, plan.rules[0].id, seen.compatible) == ("merge_with_caution", "base_in_doubt", None)
    assert "org/Other-1B" in plan.rules[0].because


def test_an_adapter_of_a_base_that_is_here_and_holds_other_weights_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", seed=5)
    bad = write_adapter(tmp_path / "bad", other)
    plan = plan_for(base, write_adapter(tmp_path / "good", base), bad)
    assert (plan.verdict, [d.split(" ")[0] for d in plan.differences]) == ("cannot_merge", ["base_model"])
    assert inspect_models([str(bad)], base=str(base)).compatible is False


def test_a_copy_of_the_base_under_another_name_is_the_base(base: Path, tmp_path: Path) -> None:
    copy = write_tokenizer(write_model(tmp_path / "renamed"))
    assert plan_for(base, *(write_adapter(tmp_path / n, copy, seed=i) for i, n in enumerate("ab", 1))).verdict == "merge"


def test_two_hub_names_that_differ_are_two_bases(base: Path, tmp_path: Path) -> None:
    named = edited(base, "config.json", _name_or_path="org/Small-1B")
    bad = edited(write_adapter(tmp_path / "bad", base), "adapter_config.json", base_model_name_or_path="org/Other-1B")
    assert plan_for(named, bad).verdict == "cannot_merge"
    good = edited(
        write_adapter(tmp_path / "good", base), "adapter_config.json", base_model_name_or_path="unsloth/Small-1B-bnb-4bit"
    )
    assert plan_for(named, good, write_adapter(tmp_path / "same", base, seed=3)).verdict == "merge"


def model_of(folder: Path, weights: dict[str, Any]) -> Path:
    """A float32 model of `write_model`'s shape with these weights."""
    made = write_tokenizer(write_model(folder))
    save_file({n: w.astype("float32") for n, w in weights.items()}, made / "model.safetensors")
    return made


def noise(shapes: dict[str, tuple[int, ...]], size: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, size, shape) for name, shape in shapes.items()}


def added(*parts: dict[str, Any]) -> dict[str, Any]:
    return {name: sum(part[name] for part in parts) for name in parts[0]}


@pytest.fixture
def shapes(base: Path) -> dict[str, tuple[int, ...]]:
    return {name: tensor.shape for name, tensor in read_header(base / "model.safetensors").tensors.items()}


def test_a_model_trained_from_another_start_cannot_be_averaged(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    one, far = (model_of(tmp_path / f"m{seed}", noise(shapes, 0.1, seed)) for seed in (1, 2))
    plan = plan_for("none", one, far)
    assert (plan.verdict, plan.rules[0].id) == ("cannot_merge", "weights_unrelated")


def test_fine_tunes_on_a_base_that_is_not_theirs_are_told_from_near_copies(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    start, shared = noise(shapes, 0.1, 0), noise(shapes, 0.005, 1)
    tunes = [model_of(tmp_path / f"tune{i}", added(start, shared, noise(shapes, 0.001, 10 + i))) for i in (0, 1)]
    near = plan_for(model_of(tmp_path / "start", start), *tunes)
    assert (near.verdict, near.strategy and near.strategy.id) == ("merge_with_caution", "linear")
    wrong = plan_for(model_of(tmp_path / "wrong", added(start, noise(shapes, 0.06, 3))), *tunes)
    assert (wrong.verdict, wrong.rules[0].id) == ("cannot_merge", "base_is_not_theirs")


@pytest.mark.parametrize(
    ("change", "verdict", "rule"),
    [
        ({"hidden_size": 16}, "cannot_merge", "shapes_differ"),
        ({"num_attention_heads": 4}, "cannot_merge", "shapes_differ"),
        ({"architectures": ["MistralForCausalLM"]}, "cannot_merge", "shapes_differ"),
        ({"hidden_act": "gelu"}, "merge_with_caution", "settings_in_conflict"),
    ],
)
def test_what_a_models_config_says_reaches_the_verdict(
    base: Path, tmp_path: Path, change: dict[str, Any], verdict: str, rule: str
) -> None:
    changed = edited(write_tokenizer(write_model(tmp_path / "two", seed=2)), "config.json", **change)
    one = write_tokenizer(write_model(tmp_path / "one", seed=1))
    plan = plan_for(base, one, changed)
    assert (plan.verdict, plan.rules[0].id) == (verdict, rule)
    assert inspect_models([str(one), str(changed)], base=str(base)).compatible is (verdict == "merge_with_caution")


def test_packed_codes_that_are_not_read_reach_the_verdict(base: Path, tmp_path: Path) -> None:
    one, packed = (write_tokenizer(write_model(tmp_path / name, seed=seed)) for seed, name in enumerate(("one", "packed"), 1))
    file = packed / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"I16" '))
    plan = plan_for(base, one, packed)
    assert (plan.verdict, plan.rules[0].id) == ("cannot_merge", "files_unusable")


def test_a_pickle_among_the_sources_cannot_be_merged(base: Path, tmp_path: Path) -> None:
    pickled = write_model(tmp_path / "pickled", seed=2)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    plan = plan_for(base, write_model(tmp_path / "one", seed=1), pickled)
    assert (plan.verdict, [d.split(" ")[0] for d in plan.differences]) == ("cannot_merge", ["files"])


def test_another_vocabulary_and_another_template_are_named(base: Path, tmp_path: Path) -> None:
    other = write_tokenizer(write_model(tmp_path / "other", seed=1))
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace('"a": 3, "b": 4', '"a": 4, "b": 3'), encoding="utf-8")
    edited(other, "tokenizer_config.json", chat_template="{{ messages }}")
    edited(base, "tokenizer_config.json", chat_template="{{ messages }}!")
    plan = plan_for(base, other, write_tokenizer(write_model(tmp_path / "same", seed=2)))
    assert (plan.verdict, plan.rules[0].id) == ("merge_with_caution", "vocabularies_differ")
    assert {"templates_differ", "tokenizers_need_a_block"} <= {w.code for w in plan.warnings}


def test_what_is_not_here_stays_unknown_and_is_named(tmp_path: Path) -> None:
    plan = plan_for("org/Base-1B", tmp_path / "absent", tmp_path / "gone")
    assert (plan.verdict, plan.observed) == ("merge", None)
    assert next(w.message for w in plan.warnings if w.code == "not_here").startswith("not on this machine")


def test_a_rank_that_the_file_contradicts_is_corrected_and_said(base: Path, tmp_path: Path) -> None:
    ref = write_adapter(tmp_path / "a", base, rank=2)
    sources = [{"name": "a", "ref": str(ref), "rank": 16}, {"name": "b", "ref": str(write_adapter(tmp_path / "b", base, seed=2))}]
    plan = recommend(read_scenario({"sources": sources, "base_model": str(base)}))
    assert "rank is 2, not 16" in next(w.message for w in plan.warnings if w.code == "files_contradict")


class Wide:
    """A base of matrices large enough that unrelated changes are near-orthogonal, and what is trained on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.start = folder, random_tensors(0)
        self.base = write_wide(folder / "base", self.start)

    def tune(self, name: str, seed: int) -> Path:
        return write_wide(self.folder / name, random_tensors(seed, around=self.start, size=0.02), "float32")

    def lora(self, name: str, seed: int, **more: Any) -> Path:
        return write_lora(self.folder / name, low_rank(seed, MODULES, 2), base_model_name_or_path=str(self.base), **more)

    def loha(self, name: str, seed: int) -> Path:
        rng, factors = np.random.default_rng(seed), {}
        for module, (rows, columns) in MODULES.items():
            for part in ("w1", "w2"):
                factors[f"{module}.hada_{part}_a"] = rng.standard_normal((rows, 2))
                factors[f"{module}.hada_{part}_b"] = rng.standard_normal((2, columns))
        settings = {"peft_type": "LOHA", "alpha": 2, "rank_pattern": {}, "alpha_pattern": {}}
        return write_lora(self.folder / name, factors, base_model_name_or_path=str(self.base), **settings)


@pytest.fixture
def wide(tmp_path: Path) -> Wide:
    return Wide(tmp_path)


def measured_by(plan: Plan) -> str | None:
    return plan.observed.measured_by if plan.observed else None


def test_a_full_fine_tune_beside_an_adapter_is_measured_too(wide: Wide) -> None:
    plan = plan_for(wide.base, wide.tune("full", 1), wide.lora("lora", 2))
    assert measured_by(plan) == "samples of the weights"
    (pair,) = plan.scenario.relations or []
    assert pair.cosine is not None
    assert abs(pair.cosine) < 0.3


def test_adapters_are_measured_without_their_base(wide: Wide) -> None:
    refs = [wide.lora("one", 1), wide.lora("two", 2)]
    without, beside = plan_for("org/Base-1B", *refs), plan_for(wide.base, *refs)
    assert measured_by(without) == "the adapters' factors"
    assert [s.norm for s in without.scenario.sources or []] == [s.norm for s in beside.scenario.sources or []]
    assert without.scenario.relations == beside.scenario.relations


def test_an_adapter_that_is_no_lora_is_measured_and_not_called_untrained(wide: Wide) -> None:
    plan = plan_for(wide.base, wide.loha("loha", 1), wide.lora("lora", 2))
    assert (plan.verdict, measured_by(plan)) == ("merge", "samples of the weights")
    assert all(source.norm for source in plan.scenario.sources or [])


def test_a_path_that_leads_nowhere_is_named(wide: Wide) -> None:
    plan = plan_for(wide.folder / "nowhere", wide.lora("one", 1), wide.lora("two", 2))
    assert "nowhere does not exist" in next(w.message for w in plan.warnings if w.code == "not_here")


def test_what_is_said_of_similarity_yields_to_what_is_measured(wide: Wide) -> None:
    one, again = wide.lora("one", 1), wide.folder / "again"
    shutil.copytree(one, again)
    plan = plan_for(wide.base, one, again, relation={"similarity": "distinct"})
    assert (plan.rules[0].id, plan.strategy and plan.strategy.id) == ("one_change_twice", "linear")
    assert "not distinct" in next(w.message for w in plan.warnings if w.code == "files_contradict")


def test_a_base_that_is_an_adapter_is_refused_with_the_model_that_it_was_trained_on(wide: Wide) -> None:
    one, two = wide.lora("one", 1), wide.lora("two", 2)
    for ask in (lambda: plan_for(one, one, two), lambda: inspect_models([str(two)], base=str(one))):
        with pytest.raises(NotAModel, match="is an adapter") as refused:
            ask()
        assert str(wide.base) in refused.value.next_step
