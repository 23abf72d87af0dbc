"""A language model for lm-eval that remembers every answer by content, and loads its weights only when one is missing.

The store is a file per model content hash and numerics (dtype, window), one JSON line per request, appended as answers arrive. So
a source is measured once, a killed evaluation continues where it stopped, a changed metric re-scores without generating, and a
suite that grows asks only what is new. Answers are greedy, hence repeatable; the batch they were computed in can move a
last digit, which is why the store is never shared between dtypes.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from lm_eval.api.model import LM, CacheHook

from mcp_server.errors import Unsupported
from mcp_server.system.files import own_only, private_folder

Loader = Callable[[], Any]
Told = Callable[[int, int, str], None]
LOGITS_BYTES = 400_000_000
"""Room for one batch's scores: prompts × tokens × vocabulary × 4 bytes, times three copies that lm-eval makes."""


class ResponseStore:
    """Append-only answers of one model. A line torn by a crash is dropped on the next reading."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.answers: dict[str, Any] = {}
        if file is not None and file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            if text and not text.endswith("\n"):
                with file.open("a", encoding="utf-8") as stream:
                    stream.write("\n")
            for line in text.splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue
                self.answers[entry["k"]] = entry["r"]

    def put(self, key: str, answer: Any) -> None:
        if key in self.answers:
            return
        self.answers[key] = answer
        if self.file is not None:
            private_folder(self.file.parent)
            with open(self.file, "a", encoding="utf-8", opener=own_only) as stream:
                stream.write(json.dumps({"k": key, "r": answer}, ensure_ascii=False) + "\n")


def request_key(kind: str, arguments: Any) -> str:
    return hashlib.sha256(json.dumps([kind, *arguments], ensure_ascii=False, sort_keys=True).encode()).hexdigest()


def messages_of(prompt: str) -> list[dict[str, str]] | None:
    """The chat that was handed on as JSON (`as_chat`); None for plain text, even where that is JSON of another shape."""
    if not prompt.startswith('[{"'):
        return None
    try:
        found: list[dict[str, str]] = json.loads(prompt)
    except ValueError:
        return None
    return found if all(isinstance(one, dict) and "role" in one for one in found) else None


def as_chat(messages: list[dict[str, str]]) -> str:
    """Messages as the text of a prompt, for a server that formats them itself."""
    return json.dumps(messages, ensure_ascii=False)


class _Hook(CacheHook):
    """lm-eval calls this for each finished request; that is what makes an interrupted batch run resumable."""

    def __init__(self, owner: RememberingLM) -> None:
        super().__init__(None)
        self.owner = owner

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.owner.answered(attr, req, res)


class RememberingLM(LM):
    """Wraps an lm-eval model that `load` makes on the first request that the store cannot answer."""

    def __init__(self, store: ResponseStore, load: Loader, tokenizer: Any, name: str, batch_size: int) -> None:
        super().__init__()
        self.store = store
        self.tokenizer = tokenizer
        self.generation_seconds = 0.0
        self.load_seconds = 0.0
        self.generated_tokens = 0
        self.asked = 0
        self.computed = 0
        self._load = load
        self._inner: Any = None
        self._name = name
        self._batch_size = batch_size
        self.told: Told = lambda *_: None
        self.drafts: list[ResponseStore] = []
        """Where replies of other models to the same prompts are known, the likeliest first; the expected reply comes last."""
        self.unscored_ok = False
        """Where a backend tells no likelihoods they are NaN, for a suite that says it can do without; else that is an error."""
        self.unscored: str | None = None
        self._stage: tuple[int, int] = (0, 0)

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in chat_history)
            raise Unsupported(
                f"the chat template of {self._name} takes no messages of {roles}: {error}",
                "give your prompts in roles that it takes (often no system, and user and assistant in turn)",
            ) from error

    def chat_template(self, chat_template: bool | str = False) -> str:  # noqa: ARG002 - the name is lm-eval's
        return str(self.tokenizer.chat_template or "")

    def generate_until(self, requests: list[Any]) -> list[str]:
        before = self.computed
        start = time.monotonic()
        answers: list[str] = self._answer("generate_until", requests, self._batch_size)
        if self.computed > before:
            self.generation_seconds += time.monotonic() - start
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        try:
            answers = self._answer("loglikelihood", requests, self._scoring_batch(requests))
        except Unsupported as error:
            if not self.unscored_ok:
                raise
            self.unscored = error.message
            return [(math.nan, False)] * len(requests)
        return [(float(value), bool(greedy)) for value, greedy in answers]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        return [float(value) for value in self._answer("loglikelihood_rolling", requests, self._scoring_batch(requests))]

    def answered(self, kind: str, arguments: Any, answer: Any) -> None:
        key = request_key(kind, arguments)
        if key in self.store.answers:
            return
        self.store.put(key, answer)
        self.computed += 1
        if kind == "generate_until":
            self.generated_tokens += self._tokens_in(answer)
        done, total = self._stage
        self._stage = (done + 1, total)
        self.told(min(done + 1, total), total, kind)

    def _tokens_in(self, answer: str) -> int:
        """That were generated for it, the end of turn among them."""
        return len(self.tokenizer.encode(answer, add_special_tokens=False)) + 1

    def release(self) -> None:
        """Forget the weights; the answers stay."""
        self._inner = None

    def _answer(self, kind: str, requests: list[Any], batch_size: int) -> list[Any]:
        keys = [request_key(kind, request.args) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.store.answers}
        self.asked += len(requests)
        self._stage = (len(requests) - len(missing), len(requests))
        self.told(*self._stage, kind)
        if missing:
            inner = self._model()
            inner.batch_size_per_gpu = batch_size
            inner.draft = self._known_elsewhere
            answers = getattr(inner, kind)(list(missing.values()), disable_tqdm=True)
            for request, answer in zip(missing.values(), answers, strict=True):
                self.answered(kind, request.args, answer)
        return [self.store.answers[key] for key in keys]

    def _known_elsewhere(self, request: Any) -> str | None:
        key = request_key("generate_until", request.args)
        for store in self.drafts:
            if isinstance(reply := store.answers.get(key), str):
                return reply
        doc = getattr(request, "doc", None)
        expected = doc.get("reply") if isinstance(doc, dict) else None
        return expected if isinstance(expected, str) else None

    def _model(self) -> Any:
        if self._inner is None:
            start = time.monotonic()
            self._inner = self._load()
            self._inner.set_cache_hook(_Hook(self))
            self.load_seconds += time.monotonic() - start
            self.generation_seconds -= time.monotonic() - start
        return self._inner

    def _scoring_batch(self, requests: list[Any]) -> int:
        """As many prompts as there is room for, judged by the longest; a token is two characters at least."""
        longest = max((sum(len(part) for part in request.args if isinstance(part, str)) for request in requests), default=1)
        return scoring_batch(min(longest // 2 + 1, 1024), len(self.tokenizer))


def scoring_batch(tokens: int, vocabulary: int) -> int:
    """As many prompts as `LOGITS_BYTES` holds the scores of, of so many scored tokens each."""
    return max(1, min(32, LOGITS_BYTES // (tokens * max(vocabulary, 1) * 4 * 3)))
