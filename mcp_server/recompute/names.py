"""What the recipe makes of every tensor of the output: its inputs by name, and every parameter resolved for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mcp_server.formats.identity import config_field, token_ids
from mcp_server.formats.recipe import Group, ModelRef, Recipe, as_number, resolve
from mcp_server.formats.tensor_names import is_before_layers, split_layer
from mcp_server.formats.tensors import StoredTensor
from mcp_server.recompute.adapters import CannotCompute
from mcp_server.recompute.inputs import Made, Operand
from mcp_server.recompute.reading import is_float
from mcp_server.recompute.sources import Source, is_embedding, is_head
from mcp_server.recompute.values import Value
from mcp_server.recompute.vocabulary import Vocabulary, open_vocabulary

_WEIGHT: Final = {"weight": None}
_SPARSE: Final = {"weight": None, "density": 1.0}
_DELTAS: Final = {"normalize": False, "rescale": False, "lambda": 1.0}
METHODS: Final[dict[str, tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "passthrough": ("input", {"scale": 1.0}, {}),
    "linear": ("input", _WEIGHT, {"normalize": True}),
    "slerp": ("base", {}, {"t": None}),
    "nuslerp": ("base", _WEIGHT, {"nuslerp_flatten": True, "nuslerp_row_wise": False}),
    "multislerp": ("base", _WEIGHT, {"normalize_weights": True, "eps": 1e-8}),
    "model_stock": ("base", {}, {"filter_wise": False}),
    "task_arithmetic": ("base", _SPARSE, _DELTAS),
    "ties": ("base", _SPARSE, _DELTAS | {"normalize": True}),
    "dare_linear": ("base", _SPARSE, _DELTAS | {"rescale": True}),
    "dare_ties": ("base", _SPARSE, _DELTAS | {"rescale": True}),
    "breadcrumbs": ("base", _SPARSE | {"gamma": 0.01}, _DELTAS),
    "breadcrumbs_ties": ("base", _SPARSE | {"gamma": 0.01}, _DELTAS),
    "della": ("base", _SPARSE | {"epsilon": 0.15}, _DELTAS | {"normalize": True, "rescale": True}),
    "della_linear": ("base", _SPARSE | {"epsilon": 0.15}, _DELTAS | {"rescale": True}),
    "sce": ("base", {}, {"select_topk": 1.0}),
    "nearswap": ("base", {}, {"t": None}),
    "karcher": ("input", {}, {"max_iter": 10, "tol": 1e-5}),
    "ram": ("base", {}, {"epsilon": 1e-5}),
    "ramplus_tl": ("base", {}, {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
    "arcee_fusion": ("base", {}, {}),
}
"""Method → (whether the base is one of the inputs, parameters of each input, shared ones), with mergekit 0.1.5's defaults.

