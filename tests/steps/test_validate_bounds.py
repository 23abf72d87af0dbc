"""Any recipe is answered at once, or refused by a limit that is named; the time grows with the text and no faster."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mcp_server import cli
from mcp_server.errors import BadInput, Malformed
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.recommend import recommend
from mcp_server.steps.report import write_report
from mcp_server.steps.scenario import scenario_from
from mcp_server.steps.validate import fix, validate
from tests.tiny import linear_recipe, write_adapter, write_model, write_safetensors

SECONDS = 2.0
"""Of a processor."""


def of_models(count: int) -> str:
    return "merge_method: linear\ndtype: bfloat16\nmodels:\n" + "".join(
        f"  - model: org/model-{n}\n    parameters: {{weight: 0.5}}\n" for n in range(count)
    )


def of_slices(count: int) -> str:
    return "merge_method: passthrough\nslices:\n" + "".join(
        f"  - sources: [{{model: org/m{n % 7}, layer_range: [{n}, {n + 1}]}}]\n" for n in range(count)
    )


def of_stages(count: int) -> str:
    stage = "merge_method: linear\nmodels: [{{model: {0}}}, {{model: org/b}}]\nparameters: {{weight: 1}}\n"
    names = ["org/a", *(f"s{n}" for n in range(count))]
    return "---\n".join((f"name: s{n}\n" if n < count - 1 else "") + stage.format(before) for n, before in enumerate(names[:-1]))


def of_gradient(count: int) -> str:
    values = ", ".join(str(n % 10 / 10) for n in range(count))
    return (
        f"merge_method: slerp\nbase_model: org/a\nmodels: [{{model: org/a}}, {{model: org/b}}]\nparameters: {{t: [{values}]}}\n"
    )


def seconds(text: str) -> float:
    before = time.process_time()
    validate(text)
    return time.process_time() - before


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (of_models(9_000), "models lists 9,000 entries"),
        (of_models(1_000), ""),
        (of_slices(9_000), "slices lists 9,000 entries"),
        (of_slices(1_000), ""),
        (of_stages(2_000), "holds 2,000 documents"),
        (of_stages(100), ""),
        ("---\n".join([of_models(500)] * 20), "its 20 documents list 10,000 entries"),
        (of_gradient(90_000), "a list of 90,000 values"),
        (of_gradient(1_000), ""),
    ],
    ids=[
        "models",
        "fewer models",
        "slices",
        "fewer slices",
        "documents",
        "fewer documents",
        "documents of many models",
        "gradient",
        "shorter gradient",
    ],
)
@pytest.mark.parametrize("correct", [False, True])
def test_a_large_recipe_is_answered_at_once(text: str, refused: str, correct: bool) -> None:
    before = time.process_time()
    found = fix(text) if correct else validate(text)
    assert time.process_time() - before < SECONDS
    assert any(f.code == "MM116" and refused in f.message for f in found.findings) is bool(refused)


@pytest.mark.parametrize("form", [of_models, of_slices, of_gradient])
def test_four_times_the_text_takes_at_most_about_four_times_as_long(form: object) -> None:
    assert callable(form)
    validate(form(10))  # what is read once per process
    small, large = (min(seconds(form(count)) for _ in range(3)) for count in (200, 800))
    assert large < 7 * small + 0.05


def test_an_adapter_of_a_hundred_thousand_patterns_is_answered_at_once(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    adapter = write_adapter(tmp_path / "lora", base)
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    config["rank_pattern"] = {f"model.layers.{n}.mlp.up_proj": 7 for n in range(100_000)}
    (adapter / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    validate(linear_recipe(base, f"{base}+{adapter}"))  # what is read once per process
    assert seconds(linear_recipe(base, f"{base}+{adapter}")) < SECONDS


def test_a_scenario_of_too_many_sources_is_refused_before_any_rule_runs() -> None:
    before = time.process_time()
    with pytest.raises(Malformed, match="9,000 sources exceed the limit of 100"):
        scenario_from({"sources": [{"name": f"s{n}", "kind": "full"} for n in range(9_000)]})
    assert time.process_time() - before < SECONDS
    advised = recommend(scenario_from({"sources": [{"name": f"s{n}", "kind": "full"} for n in range(100)]}))
    assert time.process_time() - before < 2 * SECONDS
    assert advised.verdict


def test_a_large_model_is_read_once_to_be_inspected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header is too long to be remembered, but one call opens each model once."""
    from mcp_server.formats import safetensors

    monkeypatch.setattr(safetensors, "REMEMBERED_BYTES", 0)
    read, parse = [], safetensors._parse
    monkeypatch.setattr(safetensors, "_parse", lambda file, raw: read.append(file) or parse(file, raw))
    inspect_models([str(write_model(tmp_path / "model"))])
    assert len(read) == 1
    inspect_models([str(tmp_path / "model"), str(write_model(tmp_path / "other", 1))])
    assert len(read) == 1 + 2


def of_shards(folder: Path, shards: int, each: int) -> Path:
    """A model of small matrices: `each` in every shard, whose number is their layer's."""
    model = write_model(folder)
    (model / "model.safetensors").unlink()
    names: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        tensors = {f"model.layers.{shard}.mlp.{n}.weight": ("BF16", [2, 2], bytes(8)) for n in range(each)}
        write_safetensors(model / file, tensors)
        names |= dict.fromkeys(tensors, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), "utf-8")
    return model


