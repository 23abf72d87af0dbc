"""Which merges can be written as one adapter, and what goes into each of its matrices. Imports no numpy.

The base's weights are not read, and it need not be here: what an adapter adds does not depend on them. Biases and
modules_to_save, which adapters store whole, are merged as in a model; only those may need the base's own tensor.

Under linear and task_arithmetic the ranks of the sources add up and the result is exact. Other methods change single elements:
the merged update has full rank, and a truncated SVD keeps as much of it as the chosen rank allows. So it is with full models
among the sources: what they change in the matrices of their layers is approximated, and what else they change (embeddings, norms,
biases) is stored whole where that is asked for, or left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mcp_server.catalog import strategy
from mcp_server.engine.adapter_copies import base_tensors, without_copies
from mcp_server.engine.adapter_keys import names_in_memory
from mcp_server.engine.coverage import require_coverage
from mcp_server.engine.plan import MergePlan, TensorPlan, make_plan
from mcp_server.engine.sources import open_sources
from mcp_server.errors import Malformed, Unsupported
from mcp_server.formats.checkpoint import Checkpoint
from mcp_server.formats.class_facts import is_conv1d
from mcp_server.formats.lora import Adapter
from mcp_server.formats.recipe import Group, ModelRef, merge_recipe
from mcp_server.formats.tensor_names import is_before_layers, is_head, split_layer
from mcp_server.formats.tensors import StoredTensor, stored_tensors
from mcp_server.formats.ties import find_ties
from mcp_server.schemas.base import Space

OVERSAMPLING = 8
"""Columns beyond the rank in which the SVD searches (Halko, Martinsson, Tropp 2011 advise 5 to 10)."""
POWER_ITERATIONS = 2
PASSES = 2 * POWER_ITERATIONS + 2
"""How often the SVD forms the merged update: down and up for each iteration, and once each for the basis and the result."""
_WAY_ROUND = "use --output model"
_OF_VALUES: Final = ("slerp", "passthrough", "karcher", "arcee_fusion")
"""Methods whose result depends on the base's own values."""
WHOLE: Final = ("embeddings", "norms", "biases")


@dataclass(frozen=True)
class Module:
    """One adapted matrix: its name in memory, its plan, each input's coefficient, and the rank that the result gets.

    Of a stack of `experts` matrices `key` is what its factors are stored under, which PEFT's nested wrappers decide.
    """

    name: str
    plan: TensorPlan
    coefficients: tuple[float, ...]
    rank: int
    transposed: bool
    embedding: bool
    reads_base: bool = False
    experts: int = 1
    key: str = ""

    def factors(self) -> list[StoredTensor]:
        """A and B of every source that changes this matrix, as they are stored."""
        return [part for entry in self.plan.inputs if entry.factors for part in (entry.factors.a, entry.factors.b)]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """The output's A and B by their stored names, as (rows, columns)."""
        rows, columns = self.plan.shape[-2:]
        if self.transposed:
            rows, columns = columns, rows
        a, b = ("embedding_A", "embedding_B") if self.embedding else ("A.weight", "B.weight")
        stem = f"base_model.model.{self.key or self.name}.lora_"
        return {stem + a: (self.rank * self.experts, columns), stem + b: (rows, self.rank * self.experts)}


@dataclass(frozen=True)
class Saved:
    """A tensor that the output stores whole: a bias, or a weight of modules_to_save. `method` merges it."""

    plan: TensorPlan
    method: str
    key: str


