"""The memory of answers: nothing is asked twice, nothing is lost, and weights are loaded only when they are needed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jinja2 import TemplateError

from mcp_server.errors import Unsupported
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore, request_key


class Tokens:
    """A tokenizer of single characters."""

    chat_template = "x"

    def __len__(self) -> int:
        return 50_000

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) for c in text]


class Inner:
    """A model that answers in upper case, tells its hook of each answer, and can die in the middle."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.asked: list[Any] = []
        self.dies_after = dies_after
        self.batch_size_per_gpu = 0
        self.hook: Any = None

    def set_cache_hook(self, hook: Any) -> None:
        self.hook = hook

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        answers = []
        for request in requests:
            if self.dies_after is not None and len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append(request.args)
            answers.append(request.args[0].upper())
            self.hook.add_partial("generate_until", request.args, answers[-1])
        return answers

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.asked += [request.args for request in requests]
        return [(-1.5, True) for _ in requests]


def ask(*prompts: str) -> list[Any]:
    return [SimpleNamespace(args=(prompt, {"until": ["."]})) for prompt in prompts]


def model(file: Path | None, inner: Inner, loads: list[int]) -> RememberingLM:
    def load() -> Inner:
        loads.append(1)
        return inner

    return RememberingLM(ResponseStore(file), load, Tokens(), "m", 4)


def test_answers_come_in_the_order_of_the_questions_and_equal_questions_are_asked_once() -> None:
    inner, loads = Inner(), []
    assert model(None, inner, loads).generate_until(ask("b", "a", "b")) == ["B", "A", "B"]
    assert [arguments[0] for arguments in inner.asked] == ["b", "a"]
    assert len(loads) == 1


def test_known_answers_need_no_weights(tmp_path: Path) -> None:
    file = tmp_path / "s" / "answers.jsonl"
    model(file, Inner(), []).generate_until(ask("a", "b"))
    inner, loads = Inner(), []
    again = model(file, inner, loads)
    assert again.generate_until(ask("b", "a")) == ["B", "A"]
    assert (inner.asked, loads, again.asked, again.computed) == ([], [], 2, 0)


def test_what_was_answered_before_a_death_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    dying = Inner(dies_after=2)
    with pytest.raises(KeyboardInterrupt):
        model(file, dying, []).generate_until(ask("a", "b", "c", "d"))
    inner = Inner()
    assert model(file, inner, []).generate_until(ask("a", "b", "c", "d")) == ["A", "B", "C", "D"]
    assert [arguments[0] for arguments in inner.asked] == ["c", "d"]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    model(file, Inner(), []).generate_until(ask("a"))
    file.write_text(file.read_text(encoding="utf-8") + '{"k": "abc", "r": "to', encoding="utf-8")
    assert list(ResponseStore(file).answers) == [request_key("generate_until", ("a", {"until": ["."]}))]


def test_a_line_after_a_torn_one_is_still_read(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text('{"k": "abc", "r": "to', encoding="utf-8")
    model(file, Inner(), []).generate_until(ask("a"))
    assert list(ResponseStore(file).answers) == [request_key("generate_until", ("a", {"until": ["."]}))]


def test_other_stopping_words_are_another_question() -> None:
    inner = Inner()
    one = model(None, inner, [])
    one.generate_until(ask("a"))
    one.generate_until([SimpleNamespace(args=("a", {"until": ["!"]}))])
    assert len(inner.asked) == 2


def test_likelihoods_keep_their_two_parts(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    question = [SimpleNamespace(args=("a", "b"))]
    assert model(file, Inner(), []).loglikelihood(question) == [(-1.5, True)]
    assert model(file, Inner(), []).loglikelihood(question) == [(-1.5, True)]


def test_scoring_batches_shrink_with_the_length_of_the_prompts() -> None:
    inner = Inner()
    one = model(None, inner, [])
    one.loglikelihood([SimpleNamespace(args=("x" * 20, "y"))])
    short = inner.batch_size_per_gpu
    one.loglikelihood([SimpleNamespace(args=("x" * 20_000, "y"))])
    assert short == 32
    assert 1 <= inner.batch_size_per_gpu < 32


def test_progress_counts_what_is_known_and_what_is_answered() -> None:
    told: list[tuple[int, int]] = []
    one = model(None, Inner(), [])
    one.told = lambda done, total, kind: told.append((done, total))
    one.generate_until(ask("a", "b"))
    one.generate_until(ask("a", "b", "c"))
    assert told == [(0, 2), (1, 2), (2, 2), (2, 3), (3, 3)]


def test_a_template_that_refuses_a_role_is_said_with_the_roles() -> None:
    class NoSystem:
        def apply_chat_template(self, *_: object, **__: object) -> str:
            raise TemplateError("System role not supported")

    asked = RememberingLM(ResponseStore(None), lambda: None, NoSystem(), "gemma", 1)
    with pytest.raises(Unsupported, match="gemma takes no messages of system, user: System role not supported"):
        asked.apply_chat_template([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
