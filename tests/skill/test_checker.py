"""The checker of the whole tasks passes right work and fails wrong work: each task is solved by hand here, then spoilt."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

EVALS = Path(__file__).parents[2] / "skills" / "model-merging" / "evals"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EVALS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


fixtures = load("fixtures")
checker = load("checker")


def failing(task: str, workspace: Path) -> list[str]:
    return [name for name, holds, _detail in checker.TASKS[task](workspace) if not holds]


def write_answer(workspace: Path, text: str) -> None:
    (workspace / "answer.md").write_text(text, encoding="utf-8")


def merged(workspace: Path, shares: dict[str, float], name: str = "merged") -> None:
    tensors = fixtures.read_tensors(workspace / "base")
    for adapter, share in shares.items():
        for key, delta in fixtures.deltas(workspace / adapter).items():
            tensors[key] = tensors[key] + share * delta
    fixtures.write_model(workspace / name, tensors)


@pytest.fixture
def workspace(request, tmp_path):
    fixtures.prepare(request.param, tmp_path)
    return tmp_path


def prepared(task: str):
    return pytest.mark.parametrize("workspace", [task], indirect=True)


@pytest.mark.parametrize("task", sorted(checker.TASKS))
def test_nothing_done_is_never_right(task, tmp_path):
    fixtures.prepare(task, tmp_path)
    assert failing(task, tmp_path) != []


@prepared("two-adapters")
def test_a_merge_of_both_adapters_is_right(workspace):
    merged(workspace, {"persona": 0.5, "tools": 0.8})
    models = "".join(
        f"  - model: ./base+./{n}\n    parameters: {{weight: {w}}}\n" for n, w in (("persona", 0.77), ("tools", 1.23))
    )
    (workspace / "recipe.yml").write_text(
        f"merge_method: task_arithmetic\nbase_model: ./base\nmodels:\n{models}", encoding="utf-8"
    )
    write_answer(workspace, "persona and tools, task_arithmetic, because one may be favoured")
    assert failing("two-adapters", workspace) == []


@prepared("two-adapters")
def test_a_merge_that_left_one_adapter_out_is_wrong(workspace):
    merged(workspace, {"tools": 1.0})
    assert "both deltas are in the merge" in failing("two-adapters", workspace)


@prepared("two-adapters")
def test_a_merge_with_nan_is_wrong(workspace):
    merged(workspace, {"persona": np.nan, "tools": 1.0})
    assert "merged/ is finite" in failing("two-adapters", workspace)


@prepared("retrain-instead")
def test_refusing_with_the_reason_is_right_and_merging_is_wrong(workspace):
    write_answer(workspace, "Do not merge: retrain one adapter on both sets, they overlap by 70 % and conflict.")
    assert failing("retrain-instead", workspace) == []
    (workspace / "merged").mkdir()
    assert failing("retrain-instead", workspace) == ["nothing was merged"]


FIXED = """\
merge_method: ties
base_model: ./base
models:
  - model: ./code
    parameters: {density: 0.5, weight: 0.6}
  - model: ./chat
    parameters: {density: 0.5, weight: 0.4}
dtype: float32
"""


@prepared("broken-recipe")
def test_the_corrected_recipe_is_right(workspace):
    (workspace / "recipe.yml").write_text(FIXED, encoding="utf-8")
    write_answer(workspace, "base_model was missing, density 1.5 is illegal, layer ranges went past the end")
    assert failing("broken-recipe", workspace) == []


@prepared("broken-recipe")
@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("ties", "linear", "still TIES of code and chat"),
        ("base_model: ./base\n", "", "base_model is named"),
        ("weight: 0.6", "weight: 0.5", "weights kept at 0.6 and 0.4"),
        ("density: 0.5, weight: 0.6", "density: 1.5, weight: 0.6", "densities are legal"),
    ],
)
def test_a_half_corrected_recipe_is_wrong(workspace, old, new, complaint):
    (workspace / "recipe.yml").write_text(FIXED.replace(old, new), encoding="utf-8")
    assert complaint in failing("broken-recipe", workspace)


@prepared("does-not-match")
def test_naming_the_fields_with_their_values_is_right(workspace):
    write_answer(workspace, "hidden_size is 64 and 128, vocab_size 96 and 160: these cannot be merged")
    assert failing("does-not-match", workspace) == []
    write_answer(workspace, "they do not match")
    assert failing("does-not-match", workspace) != []


@prepared("adapter-space")
def test_the_concatenated_adapter_is_right_and_a_wrong_scale_is_not(workspace):
    write_concatenated(workspace, 0.7)
    assert failing("adapter-space", workspace) == []
    shutil.rmtree(workspace / "combined")
    write_concatenated(workspace, 1.0)
    assert failing("adapter-space", workspace) == ["its delta is 0.7 times the sum"]


def write_concatenated(workspace: Path, weight: float) -> None:
    tensors = {}
    parts = [fixtures.read_tensors(workspace / name) for name in ("persona", "tools")]
    for key in parts[0]:
        stack = [part[key] * (2 * weight if "lora_B" in key else 1) for part in parts]  # alpha / r is 2 for both
        tensors[key] = np.concatenate(stack, axis=1 if "lora_B" in key else 0)
    config = json.loads((workspace / "persona" / "adapter_config.json").read_text(encoding="utf-8")) | {"r": 24, "lora_alpha": 24}
    (workspace / "combined").mkdir()
    (workspace / "combined" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    fixtures.write_tensors(workspace / "combined" / "adapter_model.safetensors", tensors)


@prepared("pick-up-the-job")
def test_half_of_both_deltas_and_an_honest_answer_are_right(workspace):
    base, code, chat = (fixtures.read_tensors(workspace / n) for n in ("base", "code", "chat"))
    fixtures.write_model(workspace / "merged", {n: v + 0.5 * ((code[n] - v) + (chat[n] - v)) for n, v in base.items()})
    write_answer(workspace, "Verified. Not evaluated yet: measure base, code, chat and merged on held-out prompts first.")
    assert failing("pick-up-the-job", workspace) == []
    write_answer(workspace, "Measured base, code and chat by evaluation; it is ready to use.")
    assert failing("pick-up-the-job", workspace) == ["answer.md does not call it finished"]


@prepared("another-base")
def test_refusing_adapters_of_another_base_is_right(workspace):
    write_answer(workspace, "Not merged: tools was trained on other/, which is not the base of persona.")
    assert failing("another-base", workspace) == []
    merged(workspace, {"persona": 1.0, "tools": 1.0})
    assert failing("another-base", workspace) == ["nothing was merged"]


MEANT = """\
merge_method: task_arithmetic
base_model: ./base
models:
  - model: ./code
    parameters: {weight: 1.0}
  - model: ./chat
    parameters: {weight: 1.0}
