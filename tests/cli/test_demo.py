"""The demo's last step: what the merge answered to each kind of request, right where one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcp_server.cli import demo
from mcp_server.errors import Unsupported
from mcp_server.schemas.replies import KeptReplies, PromptReplies
from mcp_server.steps.evaluate.replies import keep_replies


def answered(suite: str, mode: str, prompt: str, score: float) -> PromptReplies:
    replies, scores = {"merged": f"to {prompt}"}, {"merged": score}
    return PromptReplies(suite=suite, prompt=prompt, expected=mode, replies=replies, scores=scores, outcome="differs")


def test_a_reply_of_each_mode_is_shown_and_a_right_one_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = [
        answered(demo.MODES, "chat", "wrong chat", 0.0),
        answered(demo.MODES, "both", "wrong both", 0.0),
        answered(demo.MODES, "chat", "first chat", 1.0),
        answered(demo.MODES, "chat", "second chat", 1.0),
        answered(demo.MODES, "action", "an action", 1.0),
        answered("task_api_tools", "{}", "of another suite", 1.0),
    ]
    keep_replies(tmp_path, KeptReplies(replies=kept))

    def missing() -> None:
        raise Unsupported("llama.cpp's tools are not here", "install them")

    monkeypatch.setattr(demo, "require_converter", missing)
    said: list[str] = []
    shown = demo._chat(tmp_path, tmp_path / "chat", said, quiet=True)
    assert [(one.wanted, one.prompt, one.merge) for one in shown] == [
        ("action", "an action", "to an action"),
        ("both", "wrong both", "to wrong both"),
        ("chat", "first chat", "to first chat"),
    ]
    assert said == ["3 replies as measured; from a 4-bit GGUF too, install them"]
