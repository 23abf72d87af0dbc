"""Look before speaking: what the sources' and the base's files say, added to what the scenario says.

Headers, configs and small samples of the weights, as `inspect` reads them: milliseconds; of a hub id that is not on this machine
headers only, from the hub. What cannot be reached stays unknown. Where a file contradicts the scenario the file is believed, and
the plan says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mcp_server.catalog import threshold
from mcp_server.catalog.signals import SeenScenario, source_names
from mcp_server.catalog.signals.relations import pair_relations
from mcp_server.errors import MergingError
from mcp_server.formats.hub.copies import is_copy
from mcp_server.formats.refs import is_hub_id
from mcp_server.formats.source import inspect_source
from mcp_server.schemas.inspect import Difference, Inspection, SourceInfo
from mcp_server.schemas.plan import Observed
from mcp_server.schemas.scenario import PairRelation, Scenario, ScenarioSource
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.recommend.measure import Figures, measure

SHAPES: Final = frozenset({"architecture", "hidden", "intermediate", "heads", "kv_heads", "layers", "tensors", "adapter_shape"})
SETTINGS: Final = frozenset({"rope_theta", "rope_scaling", "hidden_act", "sliding_window", "tied_embeddings"})


def look(scenario: Scenario, figures: Figures | None = None) -> SeenScenario:
    """The scenario with what its files say. `figures` are a comparison's, and win over what is sampled here."""
    given = SeenScenario(**{name: getattr(scenario, name) for name in Scenario.model_fields})
    names = source_names(scenario)
    refused: dict[str, str] = {}
    found = {
        name: info
        for name, s in zip(names, scenario.sources or [], strict=True)
        if s.ref and (info := _open(s.ref, name, refused))
    }
    named = scenario.base_model if scenario.base_model and scenario.base_model.lower() != "none" else None
    base = _open(named, f"the base {named}", refused) if named else None
    absent = [name for name, s in zip(names, scenario.sources or [], strict=True) if s.ref and name not in found]
    absent += [f"the base {named}"] if named and base is None else []
    absent = [f"{name} ({refused[name]})" if name in refused else name for name in absent]
    if not found:
        nothing_named = not any(source.ref for source in scenario.sources or [])
        return given if nothing_named else given.model_copy(update={"observed": Observed(unreachable=_joined(absent))})
    seen = inspect_models([info.ref for info in found.values()], base=base.ref if base else None)
    titles = {info.ref: name for name, info in found.items()} | ({base.ref: "base"} if base else {})
    kinds = {name: next(s for s in seen.sources if s.ref == info.ref) for name, info in found.items()}
    measured = figures or _measured(kinds, base, seen)
    observed = _observed(seen, titles, kinds, base).model_copy(
        update={
            "looked_at": list(found),
            "unreachable": _joined(absent),
            "said_otherwise": _joined([*_contradictions(scenario, names, kinds), *_unlike(scenario, measured)]),
            "damaged": _damaged(measured),
            "relative_norm": measured.relative_norm,
            "measured_by": measured.origin,
        }
    )
    bases_agree = not any(d.field == "adapter_base" for d in seen.differences)
    sources = [
        _completed(source, kinds.get(name), _usable(measured.norms.get(name)), take_base=bases_agree and named is None)
        for name, source in zip(names, scenario.sources or [], strict=True)
    ]
    relations = _relations(scenario, measured)
    return given.model_copy(update={"sources": sources, "relations": relations, "observed": observed})


def _open(ref: str, name: str, refused: dict[str, str]) -> SourceInfo | None:
    """What a ref is, or None when it is not here, or no path at all. Adds what a hub refused to `refused`, by name."""
    try:
        return inspect_source(ref)
    except MergingError as error:
        if error.details.get("on_hub") or not is_hub_id(ref):
            refused[name] = error.message
        return None


def _measured(kinds: dict[str, SourceInfo], base: SourceInfo | None, seen: Inspection) -> Figures:
    misfit = any(d.meaning == "fatal" and d.field != "weights" for d in seen.differences)
    if misfit:
        return Figures()
    folder = Path(base.path) if base is not None and base.kind == "full" and base.path is not None else None
    carrying = {
        name: (Path(info.path), info.kind == "lora")
        for name, info in kinds.items()
        if info.path and info.kind in ("full", "lora") and Path(info.path) != folder and not is_copy(Path(info.path))
    }
    return measure(folder, carrying) if carrying else Figures()


