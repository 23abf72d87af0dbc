"""Any recipe is answered at once, or refused by a limit that is named; the time grows with the text and no faster."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mcp_server import cli
from mcp_server.errors import Malformed
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.recommend import recommend
from mcp_server.steps.scenario import scenario_from
from mcp_server.steps.validate import fix, validate
from tests.tiny import linear_recipe, write_adapter, write_model, write_safetensors

SECONDS = 3.0
"""The bound is 2 s of a processor; one that is shared with other work counts up to half more."""


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
    """Its header is too long to be remembered; what is compared with nothing is not read again."""
    from mcp_server.formats import safetensors

    monkeypatch.setattr(safetensors, "REMEMBERED_BYTES", 0)
    read, parse = [], safetensors._parse
    monkeypatch.setattr(safetensors, "_parse", lambda file, raw: read.append(file) or parse(file, raw))
    inspect_models([str(write_model(tmp_path / "model"))])
    assert len(read) == 1
    inspect_models([str(tmp_path / "model"), str(write_model(tmp_path / "other", 1))])
    assert len(read) == 1 + 4  # each once, and once more for the cosine of their weights


def test_twenty_thousand_tensors_in_a_thousand_shards_are_inspected_at_once(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").unlink()
    names: dict[str, str] = {}
    for shard in range(1_000):
        file = f"model-{shard + 1:05}-of-01000.safetensors"
        tensors = {f"model.layers.{shard}.mlp.{n}.weight": ("BF16", [2, 2], bytes(8)) for n in range(20)}
        write_safetensors(model / file, tensors)
        names |= dict.fromkeys(tensors, file)
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}), "utf-8")
    before = time.process_time()
    assert inspect_models([str(model)]).sources[0].kind == "full"
    assert time.process_time() - before < SECONDS


def test_five_thousand_evaluations_are_listed_at_once(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "model")
    run = {"capabilities": {"c": {"suite": "s", "metric": "acc", "n": 8, "merged": 0.5}}, "verdict": "passed", "created": "2026"}
    (model / "evaluations.jsonl").write_text((json.dumps(run) + "\n") * 5_000, "utf-8")
    before = time.process_time()
    assert cli.run(["evaluations", str(model)]) == 0
    assert time.process_time() - before < SECONDS
    assert capsys.readouterr().out.count("passed") == 5_000
