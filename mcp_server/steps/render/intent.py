"""From a plan to what its recipe means: which models, with which parameters, on which base, over which layers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from mcp_server.catalog.models import Strategy
from mcp_server.catalog.signals import trained
from mcp_server.errors import BadInput, Malformed
from mcp_server.formats.folder import folder_of
from mcp_server.formats.refs import resolve_ref
from mcp_server.schemas.plan import Plan
from mcp_server.schemas.scenario import ScenarioSource

BASE: Final = "base"
"""What the base is called where it goes in as a source of its own."""
DTYPES: Final = ("bfloat16", "float16", "float32")
ASSUMED_DTYPE: Final = "bfloat16"
"""Where neither plan nor config tells: what nearly all current checkpoints have. `render` says that it was assumed."""
MIDDLE: Final = "merged_middle"
"""The name of an intermediate model; mergekit-multi puts its folder in the name's place."""
_SPLITS: Final = re.compile(r"[+@]")


def meaning_of(plan: Plan, strategy: Strategy, folder: Path) -> Meaning:
    """What the recipe of this plan must say. Raises `BadInput` with the missing fact and how to give it."""
    base = _base(plan, folder)
    inputs = [_input(plan, strategy, name, source, base, folder) for name, source in trained(plan.scenario)]
    layers = _layers(plan, base, folder) if strategy.merge_method in LAYERED else None
    if strategy.inputs.base == "one_of_the_sources" and len(inputs) == 1 and base:
        inputs.insert(0, Input(BASE, _written(base)))
    elif strategy.inputs.min > len(inputs) == 1 and base and BASE in plan.weights:
        inputs.append(Input(BASE, _written(base), _parameters(plan, strategy, BASE)))
    _check_count(strategy, inputs, base)
    shared = {name: value for name, value in _shared(plan, strategy).items() if value is not None}
    meaning = Meaning(
        method=strategy.merge_method,
        runner=strategy.runner,
        inputs=inputs,
        base=_base_of_recipe(strategy, inputs, base),
        parameters=shared,
        dtype=plan.dtype or known_dtype(plan, folder) or ASSUMED_DTYPE,
        tokenizer=_tokenizer(plan, folder),
        layers=layers,
    )
    return LAYERED[strategy.merge_method](plan, meaning) if strategy.merge_method in LAYERED else meaning


def _base(plan: Plan, folder: Path) -> str | None:
    named = plan.scenario.base_model
    if named and named.lower() == "none":
        return None
    named = named or next((s.base for _, s in trained(plan.scenario) if s.base), None)
    named = named or next((b for _, s in trained(plan.scenario) if s.ref and (b := _base_in_adapter(s.ref, folder))), None)
    return resolve_ref(named, folder) if named else None


def _base_in_adapter(ref: str, folder: Path) -> str | None:
    config = _json(Path(resolve_ref(ref, folder)) / "adapter_config.json")
    named = config.get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # absent or broken: the validator says so with its own code; here the fact is just not there
    return data if isinstance(data, dict) else {}


def _input(plan: Plan, strategy: Strategy, name: str, source: ScenarioSource, base: str | None, folder: Path) -> Input:
    if not source.ref:
        raise BadInput(f"the source {name!r} has no ref, so a recipe cannot name it", f"--set sources.{name}.ref=./its_folder")
    ref = resolve_ref(source.ref, folder)
    adapter = source.kind == "lora" or (source.kind is None and (Path(ref) / "adapter_config.json").is_file())
    if adapter and base is None:
        raise BadInput(
            f"the source {name!r} is an adapter and its base is not known",
            "name it: base_model in the scenario, or --set base_model=REF",
        )
    model = _written(base, ref) if adapter and base else _written(ref)
    prompts = None
    if strategy.runner == "mergekit-moe":
        prompts = source.prompts or ([source.capability] if source.capability else None)
        if not prompts:
            raise BadInput(
                f"the expert {name!r} has no prompts to route by", f"--set 'sources.{name}.prompts=[\"a typical prompt\"]'"
            )
    return Input(name, model, _parameters(plan, strategy, name), _range_of(plan, name, source), prompts)


def _written(model: str, adapter: str | None = None) -> Any:
    """mergekit splits a ref at '+' (adapter) and '@' (revision); a path that holds one goes in table form."""
    if not any(_SPLITS.search(part) for part in (model, adapter or "")):
        return f"{model}+{adapter}" if adapter else model
    table: dict[str, Any] = {"model": {"path": model}}
    return {**table, "lora": {"path": adapter}} if adapter else table


