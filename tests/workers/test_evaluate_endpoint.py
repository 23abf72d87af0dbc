"""Measuring a model behind an OpenAI-compatible endpoint, over real HTTP: what it can do, what it refuses, how it fails."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcp_server.errors import BadInput, RunFailed, Unsupported
from mcp_server.formats.suites import find_suite
from mcp_server.steps.evaluate.served import Endpoint, endpoint_url, require_served
from mcp_server.workers.evaluating.endpoint import ChatLM, ServedLM
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore
from tests.workers.fake_openai import Server, serving


class Tokens:
    """A tokenizer of single characters."""

    chat_template = "x"
    bos_token_id = None
    eos_token_id = ord("^")

    def __len__(self) -> int:
        return 50_000

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


def served(server: Server, model: str = "m", path: str = "", window: int = 100, concurrent: int = 4) -> ServedLM:
    return ServedLM(Endpoint(endpoint_url(server.url + path), model, wait_s=0.0), Tokens(), window, concurrent)


def prompts(*texts: str) -> list[Any]:
    return [SimpleNamespace(args=(text, {"until": ["<end>"], "max_gen_toks": 7})) for text in texts]


def pairs(*texts: tuple[str, ...]) -> list[Any]:
    return [SimpleNamespace(args=text) for text in texts]


def value(text: str) -> float:
    return sum(-1.0 - ord(c) % 3 for c in text)


def test_prompts_go_as_tokens_and_answers_come_back_in_order_and_cut_at_the_stop() -> None:
    with serving(Server()) as server:
        texts = [f"say w{number}" for number in range(20)]
        assert served(server).generate_until(prompts(*texts)) == [f"W{number}" for number in range(20)]
        asked = [body for body in server.seen if "stop" in body]
        assert sorted("".join(map(chr, body["prompt"])) for body in asked) == sorted(texts)
        assert {(body["max_tokens"], body["temperature"], *body["stop"]) for body in asked} == {(7, 0, "<end>")}


def test_likelihoods_are_those_of_the_continuation_alone() -> None:
    with serving(Server()) as server:
        found = served(server).loglikelihood(pairs(("A question:", "yes"), ("A question:", "no no")), disable_tqdm=True)
        assert sum("echo" in body for body in server.seen) == 3, "one question whether it can, and the two pairs"
    assert found == [(value("yes"), True), (value("no no"), False)]


def test_a_suite_that_only_generates_never_asks_for_likelihoods() -> None:
    with serving(Server()) as server:
        served(server).generate_until(prompts("go on"))
        assert not any("echo" in body for body in server.seen)


def test_a_passage_is_scored_whole_in_windows() -> None:
    text = "a passage of plain prose, longer than one window"
    with serving(Server()) as server:
        whole = served(server, window=1000).loglikelihood_rolling(pairs((text,)))
        pieces = served(server, window=20).loglikelihood_rolling(pairs((text,)))
    assert whole == pieces == [pytest.approx(value(text))]


def test_a_server_that_takes_text_only_gets_text() -> None:
    with serving(Server(texts_only=True)) as server:
        lm = served(server)
        assert lm.generate_until(prompts("please shout")) == ["SHOUT"]
        assert lm.loglikelihood(pairs(("Q:", "yes")), disable_tqdm=True) == [(value("yes"), True)]
        assert [body["prompt"] for body in server.seen if "stop" in body] == ["please shout"]


def test_a_server_that_begins_texts_with_its_own_token_is_scored_right() -> None:
    with serving(Server(texts_only=True, begins_with_bos=True)) as server:
        assert served(server).loglikelihood(pairs(("Q:", "yes")), disable_tqdm=True) == [(value("yes"), True)]


def test_another_tokenizer_behind_the_endpoint_is_found_out() -> None:
    class Doubled(Tokens):
        def decode(self, tokens: list[int]) -> str:
            return super().decode(tokens) * 2

    with serving(Server(texts_only=True)) as server:
        lm = ServedLM(Endpoint(endpoint_url(server.url), "m"), Doubled(), 100, 1)
        with pytest.raises(BadInput, match="its tokenizer is another"):
            lm.loglikelihood(pairs(("Q:", "yes")), disable_tqdm=True)


@pytest.mark.parametrize("path", ["", "/chat/completions"])
def test_where_no_likelihoods_are_to_be_had_a_suite_that_needs_them_is_refused(path: str) -> None:
    with serving(Server(echoes=False)) as server, pytest.raises(Unsupported, match="tells no log-probabilities of a prompt"):
        served(server, path=path).loglikelihood(pairs(("Q:", "yes")), disable_tqdm=True)


def test_a_suite_that_can_do_without_likelihoods_gets_none_and_keeps_none(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "answers.jsonl")
    with serving(Server(echoes=False)) as server:
        model = RememberingLM(store, lambda: served(server), Tokens(), "m", 4)
        model.unscored_ok = True
        ((found, greedy),) = model.loglikelihood(pairs(("Q:", "yes")))
    assert math.isnan(found)
    assert greedy is False
    assert "no echo here" in (model.unscored or "")
    assert store.answers == {}


def test_a_chat_endpoint_gets_the_messages(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be loud."}, {"role": "user", "content": "say hello"}]
    with serving(Server()) as server:
        model = ChatLM(ResponseStore(None), lambda: served(server, path="/chat/completions", concurrent=1), Tokens(), "m", 1)
        found = model.generate_until(prompts(model.apply_chat_template(chat), "plain words"))
        assert found == ["HELLO", "WORDS"]
        assert [body["messages"] for body in server.seen[1:]] == [chat, [{"role": "user", "content": "plain words"}]]


@pytest.mark.parametrize("fault", [(503, b"loading the model"), (429, b"slow down"), (500, b""), None], ids=str)
def test_a_server_that_is_busy_or_hangs_up_is_asked_again(fault: Any) -> None:
    with serving(Server()) as server:
        lm = served(server)
        server.faults = [fault, fault]
        assert lm.generate_until(prompts("go on")) == ["ON"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ((500, b"out of memory"), "gave no answer in 4 tries; the last: 500 Internal Server Error: out of memory"),
        (None, "gave no answer in 4 tries; the last: RemoteProtocolError"),
        ((200, b"<html>hello</html>"), "answered no JSON but <html>hello</html>"),
        ((200, b'{"error": {"message": "overloaded"}}'), 'answered without choices: {"message": "overloaded"}'),
        ((200, b'{"choices": []}'), "answered without choices"),
        ((400, b"the prompt is too long"), "refused a prompt: 400 Bad Request: the prompt is too long"),
    ],
    ids=["fails", "disconnects", "no JSON", "error body", "no choices", "refuses"],
)
def test_a_failing_server_is_an_error_with_its_own_words(fault: Any, words: str) -> None:
    with serving(Server()) as server:
        lm = served(server)
        server.faults = [fault] * 8
        with pytest.raises(RunFailed) as found:
            lm.generate_until(prompts("go on"))
    assert words in found.value.message


def test_a_server_that_is_not_there_is_an_error() -> None:
    with serving(Server()) as server:
        pass
    with pytest.raises(RunFailed, match="Connection refused"):
        served(server)


def test_an_unknown_model_name_is_answered_with_the_names_that_are_served() -> None:
    with serving(Server()) as server, pytest.raises(BadInput) as found:
        served(server, model="other")
    assert "no model other" in found.value.message
    assert found.value.next_step == "name a model that it serves with --served LABEL=NAME; it serves m"


def test_after_a_failure_only_the_missing_answers_are_asked_again(tmp_path: Path) -> None:
    texts = [f"w{number}" for number in range(6)]
    with serving(Server(texts_only=True, fails_at="w3")) as server:
        first = RememberingLM(ResponseStore(tmp_path / "a.jsonl"), lambda: served(server, concurrent=1), Tokens(), "m", 1)
        with pytest.raises(RunFailed, match="the GPU is on fire"):
            first.generate_until(prompts(*texts))
        server.fails_at = None
        server.seen.clear()
        again = RememberingLM(ResponseStore(tmp_path / "a.jsonl"), lambda: served(server, concurrent=1), Tokens(), "m", 1)
        assert again.generate_until(prompts(*texts)) == [text.upper() for text in texts]
        assert [body["prompt"] for body in server.seen if "stop" in body] == ["w3", "w4", "w5"]


def test_a_key_travels_only_in_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with serving(Server()) as server:
        served(server).generate_until(prompts("go on"))
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
        assert "secret" not in str(server.seen)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://h:1/v1", "http://h:1/v1/completions"),
        ("http://h:1/v1/", "http://h:1/v1/completions"),
        ("http://h:1/v1/completions", "http://h:1/v1/completions"),
        ("https://h/v1/chat/completions", "https://h/v1/chat/completions"),
    ],
)
def test_a_base_url_and_the_full_one_name_the_same_endpoint(given: str, url: str) -> None:
    assert endpoint_url(given) == url


def test_what_is_no_url_is_bad_input() -> None:
    with pytest.raises(BadInput, match="'localhost:8000' is no http"):
        endpoint_url("localhost:8000")


@pytest.mark.parametrize("given", ["http://me:swordfish@h:1/v1", "http://h:1/v1?api_key=swordfish", "ftp://me:swordfish@h"])
def test_an_endpoint_with_a_secret_in_its_address_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(BadInput) as refused:
        endpoint_url(given)
    assert "swordfish" not in str(refused.value)


@pytest.mark.parametrize("answer", [(401, b'{"error": "wrong key: KEY"}'), (200, b'{"error": {"message": "wrong key: KEY"}}')])
def test_a_key_that_a_server_repeats_is_not_told(answer: tuple[int, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    key = "my-own-secret-key"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving(Server(faults=[(answer[0], answer[1].replace(b"KEY", key.encode()))] * 2)) as server:
        with pytest.raises((BadInput, RunFailed)) as failed:
            Endpoint(endpoint_url(server.url), "m", wait_s=0.0, tries=1).greet()
        assert server.headers[0]["Authorization"] == f"Bearer {key}"
    assert "wrong key: [secret]" in str(failed.value)


@pytest.mark.parametrize("suite", ["perplexity", "general", "choice.jsonl"])
@pytest.mark.parametrize(("path", "why"), [("", "refuses to echo"), ("/chat/completions", "a chat endpoint has none")])
def test_suites_that_need_likelihoods_are_refused_before_a_job_starts(suite: str, path: str, why: str, tmp_path: Path) -> None:
    line = '{"prompt": "2 + 2", "choices": ["4", "5"], "expected": "4"}'
    (tmp_path / "choice.jsonl").write_text(line, encoding="utf-8")
    found = find_suite(str(tmp_path / suite) if suite.endswith(".jsonl") else suite)
    with serving(Server(echoes=False)) as server:
        with pytest.raises(Unsupported, match=why) as refused:
            require_served(server.url + path, ["merged"], {"merged": "m"}, [found])
        assert found.title in refused.value.message
        require_served(server.url + path, ["merged"], {"merged": "m"}, [find_suite("task_api_tools"), find_suite("persona")])
    with serving(Server()) as able:
        require_served(able.url, ["merged"], {"merged": "m"}, [found])


def test_a_model_that_the_server_has_not_is_refused_before_a_job_starts() -> None:
    with serving(Server()) as server, pytest.raises(BadInput, match="refuses the model 'base'"):
        require_served(server.url, ["merged", "base"], {"merged": "m"}, [find_suite("task_api_tools")])


def test_where_nothing_answers_no_job_starts() -> None:
    with serving(Server()) as server:
        pass
    with pytest.raises(BadInput, match="gave no answer in 2 tries"):
        require_served(server.url, ["merged"], {}, [find_suite("task_api_tools")])
