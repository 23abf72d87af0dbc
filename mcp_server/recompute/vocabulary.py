"""Which row of which source stands for each token of a merge whose vocabulary was put together anew: read from the tokenizers.

A token takes the row that each source has for it. Where a source lacks it: the row of the only one that has it, else of the
base, else the mean of those that have it, else zero, or what the recipe's `tokens` says, as in mergekit 0.1.5. Rows of no token
are kept as they lie by this product's engine, and are the mean of the others where a recipe asks for more rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import MergingError
from mcp_server.formats.recipe import ModelRef, Recipe, parse_ref
from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.reading import rows_of
from mcp_server.recompute.sources import Source
from mcp_server.recompute.values import Value

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

Places = tuple[tuple[int, int], ...]
"""(source, row) of which the mean is taken; none of them: zero."""
_MEAN: Final[Places] = ((-1, -1),)
"""The mean of all rows that are something else."""


@dataclass(frozen=True)
class _Model:
    ref: ModelRef
    source: Source
    ids: dict[str, int]
    rows: int


@dataclass(frozen=True)
class Gathered(Value):
    """One source's version of an embedding or head in the order of the output's tokens."""

    others: tuple[Value, ...] = ()
    places: tuple[Places, ...] = ()
    mean: dict[int, Array] = field(default_factory=dict, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.places), *self.stored.shape[1:])

    @property
    def adapted(self) -> bool:
        return any(value.adapted for value in self.others)

    def rows(self, span: tuple[int, int]) -> tuple[Array, Array]:
        import numpy as np

        values = np.zeros((span[1] - span[0], rows_of(self.shape)[1]))
        terms = np.zeros_like(values)
        wanted: dict[int, list[tuple[int, int, float]]] = {}
        for number, places in enumerate(self.places[span[0] : span[1]]):
            if places == _MEAN:
                values[number] = self._mean()
                terms[number] = np.abs(values[number])
                continue
            for which, row in places:
                wanted.setdefault(which, []).append((number, row, 1 / len(places)))
        for which, rows in wanted.items():
            for first, last in _runs(rows):
                part = rows[first:last]
                start = part[0][1]
                read, own = self.others[which].rows((start, start + len(part)))
                numbers, shares = [n for n, _, _ in part], np.array([share for _, _, share in part])[:, None]
                np.add.at(values, numbers, shares * read)
                np.add.at(terms, numbers, shares * own)
        return values, terms

    def _mean(self) -> Array:
        import numpy as np

        if 0 not in self.mean:
            filled = [row for row, places in enumerate(self.places) if places != _MEAN]
            total = np.zeros(rows_of(self.shape)[1])
            for first in range(0, len(filled), 4096):
                part = filled[first : first + 4096]
                values, _ = self.rows((part[0], part[-1] + 1))
                total += values[[row - part[0] for row in part]].sum(axis=0)
            self.mean[0] = total / max(len(filled), 1)
        return self.mean[0]


def _runs(rows: Sequence[tuple[int, int, float]]) -> list[tuple[int, int]]:
    """Stretches in which the wanted rows follow each other, as (first, last) positions."""
    found, start = [], 0
    for n in range(1, len(rows) + 1):
        if n == len(rows) or rows[n][1] != rows[n - 1][1] + 1:
            found.append((start, n))
            start = n
    return found


@dataclass(frozen=True)
class Vocabulary:
    """`out`: the output's tokens by id. `ours`: this product's engine made it."""

    recipe: Recipe
    models: tuple[_Model, ...]
    out: dict[str, int]
    ours: bool

    @property
    def changes(self) -> bool:
        """Whether any source's rows lie otherwise in the output."""
        forced = any(isinstance(entry, dict) and entry.get("force") for entry in self._wanted.values())
        return forced or any(model.ids != self.out for model in self.models) or len({model.rows for model in self.models}) > 1

    def value(self, ref: ModelRef, name: str, rows: int) -> Gathered:
        values = tuple(self._of(model, name) for model in self.models)
        me = next(n for n, model in enumerate(self.models) if model.ref == ref)
        places = tuple(self._places(me, rows)[row] for row in range(rows))
        return Gathered(values[me].stored, values[me].name, values[me].adapter, values, places)

    def _of(self, model: _Model, name: str) -> Value:
        value = model.source.any_rows(name)
        if value is None or value.shape[0] != model.rows or len(value.shape) != 2:
            raise CannotCompute(f"{model.source.label} has no {name} of {model.rows} rows")
        return value

    @cached_property
    def _wanted(self) -> dict[str, Any]:
        wanted = (self.recipe.tokenizer or {}).get("tokens") or {}
        return {str(token): entry for token, entry in wanted.items()} if isinstance(wanted, dict) else {}

    @cached_property
    def _base(self) -> int | None:
        return next((n for n, model in enumerate(self.models) if model.ref == self.recipe.base), None)

    @cached_property
    def _instead(self) -> dict[str, tuple[Places, bool]]:
        """Token → what stands for it where a source lacks it, and whether it does everywhere."""
        found = {}
        for token in self.out:
            having = tuple((n, model.ids[token]) for n, model in enumerate(self.models) if token in model.ids)
            if token in self._wanted:
                entry = self._wanted[token]
                found[token] = (self._named(token, entry), isinstance(entry, dict) and entry.get("force") is True)
            elif len(having) == len(self.models):
                continue
            elif len(having) > 1 and self._base is not None and token in self.models[self._base].ids:
                found[token] = (((self._base, self.models[self._base].ids[token]),), False)
            else:
                found[token] = (having, False)
        return found

    def _named(self, token: str, entry: Any) -> Places:
        source = entry.get("source") if isinstance(entry, dict) else None
        if isinstance(source, dict) and source.get("kind") == "zero":
            return ()
        name = source.get("model") if isinstance(source, dict) and "kind" in source else source
        try:
            ref = parse_ref(name)
            which = next(n for n, model in enumerate(self.models) if model.ref == ref)
        except (MergingError, StopIteration):
            raise CannotCompute(f"the recipe's entry of token {token!r} names no source") from None
        special = source if isinstance(source, dict) else {}
        row = special.get("token_id")
        row = self.models[which].ids.get(str(special.get("token", token))) if row is None else row
        if type(row) is not int or not 0 <= row < self.models[which].rows:
            raise CannotCompute(f"the recipe's entry of token {token!r} names no row")
        return ((which, row),)

    def _places(self, me: int, rows: int) -> list[Places]:
        model, by_row = self.models[me], {row: token for token, row in self.out.items()}
        taken, found = set(model.ids.values()), []
        for row in range(rows):
            token = by_row.get(row)
            if token is None:
                found.append(self._of_no_token(me, row, taken))
                continue
            places, everywhere = self._instead.get(token, ((), False))
            found.append(((me, model.ids[token]),) if token in model.ids and not everywhere else places)
        return found

    def _of_no_token(self, me: int, row: int, taken: set[int]) -> Places:
        """A row of padding: kept by this product, the mean of the others where other tools pad."""
        start = self._base if self._base is not None else 0
        kept: Places = _MEAN
        if row < self.models[me].rows and row not in taken:
            kept = ((me, row),)
        elif row < self.models[start].rows:
            kept = ((start, row),)
        if kept != _MEAN and not self.ours and (self.recipe.tokenizer or {}).get("pad_to_multiple_of"):
            raise CannotCompute("tools differ in what they put into rows that belong to no token")
        return kept


