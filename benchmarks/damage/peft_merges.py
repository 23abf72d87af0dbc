"""Adapters of every kind on tiny models of several classes: what PEFT merges, and what is merged here, as verify sees them."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers.pytorch_utils import Conv1D

from benchmarks.matrix import adapters as matrix
from benchmarks.matrix.tiny import classes, tiny
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import MergingError
from mcp_server.steps.verify import verify

TYPES = (
    "llama", "qwen3_moe", "gpt_oss", "mixtral", "gpt2", "bert", "bloom", "gemma3_text", "whisper", "t5", "phi3", "mamba", "llava",
)  # fmt: skip


def plain(kind: Any, **settings: Any) -> Callable[[Any], Any]:
    """Another kind of adapter on two linear layers, that are not the head."""

    def make(model: Any) -> Any:
        ends = {name for name, _ in matrix.ends(model)}
        names = [
            n for n, m in model.named_modules() if type(m) in (torch.nn.Linear, Conv1D) and n not in ends and "expert" not in n
        ]
        return kind(target_modules=names[:4], **settings) if names else None

    return make


def tokens(model: Any) -> Any:
    found = [name for name, module in matrix.ends(model) if isinstance(module, torch.nn.Embedding)]
    return peft.TrainableTokensConfig(target_modules=found[:1], token_indices=[3, 5, 9]) if found else None


KINDS: dict[str, Callable[[Any], Any]] = {name: made for name, made in matrix.KINDS.items() if name != "two"} | {
    "loha": plain(peft.LoHaConfig, r=3, alpha=4),
    "lokr": plain(peft.LoKrConfig, r=3, alpha=4),
    "vera": plain(peft.VeraConfig, r=4),
    "tokens": tokens,
}


@dataclass(frozen=True)
class Seen:
    """The verdicts on PEFT's merge (base and adapter given, no recipe) and on the engine's; '' where there is none."""

    type: str
    kind: str
    theirs: str
    ours: str
    said: str


def all_of(folder: Path, types: tuple[str, ...] = TYPES, kinds: tuple[str, ...] = tuple(KINDS)) -> Iterator[Seen]:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for model_type, name in classes():
        if model_type in types and (model := tiny(model_type, name)) is not None:
            place = folder / model_type
            model.save_pretrained(place / "base")
            model = type(model).from_pretrained(place / "base").eval()
            for kind in kinds:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    if (seen := one(model, model_type, kind, place)) is not None:
                        yield seen
            shutil.rmtree(place)


def one(model: Any, model_type: str, kind: str, place: Path) -> Seen | None:
    """None where the class has nothing of the kind, or PEFT does not make it."""
    adapter, base = place / f"{kind}-adapter", place / "base"
    try:
        adapted = matrix.trained(copy.deepcopy(model), KINDS[kind], 0)
        if adapted is None:
            return None
        adapted.save_pretrained(adapter)
    except Exception:  # noqa: BLE001 - PEFT refuses in its own ways
        return None
    said: list[Any] = []
    theirs = ours = ""
    try:
        adapted.merge_and_unload().save_pretrained(place / f"{kind}-peft")
        found = verify(place / f"{kind}-peft", full=True, base=str(base), sources=[str(adapter)])
        checks = [check for check in found.checks if check.passed is not True and check.name != "provenance"]
        theirs = "verified" if not checks else "failed" if any(check.passed is False for check in checks) else "inconclusive"
        said += [check.model_dump() for check in checks]
    except Exception as error:  # noqa: BLE001 - likewise
        said.append(f"PEFT does not merge it: {error}")
    recipe = matrix.recipe_of(base, [adapter])
    try:
        merge(Request(recipe, place / f"{kind}-ours", place / f"{kind}.journal", threads=1), lambda *_: None)
        found = verify(place / f"{kind}-ours", full=True)
        ours = found.verdict
        said += [check.model_dump() for check in found.checks if check.passed is not True]
    except MergingError as error:
        said.append(error.message)
    return Seen(model_type, kind, theirs, ours, json.dumps(said))