def _observed(seen: Inspection, titles: dict[str, str], kinds: dict[str, SourceInfo], base: SourceInfo | None) -> Observed:
    by_field: dict[str, Difference] = {d.field: d for d in seen.differences}

    def told(fields: Iterable[str], meanings: Iterable[str]) -> str | None:
        hits = [by_field[f] for f in by_field if f in fields and by_field[f].meaning in meanings]
        return _joined([f"{d.field} ({_values(d, titles)})" for d in hits])

    bases = by_field.get("adapter_base")
    of_bases = _values(bases, titles) if bases else None
    return Observed(
        compatible=seen.compatible,
        misfits=told(SHAPES, ("fatal",)),
        other_base=of_bases if bases and bases.meaning == "fatal" else None,
        doubtful_base=of_bases if bases and bases.meaning != "fatal" else None,
        unrelated=told({"weights"}, ("fatal",)),
        unusable=_joined(
            [
                f"{name} ({info.detail})"
                for name, info in kinds.items()
                if info.kind != "lora" and not info.is_model and not info.is_undecided
            ]
        ),
        quantised_base=base.detail if base and base.kind == "quantised" else None,
        tokenizers=told({"vocabulary", "tokenizer"}, ("needs_tokenizer_block", "caution")),
        templates=told({"chat_template_hash"}, ("caution",)),
        settings=told(SETTINGS, ("caution",)),
    )


def _values(difference: Difference, titles: dict[str, str]) -> str:
    return ", ".join(f"{titles.get(ref, ref)}: {value}" for ref, value in difference.values.items() if value is not None)


def _contradictions(scenario: Scenario, names: list[str], kinds: dict[str, SourceInfo]) -> list[str]:
    found = []
    for name, source in zip(names, scenario.sources or [], strict=True):
        if (info := kinds.get(name)) is None:
            continue
        for field, there in _facts(info).items():
            said = getattr(source, field)
            if said is not None and there is not None and said != there:
                found.append(f"{name}: {field} is {there}, not {said}")
    return found


def _unlike(scenario: Scenario, measured: Figures) -> list[str]:
    """Pairs whose task vectors lie otherwise than the scenario's `similarity` has it."""
    said = {pair: relation.similarity for pair, relation in pair_relations(scenario)}
    found = []
    for pair, figures in measured.pairs.items():
        similarity, cosine = said.get(pair) or said.get((pair[1], pair[0])), figures.get("cosine")
        if similarity is None or cosine is None:
            continue
        other = abs(cosine) <= threshold("near_orthogonal") if similarity == "similar" else cosine >= threshold("near_copy")
        if other:
            found.append(f"{' and '.join(pair)} are not {similarity}, the cosine of their changes is {cosine:.2g}")
    return found


def _facts(info: SourceInfo) -> dict[str, Any]:
    """What a source's files say about fields of the scenario."""
    ranks = info.adapter.ranks if info.adapter else []
    kind = info.kind if info.kind in ("full", "lora") else None
    return {"kind": kind, "rank": max(ranks, default=None), "architecture": info.architecture}


def _completed(source: ScenarioSource, info: SourceInfo | None, norm: float | None, *, take_base: bool) -> ScenarioSource:
    if info is None:
        return source
    changes = {field: value for field, value in _facts(info).items() if value is not None}
    if take_base and source.base is None and info.adapter and info.adapter.base:
        changes["base"] = info.adapter.base
    if source.norm is None and norm is not None:
        changes["norm"] = norm
    return source.model_copy(update=changes)


def _relations(scenario: Scenario, measured: Figures) -> list[PairRelation] | None:
    """The scenario's pairs, each with its measured cosine and signs where it says none."""
    pairs = {frozenset(r.between): r for r in scenario.relations or []}
    shared = scenario.relation
    for between, figures in measured.pairs.items():
        key = frozenset(between)
        known = pairs.get(key) or PairRelation(between=between)
        new = {f: v for f, v in figures.items() if getattr(known, f) is None and (shared is None or getattr(shared, f) is None)}
        if new:
            pairs[key] = known.model_copy(update=new)
    return list(pairs.values()) or scenario.relations


def _usable(norm: float | None) -> float | None:
    return norm if norm is not None and math.isfinite(norm) else None


def _damaged(measured: Figures) -> str | None:
    """A task vector of no length, or of no number. Full models are sampled, so that nothing there is proof of nothing."""
    said = {0.0: "its change is zero throughout: it was never trained, or saved before training"}
    found = [f"{name} ({said[norm]})" for name, norm in measured.norms.items() if norm in said and measured.exact]
    found += [
        f"{name} (its change holds values that are no numbers)" for name, n in measured.norms.items() if not math.isfinite(n)
    ]
    return _joined(found)


def _joined(parts: list[str]) -> str | None:
    return "; ".join(parts) or None