None: there is no default.
"""
_TRUE: Final = {"true", "yes", "on", "1", "t", "y"}


@dataclass(frozen=True)
class Planned:
    """One tensor that the output should have. `copied`: the donor's bytes.

    `why`: it cannot be computed, for this reason. `wrong`: it cannot be right.
    """

    name: str
    made: Made | None = None
    copied: Value | None = None
    why: str = ""
    wrong: str = ""


class Names:
    """The recipe over the opened sources. `sources` is by ref; the donor is the base, or the first input."""

    def __init__(
        self, recipe: Recipe, sources: dict[ModelRef, Source], output: dict[str, StoredTensor], folder: Path, *, ours: bool
    ) -> None:
        self.recipe, self.sources, self.output, self.folder, self.ours = recipe, sources, output, folder, ours
        self.groups = recipe.groups()
        self.donor = sources[recipe.base or self.groups[0].sources[0].model]
        self.sliced = any(listed.layer_range is not None for group in self.groups for listed in group.sources)

    def expected(self) -> list[str]:
        """Names that the output must hold, in the donor's order. A tied head may be left out, and buffers may."""
        if not self.sliced:
            return [n for n, tensor in self.donor.tensors.items() if is_float(tensor.dtype) and not self._taken_apart(n)]
        return [
            f"{self.stack}.{number}.{rest}"
            for number, (group, offset, _) in enumerate(self._stacked)
            for rest in self._rests(group, offset)
        ] + [name for name in self.donor.tensors if not self._in_stack(name)]

    def _taken_apart(self, name: str) -> bool:
        """Whether the output holds a stack of experts one by one instead, as another source stores it."""
        stem, _, part = name.rpartition(".experts.")
        return name not in self.output and any(
            f"{stem}.experts.0.{one}_proj.weight" in self.output
            for one in {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}.get(part, ())
        )

    def plan(self, name: str) -> Planned:
        """How the recipe makes an output tensor; with neither inputs nor a reason, no source knows it."""
        stored = self.output[name]
        group, names, t = self._inputs(name)
        if group is None:
            return Planned(name)
        opened = [self.sources[listed.model] for listed in group.sources]
        if is_float(stored.dtype) and (is_head(name) or is_embedding(name)) and (found := self._by_token(name, stored, group, t)):
            return found
        values = [source.value(own, stored.shape) for source, own in zip(opened, names, strict=True)]
        donor = next((v for s, v in zip(opened, values, strict=True) if s is self.donor and v), None) or self.donor.value(
            name, stored.shape
        )
        if all(value is None for value in (*values, donor)):
            return Planned(name)
        if not is_float(stored.dtype) or any(value and not is_float(value.stored.dtype) for value in values):
            return Planned(name, copied=donor or next(value for value in values if value))
        if any(value is None for value in values):
            if donor is None:
                return Planned(name, why="not every source holds it")
            return Planned(name, Made(name, stored.shape, "kept", (Operand(self.donor.label, donor, {}),), None, {}))
        shapes = {value.shape for value in values if value}
        if shapes != {stored.shape}:
            if is_head(name) or is_embedding(name):
                why = self._vocabulary if isinstance(self._vocabulary, str) else "the vocabularies differ in size"
                return Planned(name, why=why)
            if len(shapes) == 1:
                return Planned(name, wrong=f"has shape {list(stored.shape)}, the sources have {list(shapes.pop())}")
            return Planned(name, why=f"shapes differ: {', '.join(map(str, sorted(shapes | {stored.shape})))}")
        if isinstance(self._vocabulary, str) and self._remapped and (is_head(name) or is_embedding(name)):
            return Planned(name, why=self._vocabulary)
        try:
            return Planned(name, self._made(name, stored, group, names, [v for v in values if v], t))
        except CannotCompute as reason:
            return Planned(name, why=str(reason))

    def _by_token(self, name: str, stored: StoredTensor, group: Group, t: float) -> Planned | None:
        """An embedding or head whose rows were put together by token; None where every source has the output's rows."""
        vocabulary, rows = self._vocabulary, stored.shape[0] if stored.shape else 0
        if vocabulary is None or isinstance(vocabulary, str):
            return None
        if not vocabulary.changes and all(model.rows == rows for model in vocabulary.models):
            return None
        try:
            values: list[Value] = [vocabulary.value(listed.model, name, rows) for listed in group.sources]
            if {value.shape for value in values} != {stored.shape}:
                raise CannotCompute("the sources' embeddings differ in width")
            return Planned(name, self._made(name, stored, group, [name] * len(values), values, t))
        except CannotCompute as reason:
            return Planned(name, why=str(reason))

    @cached_property
    def _vocabulary(self) -> Vocabulary | str | None:
        """The recipe's vocabulary, or why it cannot be told; None where the recipe builds none."""
        if not self.recipe.tokenizer_from:
            return None
        try:
            return open_vocabulary(self.recipe, self.sources, self.folder, ours=self.ours)
        except CannotCompute as reason:
            return str(reason)

    @cached_property
    def _remapped(self) -> bool:
        tokenizer = self.recipe.tokenizer or {}
        if not self.recipe.tokenizer_from:
            return False
        if self.recipe.tokenizer_from == "union" or tokenizer.get("tokens") or tokenizer.get("pad_to_multiple_of"):
            return True
        known = [token_ids(model.folder) for model in self.sources.values()]
        return any(ids != known[0] for ids in known)

    def _made(self, name: str, stored: StoredTensor, group: Group, names: list[str], values: list[Value], t: float) -> Made:
        method = self.recipe.method
        if method not in METHODS:
            raise CannotCompute(f"{method} has no definition here")
        role, own, shared = METHODS[method]
        base_ref = group.base if role == "base" else None
        base, operands = None, []
        for listed, own_name, value in zip(group.sources, names, values, strict=True):
            if listed.model == base_ref:
                base = value
                continue
            settings = {
                key: self._number(key, resolve(group.settings(key, listed), own_name, t, default, as_number), default)
                for key, default in own.items()
            }
            operands.append(Operand(self.sources[listed.model].label, value, settings))
        resolved = {
            key: self._flag(resolve(group.settings(key), name, t, default, lambda v: v))
            if isinstance(default, bool)
            else self._number(key, resolve(group.settings(key), name, t, default, as_number), default)
            for key, default in shared.items()
        }
        if base is None and method not in ("linear", "passthrough", "nuslerp", "multislerp", "karcher"):
            raise CannotCompute(f"{method} needs a base, and the slice has none")
        if not operands:
            return Made(name, stored.shape, "kept", (Operand(self.donor.label, values[0], {}),), None, {})
        return Made(name, stored.shape, method, tuple(operands), base, resolved)

    def _number(self, key: str, value: Any, default: Any) -> float:
        if value is None:
            if default is None:
                raise CannotCompute(f"the recipe gives no {key} here")
            return float(default)
        return float(value)

    def _flag(self, value: Any) -> bool:
        return str(int(value) if isinstance(value, float) and value.is_integer() else value).lower() in _TRUE

    # ── which layer of which source ───────────────────────────────────────────────────────────────────────────────────────

    def _inputs(self, name: str) -> tuple[Group | None, list[str], float]:
        found = split_layer(name)
        if not self.sliced:
            group = self.groups[0]
            t = 0.0
            if found is not None:
                last = self._depth(found[0]) - 1
                t = min(1.0, found[1] / last) if last > 0 else 1.0
            return group, [name] * len(group.sources), t
        if found is None or found[0] != self.stack:
            group = self.groups[0] if is_before_layers(name) else self.groups[-1]
            return group, [name] * len(group.sources), 0.0
        if found[1] >= len(self._stacked):
            return None, [], 0.0
        group, offset, t = self._stacked[found[1]]
        return group, [f"{self.stack}.{(listed.layer_range or (0, 0))[0] + offset}.{found[2]}" for listed in group.sources], t

    def _depth(self, stack: str) -> int:
        held = {parts[1] for name in self.donor.tensors if (parts := split_layer(name)) and parts[0] == stack}
        configured = config_field(self.donor.config, "layers")
        return configured if configured and stack == self.stack and configured <= len(held) else len(held)

    @cached_property
    def stack(self) -> str:
        """The stack that the config's number of layers is about: of that many layers, the longest."""
        counts: dict[str, set[int]] = {}
        for name in self.donor.tensors:
            if parts := split_layer(name):
                counts.setdefault(parts[0], set()).add(parts[1])
        configured = config_field(self.donor.config, "layers")
        return max(counts, key=lambda stack: (len(counts[stack]) == configured, len(counts[stack])), default="")

    @cached_property
    def _stacked(self) -> list[tuple[Group, int, float]]:
        """Output layer → (its slice, the place in it, the position in a gradient)."""
        layers = []
        for group in self.groups:
            first, last = group.sources[0].layer_range or (0, self._depth(self.stack))
            count = last - first
            layers += [(group, offset, offset / (count - 1) if count > 1 else 1.0) for offset in range(count)]
        return layers

    def _in_stack(self, name: str) -> bool:
        found = split_layer(name)
        return found is not None and found[0] == self.stack

    def _rests(self, group: Group, offset: int) -> Iterator[str]:
        listed = group.sources[0]
        start = f"{self.stack}.{(listed.layer_range or (0, 0))[0] + offset}."
        for name in self.sources[listed.model].tensors:
            if name.startswith(start):
                yield name.removeprefix(start)
