"""Whether sources stand on the base that they would be merged on: by name, by folder, by the weights themselves.

Three answers. Yes: the same folder, the same name, or equal weights. No: two hub names that differ, or weights that differ in a
base that both name. Unknown: a name of a model that is not here, beside a folder whose origin nothing tells.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.catalog.signals.bases import same_name
from mcp_server.errors import MergingError
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.folder import folder_of
from mcp_server.formats.hub.copies import is_copy
from mcp_server.formats.refs import is_hub_id, resolve_ref
from mcp_server.formats.tensor_names import is_before_layers, vocabulary_tensor
from mcp_server.formats.tensors import FLOATS, StoredTensor, read_json
from mcp_server.recompute.reading import read_rows, spans
from mcp_server.schemas.inspect import Difference, SourceInfo

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

UNRELATED: Final = 0.5
"""Cosine of the weights themselves. Fine-tunes of one model stay above 0.9; models trained from different starts are near 0."""
SAMPLED_TENSORS: Final = 6
_SNAPSHOT: Final = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")


def names_of(base: SourceInfo) -> list[str]:
    """Every name by which a base may be called: its ref, its folder, its hub id in the cache, what its config says."""
    found = [base.ref]
    if base.path:
        found.append(Path(base.path).name)
        if snapshot := _SNAPSHOT.search(base.path):
            found.append(f"{snapshot[1]}/{snapshot[2]}")
        named = read_json(folder_of(base.path) / "config.json").get("_name_or_path")
        if isinstance(named, str) and named:
            found.append(named)
    return found


def is_base(named: str, base: SourceInfo) -> bool | None:
    """Whether the base that an adapter names is this one; None when nothing decides it."""
    if same_name(named) in {same_name(name) for name in names_of(base)}:
        return True
    folder = local_folder(named)
    if folder is not None and base.path and not base.revision:
        if folder.resolve() == Path(base.path).resolve():
            return True
        return equal_weights(folder, Path(base.path))
    hubs = {same_name(name) for name in names_of(base) if is_hub_id(name) and "/" in name}
    return False if hubs and is_hub_id(named) and "/" in named else None


def local_folder(named: str) -> Path | None:
    """The folder of a base that is on this machine, else None."""
    try:
        folder = Path(resolve_ref(named, Path.cwd()))
    except MergingError:
        return None
    return folder if folder.is_absolute() and folder.is_dir() else None


def same_base(one: str, other: str) -> bool | None:
    """Whether two names of bases mean one model."""
    if same_name(one) == same_name(other):
        return True
    first, second = local_folder(one), local_folder(other)
    if first is not None and second is not None:
        return first.resolve() == second.resolve() or equal_weights(first, second)
    return False if all(is_hub_id(name) and "/" in name for name in (one, other)) else None


def equal_weights(one: Path, other: Path) -> bool | None:
    """Whether two checkpoints hold the same weights, by samples; None when one of them cannot be read."""
    first, second = tensors_of(one), tensors_of(other)
    if first is None or second is None:
        return None
    names = sampled(first, second)
    if not names or {n: t.shape for n, t in first.items()} != {n: t.shape for n, t in second.items()}:
        return False
    return all((values(first[name]) == values(second[name])).all() for name in names)


def base_differences(sources: list[SourceInfo], base: SourceInfo | None) -> list[Difference]:
    """Adapters that name another base than the one given, or, without one, than each other."""
    adapters = {s.ref: s.adapter.base for s in sources if s.adapter and s.adapter.base}
    if base is not None:
        answers = {ref: is_base(named, base) for ref, named in adapters.items()}
    else:
        first = next(iter(adapters.values()), "")
        answers = {ref: same_base(first, named) for ref, named in adapters.items()}
    odd = {ref: answer for ref, answer in answers.items() if answer is not True}
    if not odd:
        return []
    given = {base.ref: base.ref} if base is not None else {}
    values_ = {**given, **(adapters if base is None else {ref: adapters[ref] for ref in odd})}
    noise = "each ΔW belongs to the model that it was trained on; on another one it is noise"
    if False in odd.values():
        return [Difference(field="adapter_base", values=values_, meaning="fatal", why=f"trained on different bases: {noise}")]
    why = f"the config names another base, which is not here to compare: {noise}. Name the base that it was trained on"
    return [Difference(field="adapter_base", values=values_, meaning="caution", why=why)]


def unrelated_weights(models: list[SourceInfo]) -> list[Difference]:
    """Full models of one shape whose weights have nothing in common: they were not trained from one model."""
    here = [m for m in models if m.path and m.kind == "full"]
    if len(here) < 2:
        return []
    opened = [(m.ref, t) for m in here if (t := tensors_of(Path(str(m.path)))) is not None]
    far: dict[str, Any] = {}
    for ref, tensors in opened[1:]:
        cosine = weight_cosine(opened[0][1], tensors)
        if cosine is not None and cosine < UNRELATED:
            far[ref] = round(cosine, 3)
    if not far:
        return []
    why = (
        f"weights that point elsewhere than those of {opened[0][0]} (cosine): trained from different starts, so no average holds"
    )
    return [Difference(field="weights", values=far, meaning="fatal", why=why)]


def tensors_of(folder: Path) -> dict[str, StoredTensor] | None:
    """Where a model's tensors lie; None for what the engine cannot read (the inspection says why), and for headers alone."""
    if is_copy(folder):
        return None
    try:
        return open_checkpoint(str(folder)).tensors
    except MergingError:
        return None


def weight_cosine(one: dict[str, StoredTensor], other: dict[str, StoredTensor]) -> float | None:
    """Cosine of two models' sampled weights; None when they share no tensor, or one of them is all zeros."""
    product = first = second = 0.0
    for name in sampled(one, other):
        a, b = values(one[name]), values(other[name])
        product, first, second = product + float(a @ b), first + float(a @ a), second + float(b @ b)
    return product / math.sqrt(first * second) if first > 0 and second > 0 else None


def sampled(*models: dict[str, StoredTensor]) -> list[str]:
    """A few large matrices that all models have with one shape, spread over the depth; embeddings come last."""
    first, *others = models
    alike = [
        name
        for name, tensor in first.items()
        if len(tensor.shape) == 2
        and all(name in m and m[name].shape == tensor.shape for m in others)
        and all(m[name].dtype in FLOATS for m in models)
    ]
    inner = [name for name in alike if not (is_before_layers(name) or vocabulary_tensor(name))] or alike
    step = max(1, len(inner) // SAMPLED_TENSORS)
    return inner[::step][:SAMPLED_TENSORS]


def values(tensor: StoredTensor) -> Array:
    """Three small ranges of a tensor as one vector."""
    import numpy as np

    return np.concatenate([read_rows(tensor, *span).ravel() for span in spans(tensor.shape, full=False)])
