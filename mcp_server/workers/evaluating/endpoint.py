"""An OpenAI-compatible server as a language model of lm-eval: what its `local-completions` and `local-chat-completions` do.

Written here because those need one more package, send prompts in lists that some servers refuse, and drop what a server says
when it refuses. Requests and arithmetic are theirs: greedy, `max_tokens`, `stop`; likelihoods from `echo` with `logprobs`.
Prompts are token ids where the server takes them (those of a local model: no second <bos>), else text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

from lm_eval import utils
from lm_eval.api.model import TemplateLM

from mcp_server.errors import BadInput, RunFailed
from mcp_server.formats.refs import resolve_ref
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.evaluate.served import CHAT, SAMPLE, Endpoint, Refused, echo, endpoint_url
from mcp_server.workers.evaluating import models as loading
from mcp_server.workers.evaluating.harness import WINDOW_TOKENS
from mcp_server.workers.evaluating.local import Opened
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore, as_chat, messages_of

STOPS: Final = 4
"""Stop strings that the OpenAI API takes; the answer is cut at every one of them here as well."""


class ServedLM(TemplateLM):
    """lm-eval's view of one served model. What the server can do is asked before the first prompt of each kind."""

    def __init__(self, endpoint: Endpoint, tokenizer: Any, window_tokens: int, concurrent: int) -> None:
        super().__init__()
        self.endpoint, self.tokenizer = endpoint, tokenizer
        self.batch_size_per_gpu = concurrent
        self._concurrent, self._window = concurrent, window_tokens
        self._takes_ids = False
        self._scores = False
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
        if self.endpoint.chat:
            messages = messages_of(prompt) or [{"role": "user", "content": prompt}]
            message = self.endpoint.first_choice(request | {"messages": messages}).get("message") or {}
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
        found = self.endpoint.first_choice(echo(self._prompt(tokens, None)))["logprobs"]
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

    def _prompt(self, tokens: Sequence[int], text: str | None) -> list[int] | str:
        if self._takes_ids:
            return list(tokens)
        return text if text is not None else str(self.tokenizer.decode(list(tokens)))

    def _try_out(self) -> None:
        """Which forms the server takes. Raises `BadInput` with its words when it takes none."""
        if not self.endpoint.chat:
            try:
                self.endpoint.first_choice({"prompt": self.tok_encode(SAMPLE), "max_tokens": 1, "temperature": 0})
                self._takes_ids = True
            except Refused:
                self.endpoint.greet()
        else:
            self.endpoint.greet()

    def _require_scores(self) -> None:
        """Ask once whether prompts come back with log-probabilities. Raises `Unsupported` where they do not."""
        if not self._scores:
            self.endpoint.require_scores()
            self._scores = True


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
        return as_chat(chat_history)