@dataclass(frozen=True)
class AdapterPlan:
    """`dtype` is that of every tensor of the output, as torch names it; `names`, what each stored one is called in memory;
    `left_out`, what changes and is not in the output; `stays_tied`: embedding and head are stored whole, and are one."""

    merge: MergePlan
    modules: tuple[Module, ...]
    saved: tuple[Saved, ...]
    exact: bool
    dtype: str
    names: Mapping[str, str]
    left_out: tuple[TensorPlan, ...] = ()
    space: Space = "weights"
    stays_tied: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the output, in the order in which they are written."""
        found: dict[str, tuple[int, ...]] = {}
        for module in self.modules:
            found |= module.shapes()
        return found | {saved.key: saved.plan.shape for saved in self.saved}


def plan_adapter(recipe_text: str, rank: int | None, whole: Sequence[str] = (), space: Space = "weights") -> AdapterPlan:
    """Plan the adapter that stands for a recipe. `rank` is for methods and sources that need an SVD; others do not read it.

    In another `space` than the weights, exact sums are cut to the rank too, and the core keeps all of it without one. `whole`
    names the kinds of tensors (`WHOLE`) that the output stores as they are merged, where full models change them.
    Raises `Unsupported` when no adapter can stand for it, `Malformed` when a rank is needed and none is given.
    """
    recipe = merge_recipe(recipe_text)
    require_coverage(recipe)
    plan = make_plan(recipe, open_sources(recipe, base_may_be_absent=True))
    base = base_tensors(plan, _base(plan))
    plan = without_copies(plan, base) if _base(plan).headers else plan
    full = next((ref for ref in recipe.references() if ref.adapter is None and ref != recipe.base), None)
    cored = space != "weights"
    exact = strategy(recipe.method).adapter_space and full is None and not (cored and rank is not None)
    _check(plan, full, rank, exact=exact)
    if cored and full is not None:
        raise Unsupported(f"{full} is a full model and has no factors", "merge it on the weights: leave --space out")
    if not exact and rank is None and space != "core":
        raise Malformed(
            f"{recipe.method} does not keep updates low-rank, so an adapter needs a rank", "give --rank, for instance 64"
        )
    places: dict[str, list[TensorPlan]] = {"module": [], "whole": [], "left out": []}
    for tensor in plan.tensors:
        if tensor.how == "merged" and (place := _place(plan, tensor, base.get(tensor.name), whole)):
            places[place].append(tensor)
            if place == "whole" and tensor.name not in _base(plan).tensors:
                raise Unsupported(f"{tensor.name} becomes a tensor of its own, which the base ties to its embedding", _WAY_ROUND)
    names = names_in_memory(plan, _base(plan))
    tables, keys = _embedding_factors(plan), _keys_of_stacks(plan)
    modules = tuple(
        _module(plan, tensor, names[tensor.name], None if exact else rank, tables, keys, cored=cored and not exact)
        for tensor in places["module"]
    )
    if cored and (reading := next((module for module in modules if module.reads_base), None)):
        raise Unsupported(f"{reading.plan.name} is no plain LoRA in every source", "merge it on the weights: leave --space out")
    adapted = {module.name for module in modules}
    saved = tuple(_saved(plan, tensor, names[tensor.name], adapted) for tensor in places["whole"])
    head = _tied_head(plan, saved) if full is not None else None
    dtype = recipe.out_dtype or recipe.dtype or "float32"
    saved += (head,) if head else ()
    left_out, space = tuple(places["left out"]), "weights" if exact else space
    return AdapterPlan(plan, modules, saved, exact, dtype, names, left_out, space, head is not None)


def _tied_head(plan: MergePlan, saved: Sequence[Saved]) -> Saved | None:
    """The head that full models keep as one with an embedding that the output stores: PEFT parts the two unless both are stored,
    and one by its config (ensure_weight_tying)."""
    base = _base(plan)
    ties = find_ties(base.config, base.tensors)
    if ties is None or not ties.tied:
        return None
    embedding = next((entry for entry in saved if entry.plan.name == ties.embedding), None)
    return replace(embedding, key=f"base_model.model.{ties.head}") if embedding else None


def _place(plan: MergePlan, tensor: TensorPlan, own: StoredTensor | None, whole: Sequence[str]) -> str | None:
    """Where a tensor's change goes: into factors, stored whole, or left out; None when no source changes it."""
    held = {c.replacement for s in plan.sources.values() if s.adapter and (c := s.adapter.changes.get(tensor.name))}
    if any(entry.stored != own and entry.stored in held for entry in tensor.inputs):
        return "whole"
    if all(entry.stored == own for entry in tensor.inputs):
        return "module" if any(entry.factors for entry in tensor.inputs) else None
    in_layer = split_layer(tensor.name) is not None or is_head(tensor.name)
    if in_layer and len(tensor.shape) == 2 and tensor.name.endswith(".weight"):
        return "module"
    return "whole" if kind_of(tensor) in whole else "left out"