parameters: {lambda: 0.5}
dtype: bfloat16
"""


@prepared("blog-recipe")
@pytest.mark.parametrize(
    ("old", "new", "complaints"),
    [
        ("", "", []),
        ("lambda", "scaling", ["scaled by 0.5"]),
        ("bfloat16", "bf16", ["the dtype is one that mergekit knows"]),
        ("base_model", "base", ["base_model is named", "no key of the post is left over"]),
        ("{weight: 1.0}", "{weight: 0.5}", ["both at full weight"]),
    ],
)
def test_what_the_blog_meant_is_right(workspace, old, new, complaints):
    (workspace / "recipe.yml").write_text(MEANT.replace(old, new) if old else MEANT, encoding="utf-8")
    write_answer(workspace, "method is merge_method, base is base_model, weight belongs under parameters, scaling is lambda")
    assert failing("blog-recipe", workspace) == complaints


def summed(workspace: Path, name: str, code: float, chat: float, base: str = "base") -> None:
    start, one, two = (fixtures.read_tensors(workspace / part) for part in (base, "code", "chat"))
    fixtures.write_model(workspace / name, {n: v + code * (one[n] - v) + chat * (two[n] - v) for n, v in start.items()})


@prepared("gibberish")
def test_the_right_base_is_the_cure_and_another_scale_on_the_wrong_one_is_not(workspace):
    write_answer(workspace, "recipe.yml names other/ as the base, which is the wrong one: both were trained from base/.")
    summed(workspace, "fixed", 0.7, 0.7)
    assert failing("gibberish", workspace) == []
    shutil.rmtree(workspace / "fixed")
    summed(workspace, "fixed", 0.3, 0.3, base="other")
    assert failing("gibberish", workspace) == ["fixed/ is base/ with both changes"]


@prepared("own-data")
def test_own_prompts_become_one_line_each_with_how_to_compare(workspace):
    rows = [row.split(",") for row in (workspace / "tickets.csv").read_text(encoding="utf-8").splitlines()[1:]]
    lines = [json.dumps({"prompt": q, "expected": a, "match": kind}) for q, a, kind in rows]
    (workspace / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    write_answer(workspace, "model-merging evaluate merged --data prompts.jsonl; 12 prompts leave an interval far wider than 5 %")
    assert failing("own-data", workspace) == []
    (workspace / "prompts.jsonl").write_text("\n".join(lines[1:]).replace("contains", "exact"), encoding="utf-8")
    assert failing("own-data", workspace) == [
        "every question is there once, and nothing else",
        "with the answer that is expected",
        "compared as the table says",
    ]


@prepared("favour-one")
@pytest.mark.parametrize(
    ("code", "chat", "complaints"),
    [
        (1.0, 0.7, []),
        (0.7, 0.7, ["code stays whole"]),
        (1.0, 0.0, ["chat is reduced and still there"]),
        (1.0, 1.0, ["chat is reduced and still there"]),
    ],
)
def test_favouring_keeps_the_one_whole_and_some_of_the_other(workspace, code, chat, complaints):
    summed(workspace, "merged", code, chat)
    write_answer(workspace, "code goes in whole; chat is reduced to 0.7 of its change and will lose some")
    assert failing("favour-one", workspace) == complaints


@prepared("frankenmerge")
def test_a_deeper_model_is_right_only_with_the_truth_about_it(workspace):
    base = fixtures.read_tensors(workspace / "base")
    deep = {n: v for n, v in base.items() if not n.startswith("model.layers.")}
    for place, layer in enumerate((0, 1, 2, 1, 2, 3)):
        start = f"model.layers.{layer}."
        deep |= {n.replace(start, f"model.layers.{place}."): v for n, v in base.items() if n.startswith(start)}
    fixtures.write_model(workspace / "deep", deep)
    config = json.loads((workspace / "deep" / "config.json").read_text(encoding="utf-8"))
    write_answer(workspace, "Not smarter: the seams were never trained. Train it further, then measure perplexity against base.")
    assert failing("frankenmerge", workspace) == ["deep/ has six layers, config and weights alike"]
    (workspace / "deep" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}), encoding="utf-8")
    assert failing("frankenmerge", workspace) == []
    write_answer(workspace, "It is smarter now.")
    assert len(failing("frankenmerge", workspace)) == 1


def test_an_unknown_task_is_named(capsys):
    assert checker.main(["nothing", "here"]) == 2
    assert "two-adapters" in capsys.readouterr().err
