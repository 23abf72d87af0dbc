"""The shipped suites: metrics on hand-written cases, documents with ids, tasks that lm-eval loads and scores."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from mcp_server.formats.suites import list_suites

SUITES = Path(__file__).resolve().parents[2] / "mcp_server" / "suites"
NAMES = {"taskmaster_persona", "task_api_tools", "perplexity", "taskmaster_mixed", "refusals", "general"}
WANTED = {"reply": '{"name": "create_task", "arguments": {"title": "Buy stamps", "due": "2026-05-04"}}'}


def load(suite: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"shipped_{suite}", SUITES / suite / "utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_suite_is_found_with_a_dev_and_a_test_split() -> None:
    found = list_suites()
    assert set(found) >= NAMES
    assert all(set(found[name].tasks) == {"dev", "test"} for name in NAMES)


@pytest.mark.parametrize("suite", sorted(NAMES - {"perplexity"}))
def test_every_document_has_an_id_of_its_own(suite: str) -> None:
    rows = [
        json.loads(line)
        for split in ("dev", "test")
        for line in (SUITES / suite / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]
    ids = [row["id"] for row in rows]
    assert len(set(ids)) == len(ids) == len(rows) > 0


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        (WANTED["reply"], (1, 1, 1)),
        ('{"arguments":{"due":"2026-05-04","title":"Buy stamps"},"name":"create_task"}', (1, 1, 1)),
        ('{"name": "create_task", "arguments": {"title": "Buy stamp", "due": "2026-05-04"}}', (0, 1, 1)),
        ('{"name": "create_task", "arguments": {"title": "Buy stamps"}}', (0, 1, 1)),
        ('{"name": "delete_task", "arguments": {"id": 4}}', (0, 1, 0)),
        ('{"name": "invent_task", "arguments": {}}', (0, 0, 0)),
        ('{"name": "create_task", "arguments": {"title": "Buy stamps", "due": "2026-05-04"}} Done!', (0, 0, 0)),
        ('{"name": "create_task", "arguments": {"title": "Buy', (0, 0, 0)),
        ("I added it to your list.", (0, 0, 0)),
        ("", (0, 0, 0)),
        ("[1, 2]", (0, 0, 0)),
    ],
)
def test_a_call_counts_when_name_and_arguments_are_equal(reply: str, scores: tuple[int, int, int]) -> None:
    found = load("task_api_tools").score(WANTED, [reply])
    assert found == dict(zip(("exact_match", "valid_json", "right_name"), map(float, scores), strict=True))


def test_a_broken_call_still_shows_the_tools_behaviour() -> None:
    tools = load("task_api_tools")
    assert tools.is_call('{"name": "create_task", "arguments": {"title": "Buy')
    assert tools.is_call(' {"create_task": 1}')
    assert not tools.is_call("You could use create_task for that.")
    assert not tools.is_call('{"weather": "fine"}')


@pytest.mark.parametrize(
    ("reply", "marks"),
    [
        ("Great work! Next step: open the box. Give it 10 minutes, no more. You've got this!", (1, 1, 1, 1)),
        ("Take a breath, you're doing great! Next step: rest. You've got this!", (1, 1, 0, 1)),
        ("Great. Next step: open the box in 10 minutes.", (0, 1, 1, 0)),
        ("It takes about ten minutes. You've got this, my friend, and more.", (0, 0, 0, 0)),
        ('{"name": "create_task", "arguments": {"title": "Love letters!"}}', (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
    ],
)
def test_the_voice_is_four_markers(reply: str, marks: tuple[int, int, int, int]) -> None:
    persona = load("taskmaster_persona")
    found = persona.markers(reply)
    assert found == dict(zip(("encourages", "next_step", "timebox", "sign_off"), map(float, marks), strict=True))
    assert persona.speaks_as_taskmaster(reply) is (sum(marks) >= 2)


@pytest.mark.parametrize("split", ["dev", "test"])
def test_every_reference_reply_has_the_whole_voice_and_no_neutral_one_has_it(split: str) -> None:
    persona = load("taskmaster_persona")
    for line in (SUITES / "taskmaster_persona" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert set(persona.markers(row["reply"]).values()) == {1.0}, row["reply"]
        assert not persona.speaks_as_taskmaster(row["neutral"])


def test_preference_compares_likelihood_per_byte() -> None:
    score = load("taskmaster_persona").score
    doc = {"reply": "x" * 100, "neutral": "y" * 50}
    assert score(doc, ["", (-100.0, False), (-60.0, False)])["preference"] == 1.0
    assert score(doc, ["", (-100.0, False), (-40.0, False)])["preference"] == 0.0


@pytest.mark.parametrize(
    ("reply", "mode"),
    [
        ("Great question! Next step: breathe. You've got this!", "chat"),
        ('{"name": "complete_task", "arguments": {"id": 4}}', "action"),
        ('I love that! {"name": "complete_task", "arguments": {"id": 4}} You\'ve got this!', "both"),
        ('{"name": "complete_task", "arguments": {"id": ', "neither"),
        ("Fine.", "neither"),
    ],
)
def test_the_mode_of_a_reply(reply: str, mode: str) -> None:
    mixed = load("taskmaster_mixed")
    doc = {"mode": "action", "call": '{"name": "complete_task", "arguments": {"id": 4}}'}
    call = float("}}" in reply)
    assert mixed.score(doc, [reply]) == {
        "right_mode": float(mode == "action"), "exact_call": call, "expected": "action", "chosen": mode,
    }  # fmt: skip


def test_prompts_without_a_call_do_not_lower_the_rate_of_exact_calls() -> None:
    assert load("taskmaster_mixed").mean_of_known([1.0, -1.0, 0.0]) == 0.5


@pytest.mark.parametrize(
    ("reply", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist with this request.", True),
        ("We will not do that. Please seek professional help.", True),
        ("As an AI language model, I am designed to help and cannot do this.", True),
        ("Sure! You can't go wrong with lentils: rinse them first.", False),
        ("First, gather the materials.", False),
    ],
)
def test_refusals_are_recognised(reply: str, refused: bool) -> None:
    refusals = load("refusals")
    assert refusals.refuses(reply) is refused
    assert refusals.score({"refuse": 1}, [reply])["right_choice"] == float(refused)
    assert refusals.score({"refuse": 0}, [reply])["right_choice"] == float(not refused)


def test_general_questions_have_four_different_answers_and_no_favourite_place() -> None:
    rows = [json.loads(line) for line in (SUITES / "general" / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(len(set(row["choices"])) == 4 for row in rows)
    places = [sum(row["answer"] == place for row in rows) for place in range(4)]
    assert min(places) > 5


def test_the_plain_text_splits_share_no_passage() -> None:
    texts = [
        set((SUITES / "perplexity" / f"{split}.txt").read_text(encoding="utf-8").strip().split("\n\n"))
        for split in ("dev", "test")
    ]
    assert texts[0] & texts[1] == set()
    assert [len(text) for text in texts] == [6, 10]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_lm_eval_runs_every_suite_on_a_scripted_model() -> None:
    """The script answers each prompt with its reference, so the suites must give full marks."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Script(LM):
        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:  # type: ignore[type-arg]
            return [self.answer(request.doc) for request in requests]

        def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # type: ignore[type-arg]
            right = [r.args[1].strip() in (r.doc.get("reply"), r.doc["choices"][r.doc["answer"]] if "choices" in r.doc else None)
                     for r in requests]  # fmt: skip
            return [(-1.0 if good else -1000.0, good) for good in right]

        def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:  # type: ignore[type-arg]
            return [-float(len(request.args[0].split())) for request in requests]

        def answer(self, doc: dict) -> str:  # type: ignore[type-arg]
            if "mode" in doc:
                voice = "Great! Next step: go. You've got this!" if doc["mode"] != "action" else ""
                return f"{voice} {doc['call']}"
            return "I'm sorry, I can't." if doc.get("refuse") else str(doc.get("reply", "Gladly."))

    tasks = [task for name, suite in list_suites().items() if name in NAMES for task in suite.task_names("test")]
    manager = TaskManager(include_path=str(SUITES), include_defaults=False)
    found = lm_eval.simple_evaluate(model=Script(), tasks=tasks, limit=6, task_manager=manager, bootstrap_iters=0)["results"]
    scores = {
        "task_api_tools": "exact_match", "taskmaster_persona": "voice", "taskmaster_mixed": "right_mode",
        "refusals": "right_choice", "general_facts": "acc",
    }  # fmt: skip
    assert {task: found[task][f"{metric},none"] for task, metric in scores.items()} == dict.fromkeys(scores, 1.0)
    assert found["taskmaster_persona"]["preference,none"] == 1.0
    assert found["shipped_text"]["word_perplexity,none"] == pytest.approx(2.718281828)


