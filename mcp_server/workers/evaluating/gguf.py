"""A GGUF file in llama.cpp, in this process: what will be deployed, with its own tokenizer and chat template.

Replies are greedy. Suites are given no likelihoods: those of a short text are had token by token (`likelihood_of`), which takes
as long as writing it. Not covered: images, tools, adapters as GGUF.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import DoesNotFit, RunFailed, Unsupported
from mcp_server.formats.gguf import gguf_files, read_gguf
from mcp_server.steps.evaluate.known import LLAMA_CPP, answers_file
from mcp_server.system.hashes import file_sha256
from mcp_server.system.machine import available_bytes, gib
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore, as_chat, messages_of

CONTEXT_TOKENS: Final = 4096
OVERHEAD_BYTES: Final = 1_000_000_000
"""Context and work buffers beside the file's weights."""
NO_SCORES: Final = "llama.cpp tells no likelihoods of a prompt"


@dataclass(frozen=True)
class OwnTemplate:
    """Stands for a tokenizer where only the question is asked whether there is a chat template."""

    chat_template: str


def server_of(file: Path, *, context: int, threads: int | None, adapter: Path | None = None) -> Any:
    """llama.cpp with the model loaded. Raises `DoesNotFit` where the weights do not fit, `RunFailed` with its words."""
    import xllamacpp

    need, have = sum(part.stat().st_size for part in gguf_files(file)) + OVERHEAD_BYTES, available_bytes()
    if have is not None and need > have:
        raise DoesNotFit(f"loading {file.name} needs about {gib(need)}, {gib(have)} are available")
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx = context
    params.warmup = False
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE  # all that the model wrote
    params.api_keys = [secrets.token_hex(16)]  # it listens on loopback while it runs
    for cpu in (params.cpuparams, params.cpuparams_batch):
        cpu.n_threads = threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else "x")
        cpu.poll = 0  # a busy machine must not spin at barriers
    if adapter is not None:
        lora = xllamacpp.CommonAdapterLoraInfo()
        lora.path, lora.scale = str(adapter), 1.0
        params.lora_adapters = [lora]
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailed(f"llama.cpp does not load {file}: {error}", "export the model again, or update xllamacpp") from error


def likelihood_of(server: Any, tokens: list[int]) -> float | None:
    """The sum of the log-likelihoods of all tokens after the first; None where llama.cpp wrote others.

    A grammar of these tokens alone leaves nothing else to write, and llama.cpp tells of each what the model gave it before the
    grammar spoke. It takes as long as writing them: one pass of the model a token.
    """
    grammar = "root ::= " + " ".join(f"<[{token}]>" for token in tokens[1:])
    asked = {"max_tokens": len(tokens) - 1, "temperature": 0.0, "repeat_penalty": 1.0, "logprobs": 1, "grammar": grammar}
    try:
        answer = server.handle_completions({"prompt": tokens[:1], **asked})
        told = answer["choices"][0]["logprobs"]["content"]
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError):
        return None
    return float(sum(one["logprob"] for one in told)) if [one["id"] for one in told] == tokens[1:] else None


def gguf_model(file: Path, threads: int | None) -> tuple[RememberingLM, str, str]:
    """(the model, opened and not loaded; what it runs in; the SHA-256 of its files, joined)."""
    metadata = read_gguf(file).metadata
    digest = hashlib.sha256("".join(file_sha256(part, remembered=False) for part in gguf_files(file)).encode()).hexdigest()
    ran_in = f"llama.cpp (xllamacpp {version('xllamacpp')})"
    trained = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    context = min(int(trained), CONTEXT_TOKENS) if isinstance(trained, int) and trained > 0 else CONTEXT_TOKENS
    store = ResponseStore(answers_file(digest, f"{LLAMA_CPP}-{version('xllamacpp')}-{context}"))
    template = OwnTemplate(str(metadata.get("tokenizer.chat_template") or ""))
    return GgufLM(store, partial(LlamaCpp, file, context, threads), template, file.name, 1), ran_in, digest


class GgufLM(RememberingLM):
    """Hands messages on as they are, for llama.cpp to format."""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:  # noqa: ARG002
        if not self.tokenizer.chat_template:
            raise Unsupported(f"{self._name} has no chat template", "measure it on suites of plain text, or export it with one")
        return as_chat(chat_history)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        if not self.unscored_ok:
            raise Unsupported(NO_SCORES, "name suites that are measured by replies (model-merging suites)")
        self.unscored = NO_SCORES
        return [(float("nan"), False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:  # noqa: ARG002
        raise Unsupported(NO_SCORES, "name suites that are measured by replies (model-merging suites)")

    def _tokens_in(self, answer: str) -> int:
        return int(self._inner.counted[answer]) if self._inner is not None else 0


class LlamaCpp:
    """The model in memory; what `RememberingLM` asks of an lm-eval model."""

    def __init__(self, file: Path, context: int, threads: int | None) -> None:
        self.file = file
        self.server = server_of(file, context=context, threads=threads)
        self.counted: dict[str, int] = {}
        """Reply → tokens that were generated for it."""
        self.batch_size_per_gpu = 1
        self.draft: Any = None
        self.cache_hook: Any = None

    def set_cache_hook(self, hook: Any) -> None:
        self.cache_hook = hook

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:  # noqa: ARG002
        replies = []
        for request in requests:
            prompt, settings = request.args
            replies.append(self._reply(prompt, settings))
            self.cache_hook.add_partial("generate_until", request.args, replies[-1])
        return replies

    def _reply(self, prompt: str, settings: dict[str, Any]) -> str:
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
        asked = {
            "max_tokens": settings.get("max_gen_toks", 256), "temperature": 0.0, "repeat_penalty": 1.0, "stop": stops,
        }  # fmt: skip
        try:
            if (messages := messages_of(prompt)) is not None:
                answer = self.server.handle_chat_completions({"messages": messages, **asked})
                text = answer["choices"][0]["message"].get("content") or ""
            else:
                answer = self.server.handle_completions({"prompt": prompt, **asked})
                text = answer["choices"][0]["text"]
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
            raise RunFailed(
                f"llama.cpp answered no prompt of {len(prompt)} characters with {self.file.name}: {str(error)[:300]}",
                f"prompts and replies together may have {CONTEXT_TOKENS} tokens; leave longer ones out",
            ) from error
        for stop in stops:
            text = text.partition(stop)[0]
        self.counted[text] = int(answer.get("usage", {}).get("completion_tokens") or 0)
        return str(text)