def _parameters(plan: Plan, strategy: Strategy, name: str) -> dict[str, Any]:
    """The parameters of one source: its weight, then what the plan sets for all, then what it sets for this one."""
    chosen = dict(plan.strategy.parameters) if plan.strategy else {}
    result: dict[str, Any] = {}
    for parameter in strategy.parameters:
        if parameter.scope == "source":
            value = plan.weights.get(name) if parameter.name == "weight" else chosen.get(parameter.name)
            value = plan.source_parameters.get(name, {}).get(parameter.name, value)
            if value is None and parameter.required:
                raise BadInput(
                    f"the source {name!r} has no {parameter.name}, which {strategy.id} needs",
                    f"--set sources.{name}.{parameter.name}=0.5",
                )
            if value is not None:
                result[parameter.name] = value
    return result


def _shared(plan: Plan, strategy: Strategy) -> dict[str, Any]:
    chosen = dict(plan.strategy.parameters) if plan.strategy else {}
    shared = {p.name: chosen.get(p.name) for p in strategy.parameters if p.scope == "shared"}
    if strategy.parameter("t") and strategy.weights == "sum_one" and len(plan.weights) == 2:
        # The weights are the plan's word on how much of each; t follows them unless it was set apart from them.
        first, second = plan.weights.values()
        if chosen.get("t") is None and first + second:
            shared["t"] = round(second / (first + second), 4)
    for parameter in strategy.parameters:
        if parameter.scope == "shared" and parameter.required and shared.get(parameter.name) is None:
            raise BadInput(f"{strategy.id} needs {parameter.name}", f"--set parameters.{parameter.name}={parameter.start}")
    return shared


def _base_of_recipe(strategy: Strategy, inputs: list[Input], base: str | None) -> Any:
    kind = strategy.inputs.base
    if kind == "one_of_the_sources":
        return inputs[0].model
    return None if kind == "ignored" or base is None else _written(base)


def _check_count(strategy: Strategy, inputs: list[Input], base: str | None) -> None:
    limits, count = strategy.inputs, len(inputs)
    if count < limits.min:
        raise BadInput(
            f"{strategy.id} takes {limits.min} sources at least, the plan has {count}", "add a source, or set another strategy"
        )
    if limits.max is not None and count > limits.max:
        raise BadInput(
            f"{strategy.id} takes {limits.max} sources at most, the plan has {count}", "--set strategy=ties takes any number"
        )
    if limits.base == "required" and base is None:
        raise BadInput(
            f"{strategy.id} needs the base that all sources were trained from, and the plan names none",
            "--set base_model=REF; without a base use linear, karcher, multislerp or nuslerp",
        )


def _tokenizer(plan: Plan, folder: Path) -> str | None:
    if plan.tokenizer in (None, "base", "union"):
        return plan.tokenizer
    return resolve_ref(plan.tokenizer, folder)


def _range_of(plan: Plan, name: str, source: ScenarioSource) -> list[int] | None:
    chosen = plan.source_parameters.get(name, {}).get("layer_range") or source.layer_range
    return [int(end) for end in chosen] if chosen else None


def _layers(plan: Plan, base: str | None, folder: Path) -> int | None:
    found = plan.scenario.layers or next(_configured(plan, base, folder, "num_hidden_layers"), None)
    return found if isinstance(found, int) and found > 0 else None


def known_dtype(plan: Plan, folder: Path) -> str | None:
    """The base's own dtype, or the first source's; None where no config on this machine tells."""
    base = _base(plan, folder)
    found = [*_configured(plan, base, folder, "dtype"), *_configured(plan, base, folder, "torch_dtype")]
    return next((dtype for dtype in found if dtype in DTYPES), None)


def _configured(plan: Plan, base: str | None, folder: Path, key: str) -> Iterator[Any]:
    """What config.json says under `key`: the base's first, then each source's."""
    refs = [base] if base else []
    refs += [resolve_ref(s.ref, folder) for _, s in trained(plan.scenario) if s.ref]
    for ref in refs:
        if (value := _json(folder_of(ref) / "config.json").get(key)) is not None:
            yield value


def _need_layers(meaning: Meaning) -> int:
    if meaning.layers is None:
        raise BadInput(
            f"{meaning.method} cuts models into layers, and nothing says how many they have",
            "--set layers=32 (inspect tells), or give each source a layer_range",
        )
    return meaning.layers


