"""How a right merge is spoilt: values, tensors, layers, experts, files, or the weights of another recipe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.damage.families import Family
from tests.engine.synthetic import Tensors, load, save

Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """A copy of a right merge, to be damaged. `models` holds what it was made from; one of `told` has to be named."""

    family: Family
    models: Path
    out: Path
    told: list[str] = field(default_factory=list)
    seed: int = 5

    @property
    def file(self) -> Path:
        return self.out / ("adapter_model.safetensors" if self.family.adapter else "model.safetensors")

    def whole(self) -> Tensors:
        return load(self.out)

    def source(self, name: str) -> Tensors:
        """The tensors of a model; of base+adapter what it makes of them is not needed."""
        return load(self.models / name)

    def put(self, changed: Tensors, drop: tuple[str, ...] = (), dtype: str = "") -> None:
        kept = {name: values for name, values in (self.whole() | changed).items() if name not in drop}
        save(self.file, kept, dtype or self.family.dtype)
        self.told += [*changed, *drop]

    def change(self, role: str, change: Callable[[Array], Array]) -> None:
        name = self.family.roles[role]
        self.put({name: change(self.whole()[name])})

    def edit(self, file: str, **changes: Any) -> None:
        path = self.out / file
        held = json.loads(path.read_text("utf-8"))
        known = {key: value for key, value in changes.items() if key in held or key == "dtype"}
        rope = held.get("rope_parameters")  # where transformers 5 saves what concerns the positions
        known |= {"rope_parameters": rope | {k: v for k, v in changes.items() if k in rope}} if isinstance(rope, dict) else {}
        path.write_text(json.dumps(held | known), encoding="utf-8")
        self.told += [file, *changes]

    def again(self, told: list[str] | None = None, seed: int = 5, **recipe: Any) -> None:
        """Take the weights of a merge by another recipe, and nothing else of it."""
        other = self.out.with_name(f"{self.out.name}-again")
        self.family.merge(other, self.family.recipe(self.models, **recipe), seed)
        self.file.write_bytes((other / self.file.name).read_bytes())
        self.told += told or list(self.family.shapes)


Act = Callable[[Case], None]


def on(role: str, change: Callable[[Array], Array]) -> Act:
    return lambda case: case.change(role, change)


def taken(role: str, model: str) -> Act:
    """A tensor as another model has it."""

    def act(case: Case) -> None:
        name = case.family.roles[role]
        case.put({name: case.source(model)[name]})

    return act


def swapped(role: str, other: str) -> Act:
    def act(case: Case) -> None:
        names, whole = (case.family.roles[role], case.family.roles[other]), case.whole()
        case.put({names[0]: whole[names[1]], names[1]: whole[names[0]]})

    return act


def blocks(order: tuple[int, ...], sizes: tuple[int, ...], axis: int = 0) -> Callable[[Array], Array]:
    """The pieces of an array along an axis, in another order."""

    def change(values: Array) -> Array:
        parts = np.split(values, np.cumsum(sizes)[:-1], axis)
        return np.concatenate([parts[i] for i in order], axis)

    return change


def some(index: Any, value: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Another value at an index."""

    def change(values: Array) -> Array:
        changed = values.copy()
        changed[index] = value(values[index])
        return changed

    return change


def coarser(values: Array) -> Array:
    """Six bits after the point fewer than bfloat16 has."""
    step = np.exp2(np.floor(np.log2(np.abs(values) + 1e-30)) - 3)
    return np.trunc(values / step) * step


