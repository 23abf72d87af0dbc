"""Models that run elsewhere, behind an OpenAI-compatible endpoint (vLLM, llama.cpp server, TGI), through lm-eval's own client.

Prompts are formatted here with the model's chat template and sent to `/v1/completions`, so that they are the same bytes as
for a local model. Suites that compare likelihoods need an endpoint that echoes log-probabilities (vLLM does; chat endpoints
do not). Answers are remembered in the job folder only: a name at an endpoint does not say which weights answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mcp_server.core.errors import BadInput
from mcp_server.core.refs import resolve_ref
from mcp_server.workers.evaluating import models as loading
from mcp_server.workers.evaluating.local import Opened
from mcp_server.workers.evaluating.request import Request
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore


def served_models(request: Request, refs: Mapping[str, str], folder: Path) -> dict[str, Opened]:
    """One client per label; `served` names the model at the endpoint, else the label does. Raises `BadInput` without endpoint."""
    if not request.endpoint:
        raise BadInput(
            "backend=openai needs an endpoint", "give its completions URL, such as http://localhost:8000/v1/completions"
        )
    if not request.endpoint.startswith(("http://", "https://")):
        raise BadInput(
            f"the endpoint {request.endpoint!r} is no http(s) URL", "give one such as http://localhost:8000/v1/completions"
        )
    tokenizer_ref = request.tokenizer or refs.get("base") or next(iter(refs.values()))
    tokenizer_folder = Path(resolve_ref(tokenizer_ref.partition("+")[0], Path.cwd()))
    tokenizer = loading.load_tokenizer(tokenizer_folder)
    opened = {}
    for label in refs:
        name = request.served.get(label, label)
        store = ResponseStore(folder / "responses" / f"{label}.jsonl")
        load = partial(_client, request.endpoint, name, str(tokenizer_folder), request.batch_size)
        model = RememberingLM(store, load, tokenizer, name, request.batch_size)
        opened[label] = Opened(model, f"endpoint, batch {request.batch_size}")
    return opened


def _client(endpoint: str, name: str, tokenizer: str, batch_size: int) -> Any:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    return LocalCompletionsAPI(
        base_url=endpoint,
        model=name,
        tokenizer=tokenizer,
        tokenizer_backend="huggingface",
        tokenized_requests=False,
        batch_size=batch_size,
        num_concurrent=1,
        max_retries=3,
    )
