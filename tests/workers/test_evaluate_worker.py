"""The evaluate and load-check workers on a real, tiny language model, as processes, the way jobs run them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_server.schemas.evidence import Evaluation, Verification
from mcp_server.schemas.replies import Answers
from mcp_server.steps.evaluate.replies import show_replies

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ROOT = HERE.parent.parent

ECHO = {
    "task": "echo",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{text}}",
    "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
}
UTILS = """
from datasets import Dataset

def load(**_):
    return {"test": Dataset.from_list([{"text": text} for text in ("abc", "hello there", "x", "What is it?", "no", "yes, I do")])}

def score(doc, results):
    letters = [c for c in results[0] if c.isalpha()]
    return {"letters": len(letters) / max(len(results[0]), 1), "mode": "loud" if results[0].isupper() else "calm"}

def loud(text):
    return any(c.isupper() for c in text)

def count(values):
    return float(len(values))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, str(HERE / "tiny_language_model.py"), str(folder)], check=True, capture_output=True)
    suite = folder / "suites" / "echo"
    suite.mkdir(parents=True)
    (suite / "utils.py").write_text(UTILS, encoding="utf-8")
    metrics = (
        "metric_list:\n- {metric: letters, aggregation: mean, higher_is_better: true}\n"
        "- {metric: mode, aggregation: !function utils.count, higher_is_better: true}\n"
    )
    functions = "custom_dataset: !function utils.load\nprocess_results: !function utils.score\n"
    (suite / "echo.yaml").write_text(yaml.safe_dump(ECHO) + functions + metrics, encoding="utf-8")
    sidecar = {"capability": "echoing", "tasks": {"test": ["echo"], "dev": ["echo"]}, "metric": "letters", "chat_template": True}
    (suite / "suite.yaml").write_text(yaml.safe_dump(sidecar | {"behaviour": "utils.py:loud"}), encoding="utf-8")
    return folder


