"""Names, shapes and dtypes of the output against its config, its index and its base."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from mcp_server.formats.dtypes import named_dtype
from mcp_server.formats.identity import config_field
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensor_names import split_layer
from mcp_server.formats.tensors import StoredTensor, read_json
from mcp_server.recompute.merge import Merge
from mcp_server.recompute.pass_over import DTYPES
from mcp_server.recompute.reading import is_float
from mcp_server.recompute.sources import is_embedding, is_head
from mcp_server.schemas.evidence import Check


def checks(merge: Merge) -> Iterator[Check]:
    """The structure's checks, in the order in which a reader wants them."""
    if merge.is_adapter:
        yield _adapter_targets(merge)
        return
    yield _index(merge)
    yield _layers(merge)
    if merge.base is not None and (merge.recipe is None or merge.missing) and not _sliced(merge):
        yield _same_tensors(merge)
    yield _dtype(merge)


def _sliced(merge: Merge) -> bool:
    """Recipes built from slices may repeat or drop layers; then the base's list of tensors says nothing."""
    return merge.recipe is not None and (merge.recipe.sliced or merge.recipe.in_parts)


def _index(merge: Merge) -> Check:
    """Index and shards say the same, and no stale weight file lies beside them."""
    index = merge.folder / "model.safetensors.index.json"
    used = {file.name for file in merge.files}
    stale = sorted(file.name for file in merge.folder.glob("*.safetensors") if file.name not in used)
    if stale:
        detail = f"{stale[0]} is not one of the model's files but a loader may read it; remove it"
        return Check(name="index", passed=False, detail=detail)
    if not index.is_file():
        return Check(name="index", passed=True, detail="one file, no index needed")
    table: dict[str, str] = read_json(index)["weight_map"]
    held = {name for file in merge.files for name in read_header(file).tensors}
    if unlisted := sorted(held - set(table)):
        detail = f"{len(unlisted)} tensors are in the shards and not in the index, such as {unlisted[0]}"
        return Check(name="index", passed=False, detail=detail)
    wrong = [name for file in merge.files for name in read_header(file).tensors if table[name] != file.name]
    if wrong:
        return Check(name="index", passed=False, detail=f"the index puts {wrong[0]} into {table[wrong[0]]}, where it is not")
    return Check(name="index", passed=True, detail=f"{len(table)} tensors in {len(set(table.values()))} shards, as indexed")


def _layers(merge: Merge) -> Check:
    """Some stack has the layers that config.json counts, from 0 on. A config that miscounts its own base too says nothing."""
    wanted = config_field(merge.config, "layers")
    found = _stacks(merge.tensors)
    if not found:
        return Check(name="layers", passed=True, detail="no tensor name is a layer's; nothing to count")
    fault = _miscount(found, wanted)
    if fault and merge.base is not None and _miscount(_stacks(merge.base.tensors), config_field(merge.base.config, "layers")):
        fault = ""
    if fault:
        return Check(name="layers", passed=False, detail=fault)
    shown = ", ".join(f"{len(layers)} {stack}" for stack, layers in found.items())
    return Check(name="layers", passed=True, detail=f"layers: {shown[:300]}")


def _stacks(names: Iterable[str]) -> dict[str, set[int]]:
    stacks: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if found := split_layer(name):
            stacks[found[0]].add(found[1])
    return stacks


def _miscount(stacks: dict[str, set[int]], wanted: int | None) -> str:
    """What is wrong with the number of layers; '' when some stack agrees with the config."""
    if not stacks or wanted is None or any(layers >= set(range(wanted)) for layers in stacks.values()):
        longest = max(stacks.values(), key=len, default=set())
        surplus = wanted is not None and len(stacks) == 1 and len(longest) > wanted and not _next_token(longest, wanted)
        return f"config.json says {wanted} layers, the weights have {len(longest)}" if surplus else ""
    longest = max(stacks.values(), key=len)
    if len(longest) < wanted or not set(range(len(longest))) - longest:
        return f"config.json says {wanted} layers, the weights have {len(longest)}"
    return f"layer {min(set(range(wanted)) - longest)} is missing"


def _next_token(layers: set[int], wanted: int) -> bool:
    """A few layers beyond the config's number may be next-token heads."""
    return 0 < len(layers) - wanted <= 3


def _same_tensors(merge: Merge) -> Check:
    assert merge.base is not None
    wanted, found = merge.base.tensors, merge.tensors
    optional = {name for name in {**wanted, **found} if is_head(name)}
    optional |= {name for name, tensor in wanted.items() if not is_float(tensor.dtype)}
    if absent := sorted(set(wanted) - set(found) - optional):
        return Check(name="tensors", passed=False, detail=f"{len(absent)} tensors of the base are missing, such as {absent[0]}")
    if extra := sorted(set(found) - set(wanted) - optional):
        return Check(name="tensors", passed=None, detail=f"{len(extra)} tensors are not in the base, such as {extra[0]}")
    for name, tensor in found.items():
        if name in wanted and tensor.shape != wanted[name].shape and not (is_embedding(name) or is_head(name)):
            shapes = f"{list(tensor.shape)} instead of {list(wanted[name].shape)}"
            return Check(name="tensors", passed=False, detail=f"{name} has shape {shapes}")
    return Check(name="tensors", passed=True, detail=f"all {len(wanted)} tensors of the base, each with its shape")


def _dtype(merge: Merge) -> Check:
    """The weights are in the dtype that the recipe asks for; config.json names it, or is as wrong about the base's."""
    counts = _counts(merge.tensors.values())
    if not counts:
        return Check(name="dtype", passed=True, detail="no tensor holds floating-point values")
    main = counts.most_common(1)[0][0]
    asked = (merge.recipe.out_precision or "").removeprefix("torch.") if merge.recipe and not merge.assumed else ""
    mixed = "" if len(counts) == 1 else f"; also {', '.join(f'{n} in {d}' for d, n in counts.most_common()[1:])}"
    packed = any(tensor.packed is not None for tensor in merge.tensors.values())  # then stored as one of its models is
    if asked and DTYPES.get(asked, main) != main and not packed:
        return Check(name="dtype", passed=False, detail=f"the recipe asks for {asked}, the weights are {main}")
    named = named_dtype(merge.config)
    if named is not None and DTYPES.get(named, main) != main and not _base_misnames(merge):
        return Check(
            name="dtype", passed=False, detail=f"config.json says {named}, the weights are {main}: loaders would convert"
        )
    return Check(name="dtype", passed=True, detail=f"{counts[main]} tensors in {main}{mixed}")


def _counts(tensors: Iterable[StoredTensor]) -> Counter[str]:
    return Counter(tensor.dtype for tensor in tensors if is_float(tensor.dtype))


def _base_misnames(merge: Merge) -> bool:
    if merge.base is None or (named := named_dtype(merge.base.config)) is None:
        return False
    counts = _counts(merge.base.tensors.values())
    return bool(counts) and DTYPES.get(named) not in (None, counts.most_common(1)[0][0])


def _adapter_targets(merge: Merge) -> Check:
    if merge.base is None:
        reason = merge.missing.get("the base", "no recipe names it")
        return Check(name="tensors", passed=None, detail=f"the base that the adapter belongs to could not be opened: {reason}")
    count = len(merge.adapter.touched) if merge.adapter else 0
    return Check(name="tensors", passed=count > 0, detail=f"an adapter that changes {count} tensors of its base")
