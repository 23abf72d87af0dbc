"""An OpenAI-compatible server of models: one URL and one model name, asked over HTTP with httpx.

`/completions`       prompts are token ids where the server takes them, else text
`/chat/completions`  messages; the server applies its own chat template, and no likelihoods are to be had
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mcp_server.errors import BadInput, RunFailed, Unsupported
from mcp_server.formats.suites import Suite
from mcp_server.steps.evaluate.listing import needs_likelihoods
from mcp_server.system.redaction import redact, secrets_of

TIMEOUT_S: Final = 300.0
TRIES: Final = 4
WAIT_S: Final = 0.5
"""First pause before asking again; it doubles. A server that restarts in seconds is waited for, one that is gone is not."""
FIRST_TIMEOUT_S: Final = 20.0
"""For the questions before a job starts: somebody waits for the answer."""
CHAT: Final = "/chat/completions"
COMPLETIONS: Final = "/completions"
SAMPLE: Final = "One, two, three"


def endpoint_url(given: str) -> str:
    """`http://host:8000/v1` and the full URL of either API both name an endpoint; without one it is the completions API."""
    shown = redact(given, secrets_of(os.environ))
    if not given.startswith(("http://", "https://")):
        raise BadInput(f"the endpoint {shown!r} is no http(s) URL", "give one such as http://localhost:8000/v1")
    if shown != given:
        raise BadInput(
            f"the endpoint {shown!r} holds a user or a secret, which would stand in the evaluation and its report",
            "leave it out, and give a key in OPENAI_API_KEY",
        )
    url = given.rstrip("/")
    return url if url.endswith((COMPLETIONS, CHAT)) else url + COMPLETIONS


class Refused(Exception):
    """The server answered that it will not (4xx): another form of the request may do."""


class Endpoint:
    """Asks again where the server is busy or away; all else is an error of ours with its words."""

    def __init__(self, url: str, model: str, *, timeout_s: float = TIMEOUT_S, wait_s: float = WAIT_S, tries: int = TRIES) -> None:
        import httpx2 as httpx  # a server that measures nothing there does not load it

        self.url, self.model = url, model
        self.chat = url.endswith(CHAT)
        self._wait_s, self._tries = wait_s, tries
        key = os.environ.get("OPENAI_API_KEY")
        self._client = httpx.Client(timeout=timeout_s, headers={"Authorization": f"Bearer {key}"} if key else {})

    def first_choice(self, request: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the answer. Raises `Refused` on 4xx, `RunFailed` when no use can be made of the server."""
        answer = self._ask({"model": self.model, **request})
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            said = json.dumps(answer.get("error", answer), ensure_ascii=False)
            raise RunFailed(f"{self.url} answered without choices: {_words(said.encode())}", self._next())
        return choices[0]

    def greet(self) -> None:
        """Ask for one token. Raises `BadInput` with the server's words when it does not take the model."""
        prompt = {"messages": [{"role": "user", "content": "Hello"}]} if self.chat else {"prompt": SAMPLE}
        try:
            self.first_choice(prompt | {"max_tokens": 1, "temperature": 0})
        except Refused as error:
            raise BadInput(
                f"{self.url} refuses the model {self.model!r}: {error}",
                f"name a model that it serves with --served LABEL=NAME{self._served()}",
            ) from error

    def require_scores(self) -> None:
        """Raises `Unsupported` where prompts do not come back with log-probabilities."""
        if why := "a chat endpoint has none" if self.chat else self._why_no_scores():
            raise Unsupported(
                f"{self.url} tells no log-probabilities of a prompt: {why}",
                "leave out suites that compare likelihoods (perplexity, general), or serve the model where `echo` and "
                "`logprobs` work on /v1/completions (vLLM does)",
            )

    def _why_no_scores(self) -> str:
        try:
            found = self.first_choice(echo(SAMPLE)).get("logprobs")
        except Refused as error:
            return f"it refuses to echo them ({error})"
        scored = isinstance(found, dict) and len(found.get("token_logprobs") or []) > 2 and found.get("top_logprobs")
        return "" if scored else "it answers without them"

    def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        import httpx2 as httpx

        said = ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(self._wait_s * 2 ** (attempt - 1))
            try:
                response = self._client.post(self.url, json=body)
            except httpx.HTTPError as error:
                said = f"{type(error).__name__}: {error}"
                continue
            if response.is_success:
                return _table(response.content, self.url)
            said = f"{response.status_code} {response.reason_phrase}: {_words(response.content)}"
            if response.status_code < 500 and response.status_code not in (408, 425, 429):
                raise Refused(said)
        raise RunFailed(f"{self.url} gave no answer in {self._tries} tries; the last: {said}", self._next())

    def _served(self) -> str:
        """ "; it serves a, b" if the server says so."""
        import httpx2 as httpx

        listing = self.url.removesuffix(CHAT).removesuffix(COMPLETIONS) + "/models"
        try:
            names = [str(entry["id"]) for entry in _table(self._client.get(listing, timeout=10).content, listing)["data"]]
        except (RunFailed, httpx.HTTPError, KeyError, TypeError):
            return ""
        return f"; it serves {', '.join(names[:10])}" if names else ""

    def _next(self) -> str:
        return "see that the server runs and what its log says, then resume the job: answers that arrived are kept"


def echo(prompt: str | Sequence[int]) -> dict[str, Any]:
    """The request for the log-probabilities of a prompt."""
    return {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}


def require_served(given: str, labels: Sequence[str], served: Mapping[str, str], suites: Sequence[Suite]) -> None:
    """Before a job starts: the server answers, has every model, and tells likelihoods if a suite needs them.

    Raises `BadInput` and its kin.
    """
    needs = [suite.title or suite.name for suite in suites if needs_likelihoods(suite)]
    for label in labels:
        endpoint = Endpoint(endpoint_url(given), served.get(label, label), timeout_s=FIRST_TIMEOUT_S, tries=2)
        try:
            if not (needs and endpoint.chat):
                endpoint.greet()
            if needs:
                endpoint.require_scores()
        except Unsupported as error:
            raise Unsupported(f"{', '.join(needs)}: {error.message}", error.next_step) from error
        except RunFailed as error:
            raise BadInput(error.message, "start the server, or correct the URL; nothing was started here") from error


def _table(raw: bytes, url: str) -> dict[str, Any]:
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise RunFailed(f"{url} answered no JSON but {_words(raw)}", "check the URL: is it the completions API?") from error
    return found if isinstance(found, dict) else {"error": found}


def _words(raw: bytes) -> str:
    """The beginning of what a server says, in which it may repeat the key that it was sent."""
    return redact(" ".join(raw.decode("utf-8", "replace").split()), secrets_of(os.environ))[:300]