def interleaved(values: Array) -> Array:
    """Rotary halves of each of four heads interleaved, as converters between layouts do."""
    return values.reshape(4, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def in_layers(order: tuple[int, ...]) -> Act:
    """Each layer of the stack holds another one's weights."""

    def act(case: Case) -> None:
        stem, whole = case.family.roles["stack"], case.whole()
        changed = {}
        for number, other in enumerate(order):
            for name in whole:
                if name.startswith(f"{stem}.{number}."):
                    changed[name] = whole[f"{stem}.{other}." + name.removeprefix(f"{stem}.{number}.")]
        case.put(changed)

    return act


def without(start: Callable[[Case], str]) -> Act:
    def act(case: Case) -> None:
        case.put({}, drop=tuple(name for name in case.whole() if name.startswith(start(case))))

    return act


def experts(change: Callable[[Case, str, str, Tensors], Array]) -> Act:
    """Each matrix of one expert changed: (case, its name, its name in another expert, the merge's tensors) → values."""

    def act(case: Case) -> None:
        one, other, whole = case.family.roles["expert"], case.family.roles["other expert"], case.whole()
        case.put({n: change(case, n, n.replace(one, other), whole) for n in whole if n.startswith(one)})

    return act


def stacks_swapped(case: Case) -> None:
    one, other, whole = case.family.roles["stack"], case.family.roles["other stack"], case.whole()
    pairs = [(name, name.replace(one, other)) for name in whole if name.startswith(one)]
    case.put({a: whole[b] for a, b in pairs if b in whole} | {b: whole[a] for a, b in pairs if b in whole})


def cut_rows(case: Case) -> None:
    """A vocabulary without its last rows, as a converter that strips padding leaves it; config.json still counts them."""
    names = {case.family.roles[role] for role in ("embedding", "head") if role in case.family.roles}
    case.put({name: case.whole()[name][:-8] for name in names})


def all_of(model: str) -> Act:
    def act(case: Case) -> None:
        case.put(case.source(model))

    return act


def own_head(case: Case) -> None:
    embedding = case.whole()[case.family.roles["embedding"]]
    case.put({"lm_head.weight": embedding[::-1]})
    case.told.append("output head")


def stale_shard(case: Case) -> None:
    (case.out / "model-00001-of-00002.safetensors").write_bytes((case.models / "base" / "model.safetensors").read_bytes())
    case.told.append("model-00001-of-00002.safetensors")


def truncated(case: Case) -> None:
    case.file.write_bytes(case.file.read_bytes()[:-64])
    case.told.append(case.file.name)


def other_dtype(case: Case) -> None:
    case.put({}, dtype="float16" if case.family.dtype != "float16" else "bfloat16")
    case.told.append("weights")


def other_vocabulary(case: Case) -> None:
    """Another tokenizer of as many words: each id stands for another word."""
    path = case.out / "tokenizer.json"
    table = json.loads(path.read_text("utf-8"))
    words = table["model"]["vocab"]
    table["model"]["vocab"] = dict(zip(words, [*range(3), *reversed(range(3, len(words)))], strict=True))
    path.write_text(json.dumps(table), encoding="utf-8")
    case.told.append("tokenizer")


def removed(*files: str) -> Act:
    def act(case: Case) -> None:
        for file in files:
            (case.out / file).unlink()
        case.told += ["tokenizer", "chat template", *files]

    return act


def factor(part: str, change: Callable[[Array], Array]) -> Act:
    """A factor of one module of an adapter changed; the weight that it changes has to be named."""

    def act(case: Case) -> None:
        module = case.family.adapted[1]
        name = f"base_model.model.{module}.lora_{part}.weight"
        case.put({name: change(case.whole()[name])})
        case.told = [f"{module}.weight"]

    return act


def module_left_out(case: Case) -> None:
    module = case.family.adapted[1]
    case.put({}, drop=tuple(name for name in case.whole() if f".{module}." in name))
    case.told = [f"{module}.weight"]


def modules_swapped(case: Case) -> None:
    one, other = (f"base_model.model.{case.family.adapted[i]}.lora_B.weight" for i in (0, 3))
    whole = case.whole()
    case.put({one: whole[other], other: whole[one]})
    case.told = [f"{case.family.adapted[0]}.weight"]


def adapter_setting(**changes: Any) -> Act:
    def act(case: Case) -> None:
        case.edit("adapter_config.json", **changes)
        case.told = [f"{module}.weight" for module in case.family.adapted]

    return act


def sources_with(change: Callable[[Path], None], told: Callable[[Case], list[str]]) -> Act:
    """Fold the adapters in another state: `change` spoils copies of them first."""

    def act(case: Case) -> None:
        spoilt = case.out.with_name(f"{case.out.name}-sources")
        shutil.copytree(case.models, spoilt)
        for name in ("one", "two"):
            change(spoilt / name)
        whole = Case(case.family, spoilt, case.out, [], case.seed)
        whole.again(told(case))
        case.told += whole.told

    return act


def config(**changes: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), encoding="utf-8")

    return change


def factors(change: Callable[[str, Tensors], Array | None]) -> Callable[[Path], None]:
    def act(adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        found = load(adapter)
        save(file, {name: new for name in found if (new := change(name, found)) is not None}, "float32")

    return act


def turned(name: str, found: Tensors) -> Array:
    """Factors of the update's transpose, where the weight is square."""
    if ".q_proj.lora_A" in name:
        return found[name.replace("lora_A", "lora_B")].T
    if ".q_proj.lora_B" in name:
        return found[name.replace("lora_B", "lora_A")].T
    return found[name]


def adapted(case: Case) -> list[str]:
    return [f"{module}.weight" for module in case.family.adapted]


def named(*roles: str) -> Callable[[Case], list[str]]:
    return lambda case: [case.family.roles[role] for role in roles]
