"""An OpenAI-compatible server as a language model of lm-eval: what its `local-completions` and `local-chat-completions` do.

Written here because those need one more package, send prompts in lists that some servers refuse, and drop what a server says
when it refuses. Requests and arithmetic are theirs: greedy, `max_tokens`, `stop`; likelihoods from `echo` with `logprobs`.

`/completions`       prompts are token ids where the server takes them (those of a local model: no second <bos>), else text
`/chat/completions`  messages; the server applies its own chat template, and no likelihoods are to be had
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from lm_eval import utils
from lm_eval.api.model import TemplateLM

from mcp_server.errors import BadInput, RunFailed, Unsupported
from mcp_server.formats.refs import resolve_ref
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.workers.evaluating import models as loading
from mcp_server.workers.evaluating.harness import WINDOW_TOKENS
from mcp_server.workers.evaluating.local import Opened
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore

TIMEOUT_S: Final = 300.0
TRIES: Final = 4
WAIT_S: Final = 0.5
"""First pause before asking again; it doubles. A server that restarts in seconds is waited for, one that is gone is not."""
STOPS: Final = 4
"""Stop strings that the OpenAI API takes; the answer is cut at every one of them here as well."""
CHAT: Final = "/chat/completions"
COMPLETIONS: Final = "/completions"


def endpoint_url(given: str) -> str:
    """`http://host:8000/v1` and the full URL of either API both name an endpoint; without one it is the completions API."""
    if not given.startswith(("http://", "https://")):
        raise BadInput(f"the endpoint {given!r} is no http(s) URL", "give one such as http://localhost:8000/v1")
    url = given.rstrip("/")
    return url if url.endswith((COMPLETIONS, CHAT)) else url + COMPLETIONS


class Refused(Exception):
    """The server answered that it will not (4xx): another form of the request may do."""


class Endpoint:
    """One URL and one model name. Asks again where it is busy or away; all else is an error of ours with its words."""

    def __init__(self, url: str, model: str, *, timeout_s: float = TIMEOUT_S, wait_s: float = WAIT_S) -> None:
        self.url, self.model = url, model
        self._timeout_s, self._wait_s = timeout_s, wait_s
        key = os.environ.get("OPENAI_API_KEY")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def first_choice(self, request: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the answer. Raises `Refused` on 4xx, `RunFailed` when no use can be made of the server."""
        answer = self._ask({"model": self.model, **request})
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            said = json.dumps(answer.get("error", answer), ensure_ascii=False)
            raise RunFailed(f"{self.url} answered without choices: {said[:300]}", self._next())
        return choices[0]

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(self.url, json.dumps(body).encode(), self._headers, method="POST")
        said = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(self._wait_s * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                    return _table(response.read(), self.url)
            except urllib.error.HTTPError as error:
                said = f"{error.code} {error.reason}: {_words(error.read())}"
                if error.code < 500 and error.code not in (408, 425, 429):
                    raise Refused(said) from error
            except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                said = f"{type(error).__name__}: {getattr(error, 'reason', error)}"
        raise RunFailed(f"{self.url} gave no answer in {TRIES} tries; the last: {said}", self._next())

    def _next(self) -> str:
        return "see that the server runs and what its log says, then resume the job: answers that arrived are kept"


class ServedLM(TemplateLM):
    """lm-eval's view of one served model. What the server can do is asked before the first prompt of each kind."""

    def __init__(self, endpoint: Endpoint, tokenizer: Any, window_tokens: int, concurrent: int) -> None:
        super().__init__()
        self.endpoint, self.tokenizer = endpoint, tokenizer
        self.batch_size_per_gpu = concurrent
        self._concurrent, self._window = concurrent, window_tokens
        self._chat = endpoint.url.endswith(CHAT)
        self._takes_ids = False
        self._no_scores: str | None = "a chat endpoint has none" if self._chat else ""
        """Why it tells no likelihoods; null: it does; empty: not asked yet."""
        self._try_out()

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        begin = self.tokenizer.bos_token_id
        return int(begin if begin is not None else self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return list(self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)))

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002 - lm-eval's name
        answers = []
        for request, text in zip(requests, self._each(self._generate, [r.args for r in requests]), strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
            answers.append(text)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        self._require_scores()
        answers = []
        for request in requests:
            (text,) = request.args
            windows = utils.get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self._window, 1)
            pairs = [utils.make_disjoint_window(window) for window in windows]
            total = sum(value for value, _ in self._each(self._score, pairs))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            answers.append(total)
        return answers

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        self._require_scores()
        answers = []
        pairs = [(context, continuation) for _, context, continuation in requests]
        for (key, _, _), found in zip(requests, self._each(self._score, pairs), strict=True):
            self.cache_hook.add_partial("loglikelihood", key, found)
            answers.append(found)
        return answers

    def _each(self, ask: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Answers in order, `concurrent` requests under way; after the first failure nothing more is asked."""
        pool = ThreadPoolExecutor(self._concurrent)
        try:
            yield from pool.map(lambda found: self._asked(ask, found), arguments)
        finally:
            pool.shutdown(cancel_futures=True)

    def _asked(self, ask: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        try:
            return ask(*arguments)
        except Refused as error:
            raise RunFailed(f"{self.endpoint.url} refused a prompt: {error}", "see its log for the limit that was met") from error

    def _generate(self, prompt: str, settings: dict[str, Any]) -> str:
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        request = {"max_tokens": settings.get("max_gen_toks", 256), "temperature": 0, "stop": stops[:STOPS]}
        if self._chat:
            message = self.endpoint.first_choice(request | {"messages": _messages(prompt)}).get("message") or {}
            text = message.get("content") or ""
        else:
            text = (
                self.endpoint.first_choice(request | {"prompt": self._prompt(self.tok_encode(prompt), prompt)}).get("text") or ""
            )
        for stop in stops:
            text = text.partition(stop)[0] if stop else text
        return str(text)

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """(log-likelihood of the continuation, whether greedy decoding would have written it)."""
        keep = self._window + 1
        tokens = [*context, *continuation][-keep:]
        found = self.endpoint.first_choice(self._echo(tokens))["logprobs"]
        echoed = len(found["token_logprobs"]) - 1 - len(tokens)
        if echoed not in (0, 1):
            raise BadInput(
                f"{self.endpoint.url} reads {len(tokens)} tokens as {len(found['token_logprobs']) - 1}; its tokenizer is another",
                "give the served model's own tokenizer with --tokenizer",
            )
        span = slice(len(tokens) + echoed - len(continuation), len(tokens) + echoed)
        values = [float(value) for value in found["token_logprobs"][span]]
        best = [max(top.values()) for top in found["top_logprobs"][span]]
        return sum(values), all(value >= top for value, top in zip(values, best, strict=True))

    def _echo(self, tokens: Sequence[int]) -> dict[str, Any]:
        prompt = self._prompt(tokens, None)
        return {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}

    def _prompt(self, tokens: Sequence[int], text: str | None) -> list[int] | str:
        if self._takes_ids:
            return list(tokens)
        return text if text is not None else str(self.tokenizer.decode(list(tokens)))

    def _try_out(self) -> None:
        """Which forms the server takes. Raises `BadInput` with its words when it takes none."""
        tokens = self.tok_encode("One, two, three")
        try:
            if self._chat:
                self.endpoint.first_choice({"messages": _messages("Hello"), "max_tokens": 1, "temperature": 0})
                return
            try:
                self.endpoint.first_choice({"prompt": tokens, "max_tokens": 1, "temperature": 0})
                self._takes_ids = True
            except Refused:
                self.endpoint.first_choice({"prompt": "One, two, three", "max_tokens": 1, "temperature": 0})
        except Refused as error:
            raise BadInput(
                f"{self.endpoint.url} refuses the model {self.endpoint.model!r}: {error}",
                f"name a model that it serves with --served LABEL=NAME{_served(self.endpoint.url)}",
            ) from error

    def _require_scores(self) -> None:
        """Ask once whether prompts come back with log-probabilities. Raises `Unsupported` where they do not."""
        if self._no_scores == "":
            self._no_scores = self._why_no_scores()
        if self._no_scores:
            raise Unsupported(
                f"{self.endpoint.url} tells no log-probabilities of a prompt: {self._no_scores}",
                "leave out suites that compare likelihoods (perplexity, general), or serve the model where `echo` and "
                "`logprobs` work on /v1/completions (vLLM does)",
            )

    def _why_no_scores(self) -> str | None:
        tokens = self.tok_encode("One, two, three")
        try:
            found = self.endpoint.first_choice(self._echo(tokens)).get("logprobs")
        except Refused as error:
            return f"it refuses to echo them ({error})"
        known = isinstance(found, dict) and len(found.get("token_logprobs") or []) >= len(tokens) and found.get("top_logprobs")
        return None if known else "it answers without them"


def _messages(prompt: str) -> list[dict[str, str]]:
    """The chat that was handed on as JSON; anything else is what a user says."""
    if prompt.startswith('[{"'):
        found: list[dict[str, str]] = json.loads(prompt)
        return found
    return [{"role": "user", "content": prompt}]


def _table(raw: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise RunFailed(f"{url} answered no JSON but {_words(raw)}", "check the URL: is it the completions API?") from error
    return found if isinstance(found, dict) else {"error": found}


def _words(raw: bytes) -> str:
    return " ".join(raw.decode("utf-8", "replace").split())[:300]


def _served(url: str) -> str:
    """'; it serves a, b' if the server says so."""
    listing = url.removesuffix(CHAT).removesuffix(COMPLETIONS) + "/models"
    try:
        with urllib.request.urlopen(listing, timeout=10) as response:
            names = [str(entry["id"]) for entry in _table(response.read(), listing)["data"]]
    except (RunFailed, OSError, http.client.HTTPException, KeyError, TypeError):
        return ""
    return f"; it serves {', '.join(names[:10])}" if names else ""


def served_models(request: EvaluateRequest, refs: Mapping[str, str], folder: Path) -> dict[str, Opened]:
    """One client per label; `served` names the model at the endpoint, else the label does. Raises `BadInput` without endpoint."""
    if not request.endpoint:
        raise BadInput("backend=openai needs an endpoint", "give its URL, such as http://localhost:8000/v1")
    url = endpoint_url(request.endpoint)
    kind = ChatLM if url.endswith(CHAT) else RememberingLM
    tokenizer_ref = request.tokenizer or refs.get("base") or next(iter(refs.values()))
    tokenizer_folder = Path(resolve_ref(tokenizer_ref.partition("+")[0], Path.cwd()))
    tokenizer = loading.load_tokenizer(tokenizer_folder)
    opened = {}
    for label in refs:
        name = request.served.get(label, label)
        store = ResponseStore(folder / "responses" / f"{label}.jsonl")
        load = partial(ServedLM, Endpoint(url, name), tokenizer, WINDOW_TOKENS, request.batch_size)
        model = kind(store, load, tokenizer, name, request.batch_size)
        opened[label] = Opened(model, f"endpoint {'chat' if kind is ChatLM else 'completions'}, {request.batch_size} at once")
    return opened


class ChatLM(RememberingLM):
    """Hands the messages on, as JSON; the server formats them."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: ARG002
        return json.dumps(chat_history, ensure_ascii=False)