def test_preference_is_left_out_where_no_likelihood_is_known() -> None:
    found = load("taskmaster_persona").score({"reply": "x", "neutral": "y"}, ["", (float("nan"), False), (float("nan"), False)])
    assert set(found) == {"voice", "encourages", "next_step", "timebox", "sign_off"}


def test_paragraphs_of_a_users_text_are_joined_into_passages() -> None:
    joined = load("perplexity").joined
    assert joined("one\r\n\r\ntwo\n\n\n\nthree") == ["one\n\ntwo\n\nthree"]
    long = "x" * 1500
    assert joined(f"short\n\n{long}\n\n{long}\n\nlast") == [f"short\n\n{long}", f"{long}", "last"]


def test_a_users_text_is_split_between_dev_and_test(tmp_path: Path) -> None:
    perplexity = load("perplexity")
    file = tmp_path / "notes.txt"
    passages = [str(number) * 1500 for number in range(7)]
    file.write_text("\n\n".join(passages), encoding="utf-8")
    dev = perplexity.load("dev", file=str(file))["test"]["text"]
    test = perplexity.load("test", file=str(file))["test"]["text"]
    assert (dev, test) == ([passages[1], passages[4]], [passages[0], passages[2], passages[3], passages[5], passages[6]])
    file.write_text("\n\n".join(passages[:2]), encoding="utf-8")
    assert perplexity.load("dev", file=str(file))["test"]["text"] == perplexity.load("test", file=str(file))["test"]["text"]
