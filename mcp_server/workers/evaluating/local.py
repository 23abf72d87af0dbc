"""Models that run in this process, on transformers."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mcp_server.formats.content import content_hash
from mcp_server.steps.evaluate.exports import is_gguf
from mcp_server.steps.evaluate.known import answers_file
from mcp_server.workers.evaluating import models as loading
from mcp_server.workers.evaluating.gguf import gguf_model
from mcp_server.workers.evaluating.harness import WINDOW_TOKENS
from mcp_server.workers.evaluating.responses import RememberingLM, ResponseStore


@dataclass
class Opened:
    """A model ready to answer; `release` gives its memory back before the next one is loaded."""

    model: RememberingLM
    numerics: str
    content: str | None = None
    """SHA-256 of the model's files; null: they are not here."""
    held: str = ""
    """How its weights are held: a dtype, or `int8` or `int4`."""

    def release(self) -> None:
        self.model.release()
        gc.collect()


def local_models(refs: Mapping[str, str], dtype: str, batch_size: int, threads: int | None) -> dict[str, Opened]:
    """Open every ref by label without loading weights. An adapter alone is folded into the base of the group."""
    found = {label: loading.find_model(ref, refs.get("base")) for label, ref in refs.items() if not is_gguf(ref)}
    chosen = loading.choose_held(found.values(), dtype)
    numerics = f"{chosen}-{_device()}-w{WINDOW_TOKENS}"
    opened = {}
    for label, ref in found.items():
        tokenizer = loading.load_tokenizer(_tokenizer_folder(ref))
        digest = content_hash(ref.folder, ref.adapter)
        store = ResponseStore(answers_file(digest, numerics))
        load_it = partial(load, ref, chosen, threads, tokenizer, batch_size)
        model = RememberingLM(store, load_it, tokenizer, str(ref), batch_size)
        opened[label] = Opened(model, f"{numerics}, batch {batch_size}", digest, chosen)
    for label in [label for label, ref in refs.items() if is_gguf(ref)]:
        model, ran_in, digest = gguf_model(Path(refs[label]), threads)
        opened[label] = Opened(model, ran_in, digest, "gguf")
    return {label: opened[label] for label in refs}


def _tokenizer_folder(ref: loading.ModelRef) -> Any:
    """The adapter's own tokenizer when it brings one (a changed chat template), else the base's."""
    if ref.adapter is not None and (ref.adapter / "tokenizer_config.json").is_file():
        return ref.adapter
    return ref.folder


def load(ref: loading.ModelRef, dtype: str, threads: int | None, tokenizer: Any, batch_size: int) -> Any:
    """The weights, as a model of lm-eval. Raises `DoesNotFit`."""
    from mcp_server.workers.evaluating.generation import DraftingLM

    loading.check_fits(ref, dtype)
    loading.use_threads(threads)
    return DraftingLM(
        pretrained=loading.load_model(ref, dtype),
        tokenizer=tokenizer,
        batch_size=batch_size,
        max_length=_window(ref),
        softmax_dtype="float32",  # bf16 log-likelihoods of a passage are rounded to whole nats
        backend="causal",
    )


def _window(ref: loading.ModelRef) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(ref.folder), local_files_only=True)
    return min(int(getattr(config, "max_position_embeddings", WINDOW_TOKENS)), WINDOW_TOKENS)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