def run(worker: str, folder: Path, home: Path, **parameters: Any) -> tuple[int, dict[str, Any]]:
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({"kind": worker, "parameters": parameters}), encoding="utf-8")
    environment = {**os.environ, "MODEL_MERGING_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", f"mcp_server.workers.{worker}", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    file = folder / ("result.json" if ended.returncode == 0 else "error.json")
    assert file.is_file(), ended.stderr
    return ended.returncode, json.loads(file.read_text(encoding="utf-8"))


def measured(place: Path, folder: Path, home: Path, **parameters: Any) -> Evaluation:
    defaults = {
        "base": str(place / "base"),
        "sources": {"other": str(place / "other"), "tuned": f"{place / 'base'}+{place / 'adapter'}"},
        "suites": ["echo", "perplexity"],
        "suite_folders": [str(place / "suites")],
        "dtype": "float32",
        "limit": 6,
    }
    status, result = run("evaluate", folder, home, **defaults | parameters)
    assert status == 0
    return Evaluation.model_validate(result)


@pytest.fixture(scope="module")
def evaluation(place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    home = tmp_path_factory.mktemp("home")
    return measured(place, home / "job", home, out=str(place / "folded"), cross=True), home


def test_every_model_is_measured_on_every_suite(evaluation: tuple[Evaluation, Path], place: Path) -> None:
    found, _ = evaluation
    assert set(found.capabilities) == {"echoing", "general language"}
    for capability in found.capabilities.values():
        assert capability.n == 6
        assert set(capability.sources) == {"other", "tuned"}
        assert None not in (capability.base, capability.merged)
    assert list(found.models) == ["base", "other", "tuned", "merged"]
    assert Path(found.path or "") == place / "folded" / "evaluation.json"


def test_replies_lie_beside_the_merge_and_ask_says_the_same(evaluation: tuple[Evaluation, Path], place: Path) -> None:
    shown = show_replies(place / "folded", suite="echo")
    (asked,) = [one for one in shown.replies if one.prompt == "hello there"]
    assert set(asked.replies) == set(evaluation[0].models) and shown.suites["echo"].prompts == 6
    against = {name: evaluation[0].models[name] for name in ("base", "other", "tuned")}
    status, said = run(
        "ask", evaluation[1] / "ask", evaluation[1], out=str(place / "folded"), text="hello there", against=against,
        dtype="float32", max_tokens=12,
    )  # fmt: skip
    assert status == 0
    for label, reply in Answers.model_validate(said).replies.items():
        assert reply.split("\n")[0].strip() == asked.replies[label].strip(), label


def test_our_fold_of_an_adapter_answers_as_pefts_does(evaluation: tuple[Evaluation, Path]) -> None:
    """`folded` is PEFT's merge of the same adapter, in float32."""
    prose = evaluation[0].capabilities["general language"]
    assert prose.merged == pytest.approx(prose.sources["tuned"], rel=1e-5)
    assert prose.base != pytest.approx(prose.sources["tuned"], rel=1e-3)


def test_labels_become_a_table_and_behaviours_a_matrix(evaluation: tuple[Evaluation, Path]) -> None:
    found, _ = evaluation
    assert set(found.cross_context) == {found.capabilities["echoing"].expert}
    assert all(set(row) == {"echo"} for row in found.cross_context.values())


def test_a_second_run_computes_nothing_and_finds_the_same(place: Path, evaluation: tuple[Evaluation, Path]) -> None:
    first, home = evaluation
    again = measured(place, home / "again", home, out=str(place / "folded"), cross=True)
    assert {label: speed.computed for label, speed in again.generation.items()} == dict.fromkeys(first.models, 0)
    assert again.capabilities == first.capabilities


def test_a_text_of_ones_own_is_scored_beside_the_shipped_one(place: Path, tmp_path: Path) -> None:
    prose = "Some prose of my own, word after word after word. "
    file = tmp_path / "notes.txt"
    file.write_text("\n\n".join(prose * 31 for _ in range(4)), encoding="utf-8")
    found = measured(place, tmp_path / "job", tmp_path, sources={}, suites=["perplexity", str(file)], limit=None)
    assert {name: (c.suite, c.metric, c.n) for name, c in found.capabilities.items()} == {
        "general language": ("perplexity", "perplexity", 6),
        "notes.txt": ("text_notes", "perplexity", 4),
    }
    assert found.capabilities["notes.txt"].base != found.capabilities["general language"].base


def test_prompts_of_ones_own_are_measured_by_every_kind_of_match(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    lines = [
        {"prompt": "ab", "expected": ".*", "match": "regex"},
        {"prompt": "ab", "expected": "never said"},
        {"prompt": "ab", "expected": {"a": 1}},
        {"prompt": "ab", "choices": ["x", "x y z"], "expected": 0},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = measured(place, tmp_path / "job", tmp_path, suites=[], data=[str(file)], sources={}, limit=None)
    assert {name: (c.metric, c.n) for name, c in found.capabilities.items()} == {"own.jsonl": ("match", 4)}
    assert found.capabilities["own.jsonl"].base in (0.25, 0.5)
    assert found.notes == ["own.jsonl was measured whole"]


def test_replies_and_likelihoods_after_a_shared_prefix_are_those_of_transformers_and_lm_eval(place: Path) -> None:
    """Whatever the draft says, and however the batches are cut: the oracles are `generate`, one prompt at a time, and lm-eval."""
    ended = subprocess.run(
        [sys.executable, str(HERE / "drafting_check.py"), str(place / "base")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    found, scored = told["replies"], told["likelihoods"]
    assert {name: one["same"] for name, one in {**found, **scored}.items()} == dict.fromkeys({**found, **scored}, True)
    assert scored["shared"]["tokens"] < 0.7 * scored["shared"]["of"]
    shares = {name: one["accepted"] / one["drafted"] for name, one in found.items() if one.get("drafted")}
    assert all(share > 0.5 for name, share in shares.items() if name.startswith("right"))
    assert not [name for name in shares if name.startswith("wrong")]  # not looked at: their first token is not what is said
    assert 0 < found["some '\\n' together"]["drafted"] < found["half '\\n' together"]["drafted"]


def test_changed_weights_are_another_model(place: Path, evaluation: tuple[Evaluation, Path], tmp_path: Path) -> None:
    _, home = evaluation
    changed = shutil.copytree(place / "folded", tmp_path / "changed")
    data = bytearray((changed / "model.safetensors").read_bytes())
    data[-1] ^= 0x01
    (changed / "model.safetensors").write_bytes(data)
    found = measured(place, tmp_path / "job", home, out=str(changed), suites=["echo"], cross=False)
    assert found.generation["merged"].computed == 6
    assert found.generation["base"].computed == 0


def test_an_unknown_suite_is_bad_input_before_any_model_is_loaded(place: Path, tmp_path: Path) -> None:
    status, error = run(
        "evaluate", tmp_path / "job", tmp_path, base=str(place / "base"), suites=["ehco"], suite_folders=[str(place / "suites")]
    )
    assert (status, error["type"]) == (2, "NotFound")
    assert "'ehco' is neither a suite nor a task of lm-eval" in error["message"]


def test_a_model_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    status, error = run("evaluate", tmp_path / "job", tmp_path, base=str(tmp_path / "nothing"), suites=["perplexity"])
    assert (status, error["type"]) == (2, "NotFound")


def test_a_right_model_loads_and_generates(place: Path, tmp_path: Path) -> None:
    status, result = run("load_check", tmp_path / "job", tmp_path, out=str(place / "folded"))
    assert (status, result["loads"]) == (0, True)


def test_weights_that_a_loader_would_invent_do_not_load(place: Path, tmp_path: Path) -> None:
    from tests.engine.synthetic import load, save

    broken = shutil.copytree(place / "folded", tmp_path / "broken")
    tensors = load(broken)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save(broken / "model.safetensors", tensors, "float32")
    status, result = run("load_check", tmp_path / "job", tmp_path, out=str(broken))
    assert (status, result["loads"]) == (0, False)
    assert "model.layers.1.mlp.up_proj.weight" in result["detail"]


def test_verify_adds_the_load_check_to_its_own(place: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_dump(
        {
            "merge_method": "task_arithmetic",
            "base_model": str(place / "base"),
            "models": [{"model": f"{place / 'base'}+{place / 'adapter'}", "parameters": {"weight": 1.0}}],
        }
    )
    file = tmp_path / "recipe.yml"
    file.write_text(recipe, encoding="utf-8")
    status, result = run("verify", tmp_path / "job", tmp_path, out=str(place / "folded"), recipe=str(file), full=True)
    found = Verification.model_validate(result)
    assert (status, found.verdict, found.checks[-1].name) == (0, "verified", "loads"), found.checks
    assert found.landed == {"adapter": pytest.approx(1.0, abs=1e-4)}
    assert json.loads((place / "folded" / "verification.json").read_text(encoding="utf-8")) == result
