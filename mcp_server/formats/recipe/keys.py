"""The keys that mergekit reads at each level. It ignores every other key without a word, so this is what a typo is held against.

Source: mergekit 0.1.5, the fields of `MergeConfiguration` and its parts, `TokenizerConfig` and `MoEMergeConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

TOP: Final = (
    "merge_method", "base_model", "models", "slices", "modules", "parameters",
    "dtype", "out_dtype", "tokenizer", "tokenizer_source", "chat_template",
)  # fmt: skip
STAGE: Final = (*TOP, "name")
INPUT: Final = ("model", "parameters")
SLICE_INPUT: Final = ("model", "layer_range", "parameters")
SLICE: Final = ("sources", "base_model", "parameters")
"""mergekit also takes `residual_weight` here and does nothing with it."""
MODULE: Final = ("models", "slices", "parameters")
FILTER: Final = ("value", "filter")
TOKENIZER: Final = ("source", "tokens", "pad_to_multiple_of")
TOKEN: Final = ("source", "force")
MOE: Final = ("base_model", "experts", "gate_mode", "dtype", "experts_per_token", "shared_experts", "architecture")
EXPERT: Final = ("source_model", "positive_prompts", "negative_prompts", "noise_scale", "residual_scale")

DTYPES: Final = ("bfloat16", "float16", "float32", "float64")
GATE_MODES: Final = ("hidden", "cheap_embed", "random", "uniform_random")
CHAT_TEMPLATES: Final = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")


OWN: Final = "x-"
"""Keys with this prefix belong to the author: a home for YAML anchors."""
Level = Literal["top", "input", "slice", "module", "parameters", "filter", "tokenizer", "token", "expert"]
Path = tuple[Any, ...]
"""Keys and positions that lead to a value; keys are as YAML read them."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: where it is, what it holds, and the keys that mergekit reads in it. `parameters` are open: methods name them."""

    path: Path
    level: Level
    known: Sequence[str]
    content: dict[Any, Any]
    homes: frozenset[str] = frozenset()

    def unread(self) -> Iterator[str]:
        """Its keys that mergekit ignores, in the order of the text, without those that are there for their anchors."""
        if self.level != "parameters":
            for name in map(str, self.content):
                if name not in self.known and not name.startswith(OWN) and name not in self.homes:
                    yield name


def dotted(path: Sequence[Any]) -> str:
    """A path as messages show it: models[0].parameters.weight."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def tables(document: Any, *, mixture: bool = False, homes: frozenset[str] = frozenset()) -> Iterator[Table]:
    """Every table of one document at its place; what has another form there is left to `parse`, which refuses it.

    `homes`: keys at the top that hold what others take up by an alias.
    """
    if mixture:
        yield from _table((), document, "top", (*MOE, "merge_method"), homes)
        for name in ("experts", "shared_experts"):
            for number, entry in _entries(document, name):
                yield from _table((name, number), entry, "expert", EXPERT)
        return
    yield from _table((), document, "top", STAGE, homes)
    yield from _parameters((), document)
    yield from _inputs((), document)
    for name, module in _content(_content(document).get("modules")).items():
        yield from _table(("modules", name), module, "module", MODULE)
        yield from _parameters(("modules", name), module)
        yield from _inputs(("modules", name), module)
    tokenizer = _content(document).get("tokenizer")
    yield from _table(("tokenizer",), tokenizer, "tokenizer", TOKENIZER)
    for token, entry in _content(_content(tokenizer).get("tokens")).items():
        yield from _table(("tokenizer", "tokens", token), entry, "token", TOKEN)


def _inputs(path: Path, holder: Any) -> Iterator[Table]:
    for number, entry in _entries(holder, "models"):
        at = (*path, "models", number)
        yield from _table(at, entry, "input", INPUT)
        yield from _parameters(at, entry)
    for number, slice_ in _entries(holder, "slices"):
        at = (*path, "slices", number)
        yield from _table(at, slice_, "slice", SLICE)
        yield from _parameters(at, slice_)
        for inner, source in _entries(slice_, "sources"):
            place = (*at, "sources", inner)
            yield from _table(place, source, "input", SLICE_INPUT)
            yield from _parameters(place, source)


def _parameters(path: Path, holder: Any) -> Iterator[Table]:
    at = (*path, "parameters")
    parameters = _content(holder).get("parameters")
    yield from _table(at, parameters, "parameters", ())
    for name, setting in _content(parameters).items():
        for place, entry in enumerate(setting) if isinstance(setting, list) else ():
            yield from _table((*at, name, place), entry, "filter", FILTER)
        yield from _table((*at, name), setting, "filter", FILTER)


def _table(path: Path, value: Any, level: Level, known: Sequence[str], homes: frozenset[str] = frozenset()) -> Iterator[Table]:
    if isinstance(value, dict):
        yield Table(path, level, known, value, homes)


def _entries(holder: Any, name: str) -> Iterator[tuple[int, Any]]:
    value = _content(holder).get(name)
    if isinstance(value, list):
        yield from enumerate(value)


def _content(value: Any) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}