def _stack(plan: Plan, meaning: Meaning) -> Meaning:
    """passthrough: the ranges given, else windows from the first layer to the last.

    They overlap as in depth up-scaling (24 + 24 of 32 layers for two), or add up to the depth that the scenario asks for.
    """
    inputs, depth = meaning.inputs, plan.scenario.depth
    if not all(one.layer_range for one in inputs):
        layers = _need_layers(meaning)
        inputs = inputs * max(2, math.ceil((depth or 0) / layers)) if len(inputs) == 1 else inputs
        count = len(inputs)
        if depth is not None and not count <= depth <= count * layers:
            raise BadInput(f"{count} windows of {layers} layers make no model of {depth}", f"choose {count} to {count * layers}")
        window = max(1, round(layers * (0.75 if count == 2 else 0.5)))
        sizes = [window] * count if depth is None else [depth // count + (number < depth % count) for number in range(count)]
        starts = [round(number * (layers - size) / (count - 1)) for number, size in enumerate(sizes)]
        inputs = [
            Input(one.name, one.model, one.parameters, one.layer_range or [start, start + size])
            for one, start, size in zip(inputs, starts, sizes, strict=True)
        ]
    return _with(meaning, inputs=inputs)


def _keep_ends(_plan: Plan, meaning: Meaning) -> Meaning:
    """Stage one merges with ties under a name; stage two stacks base, that name's middle, base."""
    layers, ends = _need_layers(meaning), int(meaning.parameters["ends"])
    if 2 * ends >= layers:
        raise BadInput(f"ends {ends} at each side leave nothing of {layers} layers to merge", f"try {max(1, layers // 8)}")
    ranges = ((BASE, meaning.base, 0, ends), (MIDDLE, MIDDLE, ends, layers - ends), (BASE, meaning.base, layers - ends, layers))
    last = [Input(name, model, layer_range=[start, end]) for name, model, start, end in ranges]
    first = _with(meaning, method="ties", runner="mergekit-yaml", parameters={})
    second = _with(meaning, method="passthrough", runner="mergekit-yaml", parameters={}, inputs=last, base=None)
    return _with(meaning, stages=[first, second])


def _with(meaning: Meaning, **changes: Any) -> Meaning:
    return Meaning(**{**meaning.__dict__, **changes})


LAYERED: Final = {"passthrough": _stack, "keep_ends": _keep_ends}


_SHAPE = {"models", "slices", "experts"}


@dataclass(frozen=True)
class Input:
    """One model of the recipe. `model` is text (`base+adapter` for an adapter) or mergekit's table form for odd paths."""

    name: str
    model: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    layer_range: list[int] | None = None
    prompts: list[str] | None = None


@dataclass(frozen=True)
class Meaning:
    """The recipe as data, before any text: what the template gets, and what the text is held against."""

    method: str
    runner: str
    inputs: list[Input]
    base: Any = None
    parameters: dict[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    tokenizer: Any = None
    layers: int | None = None
    stages: list[Meaning] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The normal form that `normal` also makes of parsed YAML."""
        return _drop(
            {
                "merge_method": None if self.runner == "mergekit-moe" else self.method,
                "base_model": self.base,
                "inputs": [
                    _drop(
                        {
                            "model": one.model,
                            "parameters": one.parameters,
                            "layer_range": one.layer_range,
                            "prompts": one.prompts,
                        }
                    )
                    for one in self.inputs
                ],
                "parameters": self.parameters,
                "dtype": self.dtype,
                "tokenizer": {"source": self.tokenizer} if self.tokenizer else None,
            }
        )


def normal(document: Any) -> dict[str, Any]:
    """A parsed recipe in normal form: models, slices and experts become one list of inputs; top-level keys stay visible."""
    if not isinstance(document, dict):
        return {"not a table": document}
    inputs = list(document.get("models") or [])
    for piece in document.get("slices") or []:
        inputs += piece.get("sources") or []
    inputs += [
        {"model": expert.get("source_model"), "prompts": expert.get("positive_prompts")}
        for expert in document.get("experts") or []
    ]
    shared = document.get("parameters") or {}
    if "experts" in document:
        shared = {key: document[key] for key in ("gate_mode", "experts_per_token") if key in document}
    rest = {key: value for key, value in document.items() if key not in _SHAPE | {"parameters", *shared}}
    return _drop({**rest, "inputs": [_drop(dict(one)) for one in inputs], "parameters": shared})


def compare(documents: list[Any], meaning: Meaning, template: str) -> None:
    """Raise `Malformed` when the parsed text is not what was meant; the first differing place is named."""
    stages = meaning.stages or [meaning]
    if len(documents) != len(stages):
        raise _differs(template, f"{len(documents)} documents", f"{len(stages)}")
    for document, stage in zip(documents, stages, strict=True):
        found = normal(document)
        if stage is not stages[-1]:
            found.pop("name", None)  # what an intermediate model is called; the stage that uses it names it among its inputs
        meant = stage.document()
        for key in dict.fromkeys([*meant, *found]):
            if meant.get(key) != found.get(key):
                raise _differs(template, f"{key}: {found.get(key)!r}", f"{meant.get(key)!r}")


def _differs(template: str, found: str, meant: str) -> Malformed:
    return Malformed(
        f"templates/{template} rendered {found[:300]}, the plan means {meant[:300]}",
        "correct the template; `model-merging check` renders every one",
    )


def _drop(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value not in (None, {}, [])}
