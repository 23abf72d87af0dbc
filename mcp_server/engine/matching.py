"""Which tensors the output has, and which stored tensor of each source stands for it: by name, once for the whole recipe.

A source may spell the names otherwise (a hub-style checkpoint without its class's prefix, a text model beside a multimodal
one); where exactly one change of prefix makes all of its names and shapes fit, they are read that way and the plan says so. A
tensor that only the donor has is kept from it when the source's own kind explains the absence; any other absence is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

from mcp_server.engine.sources import Source
from mcp_server.errors import Incompatible
from mcp_server.formats import tensor_names
from mcp_server.formats.identity import architecture_name, text_section
from mcp_server.formats.tensors import FLOATS
from mcp_server.formats.tied import lacks_head

SHOWN = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One tensor of the output: merged from all sources, or `kept` from the donor alone."""

    name: str
    kept: bool = False


def reconcile(donor: Source, source: Source) -> tuple[Source, str]:
    """The source with its names mapped to the donor's, and what was read how ('' when the names are alike)."""
    ours, theirs = donor.checkpoint.tensors, source.checkpoint.tensors
    strange = [name for name in theirs if name not in ours and tensor_names.split_layer(name)]
    if not strange or source.checkpoint is donor.checkpoint:
        return source, ""
    tail = strange[0]
    found: list[tuple[str, str, dict[str, str]]] = []
    for old, new in sorted(_changes(tail, ours)):
        mapped = {name: new + name.removeprefix(old) for name in theirs if name not in ours and name.startswith(old)}
        fits = all(own not in theirs and own in ours and ours[own].shape == theirs[name].shape for name, own in mapped.items())
        if fits and mapped.keys() >= set(strange) and len(set(mapped.values())) == len(mapped):
            found.append((old, new, mapped))
    if len(found) != 1:
        return source, ""
    old, new, mapped = found[0]
    said = (
        f"{source.ref} names its tensors {old}… where {donor.ref} has {new}…: they were matched that way ({len(mapped)} tensors)"
    )
    return replace(source, renamed={own: name for name, own in mapped.items()}), said


def _changes(name: str, names: Iterable[str]) -> set[tuple[str, str]]:
    """Every (old prefix, new prefix) that makes `name` one of `names`; what follows them starts at the layers or before."""
    found = tensor_names.split_layer(name)
    if found is None:
        return set()
    stack, number, rest = found
    kept = f"{stack.rpartition('.')[2]}.{number}.{rest}"
    changes = set()
    for other in names:
        if other == kept or other.endswith(f".{kept}"):
            old, new = name.removesuffix(kept), other.removesuffix(kept)
            while old and new and old.rstrip(".").rpartition(".")[2] == new.rstrip(".").rpartition(".")[2]:
                old, new = (part.rstrip(".").rpartition(".")[0] for part in (old, new))
                old, new = (f"{part}." if part else "" for part in (old, new))
            changes.add((old, new))
    return changes


def lines(donor: Source, sources: list[Source], *, skip: str | None = None) -> Iterator[Line]:
    """The output's tensors in the donor's order, then those that only tied models leave out. Raises `Incompatible` by name.

    `skip` is a stack of layers that is left out: slices make it.
    """
    for source in (donor, *sources):
        require_head(source)
    others = [source for source in sources if source is not donor]
    order = dict.fromkeys(donor.checkpoint.tensors)
    for source in others:
        back = {own: name for name, own in source.renamed.items()}
        for name, stored in source.checkpoint.tensors.items():
            if not (tensor_names.is_buffer(name, stored.shape) or stored.dtype not in FLOATS):
                order.setdefault(back.get(name, name))
    for name in order:
        if skip is not None and (found := tensor_names.split_layer(name)) and found[0] == skip:
            continue
        lacking = [source for source in sources if source.find(name) is None]
        if not lacking:
            yield Line(name)
            continue
        own = donor.checkpoint.tensors.get(name)
        if own is None or donor in lacking:
            _refuse(name, lacking[0], sources, order)
        if not (tensor_names.is_buffer(name, own.shape) or own.dtype not in FLOATS):
            for source in lacking:
                if not _explained(name, source, donor):
                    _refuse(name, source, sources, order)
        yield Line(name, kept=True)


def _refuse(name: str, lacks: Source, sources: list[Source], order: dict[str, None]) -> NoReturn:
    has = next((source.ref for source in sources if source.find(name)), "another source")
    absent = [other for other in order if lacks.find(other) is None]
    more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
    if tensor_names.is_head(name):
        why = "its config says that the head is not tied" if lacks.tied is False else "its config does not say that it is tied"
        raise Incompatible(
            f"{name!r} is missing in {lacks.ref}, and {why}, so nothing can stand for it{more}",
            "save that checkpoint again; if its head is tied to the embedding, say tie_word_embeddings: true in its config",
        )
    raise Incompatible(
        f"{name!r}{more} is in {has} but not in {lacks.ref}",
        "sources must share an architecture; check with `inspect`, or download that checkpoint again",
    )


def _explained(name: str, source: Source, donor: Source) -> bool:
    """Whether the source is of a kind that has no such tensor: no next-token head, or another class without that part."""
    if tensor_names.is_next_token(name) or _is_extra_layer(name, donor):
        return not any(map(tensor_names.is_next_token, source.parts))
    if architecture_name(source.checkpoint.config) == architecture_name(donor.checkpoint.config):
        return False
    words = name.split(".")
    prefixes = (".".join(words[:n]) + "." for n in range(1, len(words)))
    part = next((prefix for prefix in prefixes if prefix not in source.parts), None)
    inside = tensor_names.split_layer(name)
    return part is not None and not (inside and len(part) > len(inside[0]) + 1)


def _is_extra_layer(name: str, donor: Source) -> bool:
    """DeepSeek and GLM store their next-token layers as layers beyond the config's number."""
    found, config = tensor_names.split_layer(name), donor.checkpoint.config
    part = text_section(config)
    key = tensor_names.layer_key(part)
    return bool(found and key and part.get("num_nextn_predict_layers") and found[1] >= part[key])


def require_head(source: Source) -> None:
    """Raise `Incompatible` for a causal language model that is neither tied nor has a head: loaders would start one at random."""
    if lacks_head(source.checkpoint.config, {name: tensor.shape for name, tensor in source.checkpoint.tensors.items()}):
        raise Incompatible(
            f"{source.ref} stores no lm_head.weight and its config says that its head is not tied (tie_word_embeddings), "
            "so loaders would start that head at random",
            "download or save that checkpoint again, or say tie_word_embeddings: true in its config if that is what it is",
        )


def kept_warnings(donor: str, names: list[str]) -> Iterator[str]:
    """One sentence that names what comes from the donor alone, by its parts."""
    parts: dict[str, int] = {}
    for name in names:
        found = tensor_names.split_layer(name)
        part = f"{found[0]}.*" if found else name
        parts[part] = parts.get(part, 0) + 1
    if parts:
        shown = ", ".join(f"{part} ({count})" if count > 1 else part for part, count in list(parts.items())[:SHOWN])
        more = f" and {len(parts) - SHOWN} more parts" if len(parts) > SHOWN else ""
        yield f"{len(names)} tensors are only in {donor} and come from it unchanged: {shown}{more}"
