"""What each method of this engine takes: inputs, base, parameters and defaults, as mergekit 0.1.5 declares them.

Read from mergekit's registry and checked against it by a test. Ranges are ours: mergekit checks none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from mcp_server.engine.parameters import REQUIRED, Kind
from mcp_server.errors import Incompatible, Malformed

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


_FLAG_OFF: Parameter = ("flag", False)
_WEIGHT: dict[str, Parameter] = {"weight": ("number", REQUIRED)}
_SPARSE: dict[str, Parameter] = {**_WEIGHT, "density": ("number", 1.0)}


def _task_vectors(normalize: bool, rescale: bool) -> dict[str, Parameter]:
    return {
        "normalize": ("flag", normalize),
        "rescale": ("flag", rescale),
        "lambda": ("number", 1.0),
        "int8_mask": _FLAG_OFF,  # only the type of a temporary in mergekit: no effect on the result
    }


SIGNATURES: dict[str, Signature] = {
    "passthrough": Signature("ignored", {"scale": ("number", None)}, needs=(1, 1)),
    "linear": Signature("ignored", _WEIGHT, {"normalize": ("flag", True)}),
    "slerp": Signature("required", shared={"t": ("number", REQUIRED)}, needs=(2, 2)),
    "nuslerp": Signature(
        "optional", _WEIGHT, {"nuslerp_flatten": ("flag", True), "nuslerp_row_wise": _FLAG_OFF}, needs_non_base=(2, 2)
    ),
    "multislerp": Signature(
        "optional", _WEIGHT, {"normalize_weights": ("flag", True), "eps": ("number", 1e-8)}, needs_non_base=(1, None)
    ),
    "model_stock": Signature("required", shared={"filter_wise": _FLAG_OFF}, needs=(3, None)),
    "task_arithmetic": Signature("required", _SPARSE, _task_vectors(False, False)),
    "ties": Signature("required", _SPARSE, _task_vectors(True, False), sparsify="magnitude", elect=True),
    "dare_linear": Signature("required", _SPARSE, _task_vectors(False, True), sparsify="random"),
    "dare_ties": Signature("required", _SPARSE, _task_vectors(False, True), sparsify="random", elect=True),
    "breadcrumbs": Signature(
        "required", {**_SPARSE, "gamma": ("number", 0.01)}, _task_vectors(False, False), sparsify="outliers"
    ),
    "breadcrumbs_ties": Signature(
        "required", {**_SPARSE, "gamma": ("number", 0.01)}, _task_vectors(False, False), sparsify="outliers", elect=True
    ),
    "della": Signature(
        "required", {**_SPARSE, "epsilon": ("number", 0.15)}, _task_vectors(True, True), sparsify="della", elect=True
    ),
    "della_linear": Signature("required", {**_SPARSE, "epsilon": ("number", 0.15)}, _task_vectors(False, True), sparsify="della"),
}
"""Method name → signature. A name that is missing here runs on mergekit."""


def check_values(method: str, shared: dict[str, Any], per_source: dict[str, dict[str, Any]], tensor: str) -> None:
    """Raise `Malformed` for values that the method cannot mean: a density outside [0, 1], weights that divide by zero."""
    weights = [values["weight"] for values in per_source.values() if "weight" in values]
    for ref, values in per_source.items():
        density, epsilon = values.get("density", 1.0), values.get("epsilon")
        if not 0 <= density <= 1:
            raise Malformed(f"density {density:g} of {ref} at {tensor} is outside [0, 1]", "use for instance 0.5")
        if epsilon is not None and 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise Malformed(
                f"density {density:g} ± epsilon {epsilon:g} of {ref} at {tensor} leaves (0, 1)", "lower epsilon, for instance 0.1"
            )
        if not 0 <= values.get("gamma", 0.0) < 1:
            raise Malformed(f"gamma {values['gamma']:g} of {ref} at {tensor} is outside [0, 1)", "use for instance 0.01")
    divides = (method == "linear" and shared["normalize"]) or (method == "multislerp" and shared["normalize_weights"])
    if (divides or method == "nuslerp") and abs(sum(weights)) < 1e-6:
        raise Malformed(
            f"the weights {weights} at {tensor} sum to {sum(weights):g}, and {method} divides by their sum",
            "change the weights; +1 and −1 belong in task_arithmetic",
        )