def open_vocabulary(recipe: Recipe, sources: dict[ModelRef, Source], output: Path, *, ours: bool) -> Vocabulary:
    """Raises `CannotCompute` where a tokenizer cannot be read."""
    out = read_tokens(output)
    if out is None:
        raise CannotCompute("the merge has no readable tokenizer.json, by which its rows could be told")
    first = recipe.donor
    known = {ref: _tokens_of(source, ours=ours) for ref, source in sources.items()}
    models = []
    for ref, source in sources.items():
        ids = known[ref] if known[ref] is not None else known.get(first)
        if ids is None or source.embedding is None:
            raise CannotCompute(f"{source.label} has no readable tokenizer.json, by which its rows could be told")
        rows = source.tensors[source.embedding].shape[0]
        models.append(_Model(ref, source, {token: row for token, row in ids.items() if 0 <= row < rows}, rows))
    return Vocabulary(recipe, tuple(models), out, ours)


def _tokens_of(source: Source, *, ours: bool) -> dict[str, int] | None:
    """Of an adapted model mergekit reads the base's tokenizer, this product's engine the adapter's where it has one."""
    if ours and source.adapter is not None and (own := read_tokens(source.adapter.folder)) is not None:
        return own
    return read_tokens(source.folder)


def read_tokens(folder: Path) -> dict[str, int] | None:
    """Token → id from tokenizer.json; None where there is none, or one of an unknown form."""
    try:
        held = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary, added = held["model"]["vocab"], held.get("added_tokens") or []
        if isinstance(vocabulary, list):  # Unigram: [piece, score] in the order of ids
            found = {entry[0]: number for number, entry in enumerate(vocabulary)}
        else:
            found = dict(vocabulary)
        found.update((entry["content"], entry["id"]) for entry in added)
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if all(type(number) is int for number in found.values()) else None
