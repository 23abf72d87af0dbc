"""What each method of this engine takes: inputs, base, parameters, defaults and ranges, as the catalogue says (rules/strategies).

A test holds the catalogue against mergekit's registry. Ranges are ours: mergekit checks none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal

from mcp_server.catalog import Strategy, load
from mcp_server.errors import Incompatible, Malformed
from mcp_server.formats.recipe.parameters import REQUIRED, Kind

Parameter = tuple[Kind, Any]


@dataclass(frozen=True, slots=True)
class Signature:
    """`base`: required, optional (used when given) or ignored (it counts as an ordinary input).

    `source` parameters belong to every non-base input, or to every input when the base is ignored. `needs` counts the inputs
    (base included) as (least, most); `needs_non_base` the others.
    """

    base: Literal["required", "optional", "ignored"]
    source: dict[str, Parameter] = field(default_factory=dict)
    shared: dict[str, Parameter] = field(default_factory=dict)
    needs: tuple[int, int | None] = (1, None)
    needs_non_base: tuple[int, int | None] = (0, None)
    sparsify: Literal["none", "magnitude", "random", "outliers", "della"] = "none"
    elect: bool = False

    def check_inputs(self, refs: list[str], base: str | None, method: str) -> None:
        """Raise `Incompatible` or `Malformed` unless these inputs suit the method."""
        if len(set(refs)) != len(refs):
            twice = next(ref for ref in refs if refs.count(ref) > 1)
            raise Malformed(f"{twice} is listed twice in one slice", "list every source once; add up its weights instead")
        has_base = self.base != "ignored" and base is not None
        if has_base and base not in refs:
            raise Malformed(
                f"{method} compares with the base {base}, which is not among a slice's sources {refs}",
                "add the base to the sources of every slice, with the same number of layers",
            )
        if self.base == "required" and not has_base:
            raise Malformed(f"{method} needs a base_model and the recipe has none", "add `base_model:`, or use linear")
        for count, (least, most), what in (
            (len(refs), self.needs, "models" + (", base included" if has_base else "")),
            (len(refs) - has_base, self.needs_non_base, "models besides the base"),
        ):
            if count < least or (most is not None and count > most):
                wanted = f"exactly {least}" if least == most else f"at least {least}" if most is None else f"at most {most}"
                raise Incompatible(f"{method} takes {wanted} {what}; the recipe gives {count}: {refs}", "change the sources")


METHODS: Final = (
    "passthrough", "linear", "slerp", "nuslerp", "multislerp", "model_stock", "task_arithmetic", "ties",
    "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "karcher", "nearswap", "ram",
    "ramplus_tl", "sce", "arcee_fusion",
)  # fmt: skip
"""What this engine has kernels for; other names run on mergekit."""


class _Signatures(Mapping[str, Signature]):
    """Method name → signature, read from the catalogue when it is first asked for."""

    @cached_property
    def _table(self) -> dict[str, Signature]:
        known = load().strategies
        return {name: signature_of(known[name]) for name in METHODS}

    def __getitem__(self, name: str) -> Signature:
        return self._table[name]

    def __contains__(self, name: object) -> bool:
        return name in METHODS

    def __iter__(self) -> Iterator[str]:
        return iter(METHODS)

    def __len__(self) -> int:
        return len(METHODS)


def signature_of(strategy: Strategy) -> Signature:
    """What the catalogue says about a method, in this engine's terms."""
    kinds: dict[str, Kind] = {"bool": "flag", "float": "number", "int": "number"}

    def table(scope: str) -> dict[str, Parameter]:
        chosen = [p for p in strategy.parameters if p.scope == scope]
        return {p.name: (kinds[p.type], REQUIRED if p.required else p.default) for p in chosen}

    inputs = strategy.inputs
    return Signature(
        base="required" if inputs.base == "one_of_the_sources" else inputs.base,
        source=table("source"),
        shared=table("shared"),
        needs=inputs.accepts,
        needs_non_base=inputs.accepts_beside_base,
        sparsify=strategy.sparsify,
        elect=strategy.deltas == "elected",
    )


SIGNATURES: Final[Mapping[str, Signature]] = _Signatures()
"""Method name → signature. A name that is missing here runs on mergekit."""


def check_values(method: str, shared: dict[str, Any], per_source: dict[str, dict[str, Any]], tensor: str) -> None:
    """Raise `Malformed` for values that the method cannot mean: outside the catalogue's range, weights that divide by zero."""
    strategy = load().strategies[method]
    for ref, values in per_source.items():
        for name, value in values.items():
            parameter = strategy.parameter(name)
            if parameter and parameter.range and value is not None and not parameter.range.holds(value):
                start = parameter.default if parameter.start is None else parameter.start
                text = f"{name} {value:g} of {ref} at {tensor} is outside {parameter.range}"
                if name == "density" and value > 1:
                    text += "; mergekit drops nothing from 1 on"
                    share = f"{value / 100:g} if per cent is meant" if value >= 2 else f"{start} to drop some"
                    raise Malformed(text, f"write 1 to keep everything, or {share}")
                raise Malformed(text, f"use for instance {start}")
        density, epsilon = values.get("density", 1.0), values.get("epsilon")
        if epsilon is not None and 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise Malformed(
                f"density {density:g} ± epsilon {epsilon:g} of {ref} at {tensor} leaves (0, 1)", "lower epsilon, for instance 0.1"
            )
    weights = [values["weight"] for values in per_source.values() if "weight" in values]
    divides = (method == "linear" and shared["normalize"]) or (method == "multislerp" and shared["normalize_weights"])
    if divides and abs(sum(weights)) < 1e-6:
        raise Malformed(
            f"the weights {weights} at {tensor} sum to {sum(weights):g}, and {method} divides by their sum",
            "change the weights; +1 and −1 belong in task_arithmetic",
        )