@pytest.mark.parametrize(("shards", "each"), [(1, 100_000), (1_000, 20), pytest.param(5_000, 1, marks=pytest.mark.slow)])
def test_models_of_many_tensors_or_shards_are_answered_at_once(tmp_path: Path, shards: int, each: int) -> None:
    validate(linear_recipe(write_model(tmp_path / "small"), write_model(tmp_path / "other", 1)))  # what is read once per process
    model = of_shards(tmp_path / "model", shards, each)
    before = time.process_time()
    assert inspect_models([str(model)]).sources[0].tensors == shards * each
    assert time.process_time() - before < SECONDS
    assert seconds(linear_recipe(model, model)) < SECONDS


def test_a_merge_of_more_tensors_than_are_planned_at_once_is_compared_and_the_plan_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, third = (
        of_shards(tmp_path / "one", 1, 30),
        of_shards(tmp_path / "other", 1, 40),
        of_shards(tmp_path / "third", 1, 30),
    )
    planned = validate(linear_recipe(one, other)).findings, validate(linear_recipe(one, third)).skipped
    for place in ("mcp_server.steps.validate.engines", "mcp_server.engine.coverage"):
        monkeypatch.setattr(f"{place}.MAX_PLANNED", 59)
    assert [finding.code for finding in validate(linear_recipe(one, other)).findings] == ["MM306"]
    skipped = validate(linear_recipe(one, third)).skipped
    why = "the sources hold 60 tensors; more than 59 are matched when the merge starts"
    assert {code: skipped[code] for code in skipped.keys() - planned[1].keys()} == dict.fromkeys(("MM330", "MM331"), why)
    assert planned[0] == validate(linear_recipe(one, other)).findings


def test_more_tensors_than_one_call_looks_at_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [str(of_shards(tmp_path / name, 1, 50)) for name in "abc"]
    monkeypatch.setattr("mcp_server.formats.checkpoint.MAX_TENSORS", 149)
    with pytest.raises(BadInput, match="hold 150 tensors together, which exceeds the limit of 149"):
        inspect_models(models)
    assert len(inspect_models([*models[:2], models[0]]).sources) == 2


def test_more_sources_than_one_call_looks_at_are_refused_before_any_is_opened() -> None:
    with pytest.raises(BadInput, match="2,000 sources exceed the limit of 1,000"):
        inspect_models([f"absent-{n}" for n in range(2_000)])


def test_a_thousand_adapters_are_inspected_at_once(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base")
    first = write_adapter(tmp_path / "lora", base)
    inspect_models([str(first)], str(base))
    for number in range(999):
        (tmp_path / str(number)).symlink_to(first)
    before = time.process_time()
    found = inspect_models([str(first), *(str(tmp_path / str(number)) for number in range(999))], str(base))
    assert time.process_time() - before < SECONDS
    assert len(found.sources) == 1_001


def test_a_report_of_twenty_thousand_layers_shows_what_fits_and_counts_the_rest(tmp_path: Path, store: Path) -> None:
    model = write_model(tmp_path / "model")
    row = {
        "sources": [{"name": name, "norm": 1.0, "relative_norm": 0.1} for name in "ab"],
        "pairs": [{"between": ["a", "b"], "sign_disagreement": 0.5, "norm_ratio": 1.0}],
    }
    comparison = {"sources": {"a": "/a", "b": "/b"}, "layers": {str(n): row for n in range(20_000)}}
    (tmp_path / "comparison.json").write_text(json.dumps(comparison), "utf-8")
    before = time.process_time()
    write_report(model, tmp_path / "report.html")
    assert time.process_time() - before < SECONDS
    assert "15,000 more layers are in the comparison" in (tmp_path / "report.html").read_text("utf-8")


def test_evidence_larger_than_any_is_left_out_and_named(tmp_path: Path, store: Path) -> None:
    model = write_model(tmp_path / "model")
    (tmp_path / "sweep.json").write_text(json.dumps({"candidates": [], "note": "x" * 8_000_000}), "utf-8")
    write_report(model, tmp_path / "report.html")
    assert "exceeds the limit of 8,000,000" in (tmp_path / "report.html").read_text("utf-8")
    (model / "verification.json").write_bytes(b" " * 8_000_001)
    with pytest.raises(Malformed, match="8,000,001 bytes"):
        write_report(model, tmp_path / "report.html")


def test_names_of_twenty_thousand_characters_are_read_at_once(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    validate(linear_recipe(model, model))  # what is read once per process
    for part in ("x", "1", ".0", "_", "layers.1.", "experts."):
        names = [f"model.layers.{n}.{part * (20_000 // len(part))}.weight" for n in range(50)]
        write_safetensors(model / "model.safetensors", {name: ("BF16", [2, 2], bytes(8)) for name in names})
        before = time.process_time()
        inspect_models([str(model)])
        validate(linear_recipe(model, model))
        assert time.process_time() - before < SECONDS, part


def test_five_thousand_evaluations_are_listed_at_once(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model")
    run = {"capabilities": {"c": {"suite": "s", "metric": "acc", "n": 8, "merged": 0.5}}, "verdict": "passed", "created": "2026"}
    (model / "evaluations.jsonl").write_text((json.dumps(run) + "\n") * 5_000, "utf-8")
    before = time.process_time()
    assert cli.run(["evaluations", str(model)]) == 0
    assert time.process_time() - before < SECONDS
    assert capsys.readouterr().out.count("passed") == 5_000
