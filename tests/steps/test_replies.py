"""Replies of base, sources and merge side by side: what is kept, in which order it is shown, what is said without any."""

import json
from pathlib import Path

import pytest

from mcp_server.cli import run as command
from mcp_server.errors import BadInput, Malformed, NotFound
from mcp_server.formats.content import content_hash
from mcp_server.schemas.evidence import Capability, Evaluation
from mcp_server.schemas.replies import Tally
from mcp_server.steps.evaluate import Metric, SuiteSamples
from mcp_server.steps.evaluate.replies import keep_replies, show_replies, side_by_side
from tests import tiny

PROMPTS = ["first", "second", "third", "fourth"]
SAID = {
    "base": (["a", "b", "c", "d"], [0, 0, 0, 0]),
    "tools": (["A", "B", "C", "D"], [1, 0, 1, 1]),
    "merged": (["A", "B!", "c?", "D."], [1, 1, 0, 1]),
}


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODEL_MERGING_HOME", str(tmp_path / "home"))
    return tiny.write_model(tmp_path / "m")


def samples(suite: str, *, higher_is_better: bool = True) -> dict[str, SuiteSamples]:
    return {
        label: SuiteSamples(
            suite=suite,
            metric="match",
            higher_is_better=higher_is_better,
            metrics={"match": Metric(kind="mean", values=scores)},
            prompt_ids=PROMPTS,
            replies=replies,
            prompts=PROMPTS,
            expected=["A", "B!", "C", "D"],
        )
        for label, (replies, scores) in SAID.items()
    }


def evaluation(model: Path, split: str = "dev") -> Evaluation:
    figures = {name: Capability(suite=name, metric="match", n=4, expert="tools") for name in ("calls", "errors")}
    made = {"capabilities": figures, "verdict": "passed", "split": split, "model": content_hash(model), "created": "2026-01-01"}
    return Evaluation.model_validate(made)


def test_losses_come_first_then_wins_then_other_words(model: Path) -> None:
    keep_replies(model, side_by_side({"calls": samples("calls")}, evaluation(model)))
    found = show_replies(model)
    assert [(one.prompt, one.outcome) for one in found.replies] == [
        ("third", "loss"), ("second", "win"), ("fourth", "differs"), ("first", "same"),
    ]  # fmt: skip
    assert found.suites == {"calls": Tally(prompts=4, losses=1, wins=1, differs=1, expert="tools")}
    assert found.replies[0].replies == {"base": "c", "tools": "C", "merged": "c?"} and found.current is True


def test_where_less_is_better_a_lower_score_wins(model: Path) -> None:
    kept = side_by_side({"errors": samples("errors", higher_is_better=False)}, evaluation(model))
    assert [one.outcome for one in kept.replies] == ["same", "loss", "win", "differs"]


def test_a_new_run_replaces_its_own_suite_and_split_only(model: Path) -> None:
    for suite, split in (("calls", "dev"), ("calls", "test"), ("errors", "dev"), ("calls", "test")):
        keep_replies(model, side_by_side({suite: samples(suite)}, evaluation(model, split)))
    found = show_replies(model)
    assert sorted({(one.suite, one.split) for one in found.replies}) == [("calls", "dev"), ("calls", "test"), ("errors", "dev")]
    assert found.found == 12


def test_replies_of_other_weights_do_not_stay(model: Path) -> None:
    keep_replies(model, side_by_side({"calls": samples("calls")}, evaluation(model)))
    other = evaluation(model).model_copy(update={"model": "0" * 64})
    keep_replies(model, side_by_side({"errors": samples("errors")}, other))
    assert set(show_replies(model).suites) == {"errors"} and show_replies(model).current is False


def test_pages_and_words_select(model: Path) -> None:
    keep_replies(model, side_by_side({"calls": samples("calls")}, evaluation(model)))
    assert [one.prompt for one in show_replies(model, find="c?").replies] == ["third"]
    assert [one.prompt for one in show_replies(model, outcome="win").replies] == ["second"]
    page = show_replies(model, offset=1, limit=2)
    assert [one.prompt for one in page.replies] == ["second", "fourth"] and (page.found, page.next_offset) == (4, 3)


def test_a_person_sees_losses_and_json_has_the_same(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep_replies(model, side_by_side({"calls": samples("calls")}, evaluation(model)))
    assert command(["show", str(model), "--limit", "1"]) == 0
    shown = capsys.readouterr().out
    assert "loss  calls (dev)" in shown and "merged    c?  [0]" in shown and "3 more: --offset 1" in shown
    assert command(["show", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["suites"]["calls"]["losses"] == 1


def test_nothing_measured_an_unknown_suite_and_a_foreign_file_are_named(model: Path) -> None:
    with pytest.raises(NotFound, match="holds no replies"):
        show_replies(model)
    keep_replies(model, side_by_side({"calls": samples("calls")}, evaluation(model)))
    with pytest.raises(BadInput, match="Did you mean 'calls'"):
        show_replies(model, suite="call")
    (model / "replies.json").write_text('{"replies": 3, "experts": {}}', encoding="utf-8")
    with pytest.raises(Malformed, match="replies"):
        show_replies(model)
