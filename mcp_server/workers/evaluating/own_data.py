"""People's own prompts on one model: asked as a task of lm-eval would, scored by `steps/evaluate/matching.py`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mcp_server.errors import Malformed
from mcp_server.formats.own_data import Example, Message, Split, of_split, read_data
from mcp_server.formats.suites import Suite
from mcp_server.steps.evaluate.line_up import OTHER_SPLIT
from mcp_server.steps.evaluate.matching import matches
from mcp_server.steps.evaluate.samples import Metric, SuiteSamples
from mcp_server.workers.evaluating.responses import RememberingLM


@dataclass(frozen=True)
class Asked:
    """What `RememberingLM` takes of lm-eval's instances: the arguments, and in `doc` the expected reply where one is known."""

    args: tuple[Any, ...]
    doc: dict[str, str] = field(default_factory=dict)


def examples_of(suite: Suite, split: Split | None, limit: int | None) -> list[Example]:
    """The examples that are measured. Raises `Malformed` when the file has none in the split."""
    if suite.data is None:
        raise ValueError(f"{suite.name} is no data file")
    found = of_split(read_data(Path(suite.data)), split)
    if not found:
        raise Malformed(f"{suite.data} has no line in the {split} split", OTHER_SPLIT)
    return found[:limit]


def run_examples(suite: Suite, examples: Sequence[Example], model: RememberingLM) -> SuiteSamples:
    """Every example on one model: 1 where the reply matches, else 0."""
    written = [example for example in examples if example.match != "choice"]
    replies = dict(zip((e.id for e in written), _replies(written, model), strict=True))
    chosen = _choices([example for example in examples if example.match == "choice"], model)
    values = [float(chosen[e.id] == e.chosen) if e.match == "choice" else float(matches(replies[e.id], e)) for e in examples]
    return SuiteSamples(
        suite=suite.name,
        metric="match",
        higher_is_better=True,
        metrics={"match": Metric(kind="mean", values=values)},
        prompt_ids=[hashlib.sha256(example.model_dump_json().encode()).hexdigest()[:16] for example in examples],
        replies=[replies[e.id] if e.id in replies else e.choices[chosen[e.id]] for e in examples],
        prompts=["\n".join(message.content for message in e.messages) for e in examples],
        expected=[e.choices[e.chosen] if e.match == "choice" else " | ".join(e.expected) for e in examples],
    )


def _replies(examples: Sequence[Example], model: RememberingLM) -> list[str]:
    if not examples:
        return []
    return model.generate_until([_asked(e, model) for e in examples])


def _asked(example: Example, model: RememberingLM) -> Asked:
    settings = {"until": example.stop, "max_gen_toks": example.max_tokens, "do_sample": False}
    literal = example.match in ("exact", "json") and example.expected
    return Asked((prompt_text(example.messages, model), settings), {"reply": example.expected[0]} if literal else {})


def _choices(examples: Sequence[Example], model: RememberingLM) -> dict[str, int]:
    """id → index of the choice with the highest log-likelihood per byte, so that length does not decide."""
    asked = [(e, choice) for e in examples for choice in e.choices]
    if not asked:
        return {}
    space = "" if model.tokenizer.chat_template else " "
    scores = model.loglikelihood([Asked((prompt_text(e.messages, model), space + choice)) for e, choice in asked])
    best: dict[str, tuple[float, int]] = {}
    for (example, choice), (score, _) in zip(asked, scores, strict=True):
        index = example.choices.index(choice)
        per_byte = score / max(len(choice.encode()), 1)
        if example.id not in best or per_byte > best[example.id][0]:
            best[example.id] = (per_byte, index)
    return {name: index for name, (_, index) in best.items()}


def prompt_text(messages: Sequence[Message], model: RememberingLM) -> str:
    """Through the chat template where the model has one. Without one the texts stand below each other as they are."""
    if model.tokenizer.chat_template:
        return model.apply_chat_template([message.model_dump() for message in messages])
    return "\n".join(message.content for message in messages)