def kind_of(tensor: TensorPlan) -> str:
    """One of `WHOLE`, or 'other' (fused experts, convolutions)."""
    if is_before_layers(tensor.name) and len(tensor.shape) == 2:
        return "embeddings"
    if len(tensor.shape) == 1:
        return "biases" if tensor.name.endswith("bias") else "norms"
    return "other"


def _check(plan: MergePlan, full: ModelRef | None, rank: int | None, *, exact: bool) -> None:
    """Sources that stand on one base, in a way that keeps the base as it is. `full`: a source that is a full model."""
    recipe = plan.recipe
    if full is not None and (rank is None or recipe.base is None or recipe.method == "linear"):
        raise Unsupported(
            f"{full} is a full model, so the result is no adapter",
            f"{_WAY_ROUND}, or approximate its change: --rank 64, and a method that has a base_model",
        )
    models = {ref.base_ref for ref in recipe.references() if ref.adapter} | ({recipe.base.base_ref} if recipe.base else set())
    if len(models) != 1 or (recipe.base and recipe.base.adapter):
        raise Unsupported(f"the sources stand on different bases: {sorted(models)}", _WAY_ROUND)
    if any(listed.layer_range is not None for group in recipe.groups() for listed in group.sources):
        raise Unsupported("slices change the layers, and an adapter cannot", _WAY_ROUND)
    if not _base(plan).headers and any(_is_gradient(value) for group in recipe.groups() for value in _settings(group)):
        raise Unsupported(
            "a gradient runs over the base's layers, and the base is not here, so their number is not known",
            "give the base, or single numbers",
        )
    for ref, source in plan.sources.items():
        for name, change in source.adapter.changes.items() if source.adapter else ():
            if change.updates and change.factors is None:
                raise Unsupported(f"{ref} changes {name} by more than one plain low-rank product", _WAY_ROUND)
            if change.updates and change.low_rank is None and not exact:
                raise Unsupported(
                    f"{ref} changes the stack of experts {name}, and {recipe.method} does not keep updates low-rank",
                    f"{_WAY_ROUND}, or linear or task_arithmetic, which do",
                )
        if source.adapter and source.adapter.vocabulary is not None:
            raise Unsupported(f"{ref} resizes the vocabulary of its base", _WAY_ROUND)
    if recipe.method == "linear":
        for tensor in (tensor for tensor in plan.tensors if tensor.how == "merged"):
            total = sum(values["weight"] for values in tensor.per_source)
            if not tensor.shared["normalize"] and abs(total - 1) > 1e-6:
                raise Unsupported(
                    f"linear with weights that sum to {total:g} (at {tensor.name}) scales the base too, and an adapter cannot",
                    _WAY_ROUND,
                )
    if recipe.method in _OF_VALUES or (recipe.base is None and recipe.method != "linear"):
        raise Unsupported(f"{recipe.method} here interpolates whole models, not deltas from the base", _WAY_ROUND)


def _settings(group: Group) -> Iterator[Any]:
    for scope in (*group.scopes, *(listed.parameters for listed in group.sources)):
        yield from scope.values()


def _is_gradient(value: Any) -> bool:
    """A list of numbers, also inside filters."""
    if not isinstance(value, list):
        return False
    return any(_is_gradient(item.get("value")) if isinstance(item, dict) else True for item in value)


def _base(plan: MergePlan) -> Checkpoint:
    """The recipe's base, else the one that all adapters stand on."""
    base = plan.recipe.base
    return (plan.sources[base] if base in plan.sources else next(iter(plan.sources.values()))).checkpoint


def _embedding_factors(plan: MergePlan) -> set[StoredTensor]:
    """The factors that adapters store for embeddings, whatever name the base has for these."""
    adapters = [source.adapter for source in plan.sources.values() if source.adapter]
    return {
        stored
        for adapter in adapters
        for file, header in adapter.headers.items()
        for key, stored in stored_tensors(file, header).items()
        if ".lora_embedding_" in key
    }


