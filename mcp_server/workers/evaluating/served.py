"""Models that run elsewhere, behind an OpenAI-compatible endpoint (vLLM, llama.cpp, transformers serve, a hosted one).

For `/v1/completions` prompts are formatted here with the model's chat template, so that they are the same as for a local model; a
`/v1/chat/completions` endpoint gets the messages and applies its own. Answers are remembered in the job folder only: a name at
an endpoint does not say which weights answered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mcp_server.core.errors import BadInput
from mcp_server.core.refs import resolve_ref
from mcp_server.workers.evaluating import models as loading
from mcp_server.workers.evaluating.endpoint import CHAT, Endpoint, ServedLM, endpoint_url
from mcp_server.workers.evaluating.harness import WINDOW_TOKENS
from mcp_server.workers.evaluating.local import Opened
from mcp_server.workers.evaluating.request import Request
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore


def served_models(request: Request, refs: Mapping[str, str], folder: Path) -> dict[str, Opened]:
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