def _saved(plan: MergePlan, tensor: TensorPlan, name: str, adapted: set[str]) -> Saved:
    """How a whole tensor is merged. Where the base's own value cancels out, the merge is a weighted sum that does not read it.

    PEFT stores the bias of a layer that has factors under `base_layer`.
    """
    module, _, leaf = name.rpartition(".")
    key = f"base_model.model.{module}.{'base_layer.' if module in adapted else ''}{leaf}"
    base = _base(plan)
    own = base.tensors.get(tensor.name)
    entries = [i for i in range(len(tensor.inputs)) if i != tensor.base]
    if strategy(plan.recipe.method).adapter_space and all(tensor.inputs[i].stored != own for i in entries):
        factors = _coefficients(tensor)
        if abs(sum(factors) - 1) < 1e-6:
            summed = replace(
                tensor,
                inputs=tuple(tensor.inputs[i] for i in entries),
                base=None,
                reference=None,
                shared={"normalize": False},
                per_source=tuple({"weight": factors[i]} for i in entries),
            )
            return Saved(summed, "linear", key)
    if not base.headers:
        raise Unsupported(
            f"{tensor.name} is stored whole by some adapter, and the recipe mixes it with the base's own, which is not here",
            "give the base, or weights that sum to 1 for adapters that all store it",
        )
    return Saved(tensor, plan.recipe.method, key)


def _coefficients(tensor: TensorPlan) -> list[float]:
    """The factor of each input under linear and task_arithmetic."""
    weights = [values.get("weight", 0.0) for values in tensor.per_source]
    lambda_, total = tensor.shared.get("lambda", 1.0), sum(weights)
    if tensor.shared.get("normalize") and abs(total) >= 1e-8:
        lambda_ /= total
    return [lambda_ * weight for weight in weights]


def _module(
    plan: MergePlan,
    tensor: TensorPlan,
    name: str,
    rank: int | None,
    tables: set[StoredTensor],
    keys: dict[str, str],
    *,
    cored: bool,
) -> Module:
    """`tables`: the factors that belong to embeddings; `keys`: what the factors of stacks are stored under.

    `cored`: merged on the core of the factors, whose rank is all that there is.
    """
    updates = [entry.factors for entry in tensor.inputs if entry.factors]
    if len({update.transposed for update in updates}) > 1:
        raise Unsupported(f"{tensor.name} is adapted in two orientations", _WAY_ROUND)
    added = sum(update.rank for update in updates)
    limit = min(tensor.shape)
    embedding = any(update.a in tables or update.b in tables for update in updates)
    own = _base(plan).tensors.get(tensor.name)
    return Module(
        name.removesuffix(".weight"),
        tensor,
        tuple(_coefficients(tensor)),
        min(rank or added, limit, added) if cored else min(rank, limit) if rank else added,
        updates[0].transposed if updates else is_conv1d(_base(plan).config, name.removesuffix(".weight")) is True,
        embedding,
        any(entry.stored != own for entry in tensor.inputs),
        max((update.experts for update in updates), default=1),
        keys.get(tensor.name, ""),
    )


def _keys_of_stacks(plan: MergePlan) -> dict[str, str]:
    """Stored name of each adapted stack of experts → what PEFT stores its factors under, without the prefix.

    PEFT nests the wrappers of one module's parameters (`experts.base_layer`), so a key says how many others are adapted beside
    it: sources that adapt the same stacks have the same keys, and others are refused.
    """
    keys: dict[str, str] = {}
    for ref, source in plan.sources.items():
        for name, key in _stacks_of(source.adapter).items() if source.adapter else ():
            if keys.setdefault(name, key) != key:
                raise Unsupported(f"{ref} and another source adapt different parameters of the module of {name}", _WAY_ROUND)
    stored = list(keys.values())
    if twice := next((name for name, key in keys.items() if stored.count(key) > 1), None):
        raise Unsupported(f"the sources adapt different parameters of the module of {twice}", _WAY_ROUND)
    return keys


def _stacks_of(adapter: Adapter) -> dict[str, str]:
    stored = {part: key for file, header in adapter.headers.items() for key, part in stored_tensors(file, header).items()}
    return {
        name: stored[change.factors.a].removeprefix("base_model.model.").partition(".lora_A")[0]
        for name, change in adapter.changes.items()
        if change.factors and change.factors.experts > 1
    }
