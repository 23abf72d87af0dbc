"""Signals about how the sources stand to each other, pair by pair."""

from __future__ import annotations

import itertools
from typing import Any

from mcp_server.catalog.signals.registry import signal
from mcp_server.catalog.signals.sources import trained
from mcp_server.schemas.scenario import Relation, Scenario


def pair_relations(scenario: Scenario) -> list[tuple[tuple[str, str], Relation]]:
    """Every pair of trained sources with its relation: the pair's own fields over the scenario's `relation`."""
    shared = (scenario.relation or Relation()).model_dump()
    own = {frozenset(r.between): r.model_dump(exclude={"between"}) for r in scenario.relations or []}
    names = [name for name, _ in trained(scenario)]
    pairs = itertools.combinations(names, 2)
    return [
        (pair, Relation(**{k: v if v is not None else shared[k] for k, v in own.get(frozenset(pair), shared).items()}))
        for pair in pairs
    ]


def values(scenario: Scenario, field: str) -> list[Any]:
    """What the pairs say about one field; without pairs, what the scenario's `relation` says."""
    found = [getattr(relation, field) for _, relation in pair_relations(scenario)]
    if not found and scenario.relation is not None:
        found = [getattr(scenario.relation, field)]
    return [value for value in found if value is not None]


@signal
def data_overlap(scenario: Scenario) -> float | None:
    """The largest share of training data that any two sources have in common."""
    return max(values(scenario, "data_overlap"), default=None)


@signal
def capabilities(scenario: Scenario) -> str | None:
    """The worst relation of any two sources' capabilities: conflicting, partial, or complementary (when every pair is)."""
    found = values(scenario, "capabilities")
    if worst := next((c for c in ("conflicting", "partial") if c in found), None):
        return worst
    return "complementary" if found and len(found) >= len(pair_relations(scenario)) else None


@signal
def worst_pair(scenario: Scenario) -> str | None:
    """The pair that conflicts most, or overlaps most: named in messages when there are three or more sources."""
    order = {"conflicting": 2.0, "partial": 1.0, "complementary": 0.0, None: 0.0}
    pairs = pair_relations(scenario)
    if not pairs:
        return None
    pair, _ = max(pairs, key=lambda item: (order[item[1].capabilities], item[1].data_overlap or 0.0))
    return " and ".join(pair)


@signal
def unlisted_pairs(scenario: Scenario) -> int:
    """With three or more sources and pairwise relations: how many pairs are described by nothing."""
    if not scenario.relations:
        return 0
    empty = Relation()
    return sum(relation == empty for _, relation in pair_relations(scenario))


@signal
def similarity(scenario: Scenario) -> str | None:
    """'similar' when every pair is, 'distinct' when one pair is distinct."""
    found = values(scenario, "similarity")
    if "distinct" in found:
        return "distinct"
    return "similar" if found and len(found) >= len(pair_relations(scenario)) else None


@signal
def redundant_deltas(scenario: Scenario) -> bool | None:
    """Whether most of what the sources changed is redundant (small and repeated)."""
    found = values(scenario, "redundant_deltas")
    return any(found) if found else None


@signal
def sign_disagreement(scenario: Scenario) -> float | None:
    """The largest measured share of parameters that two sources push in opposite directions (0.5 for unrelated vectors)."""
    return max(values(scenario, "sign_disagreement"), default=None)


@signal
def cosine(scenario: Scenario) -> float | None:
    """The largest cosine of any two task vectors: near 1 they are copies, and what they have in common adds up."""
    return max(values(scenario, "cosine"), default=None)


@signal
def least_cosine(scenario: Scenario) -> float | None:
    """The smallest cosine of any two task vectors, where every pair's is known: near 1 all sources are copies of one."""
    found = [relation.cosine for _, relation in pair_relations(scenario)]
    known = [value for value in found if value is not None]
    return min(known) if known and len(known) == len(found) else None


@signal
def nearest_pair(scenario: Scenario) -> str | None:
    """The two sources whose task vectors have the largest cosine."""
    known = [(relation.cosine, pair) for pair, relation in pair_relations(scenario) if relation.cosine is not None]
    return " and ".join(max(known)[1]) if known else None


@signal
def widest_cosine(scenario: Scenario) -> float | None:
    """The cosine of two task vectors that is farthest from zero, of either sign; unknown until every pair's is."""
    found = [relation.cosine for _, relation in pair_relations(scenario)]
    known = [value for value in found if value is not None]
    return max(known, key=abs) if known and len(known) == len(found) else None


@signal
def apart(scenario: Scenario) -> bool | None:
    """Whether the sources' changes are measured to be near-orthogonal while nothing says that skills or data overlap."""
    from mcp_server.catalog import threshold

    cos = widest_cosine(scenario)
    if cos is None:
        return None
    shared = data_overlap(scenario) or 0.0
    said = capabilities(scenario) in ("partial", "conflicting") or shared >= threshold("overlap_caution")
    return abs(cos) <= threshold("near_orthogonal") and not said and redundant_deltas(scenario) is not True


@signal
def mutual_leak(scenario: Scenario) -> float | None:
    """The rate at which each of two sources answers the other's prompts in its own way: the smaller of the two, highest pair.

    Unknown until both were asked. Pairs whose changes overlap (cosine) are left out: they may have one behaviour in common. A
    context that `own_context` does not give has the name of its source.
    """
    from mcp_server.catalog import threshold

    own, rates = scenario.own_context or {}, scenario.cross_context or {}
    found = []
    for (one, other), relation in pair_relations(scenario):
        rate, back = (rates.get(a, {}).get(own.get(b, b)) for a, b in ((one, other), (other, one)))
        overlap = relation.cosine is not None and abs(relation.cosine) > threshold("near_orthogonal")
        if rate is not None and back is not None and not overlap:
            found.append(min(rate, back))
    return max(found, default=None)


@signal
def different_skills(scenario: Scenario) -> bool | None:
    """Whether the sources learnt different things: measured apart, or said to be complementary and no near copies."""
    from mcp_server.catalog import threshold

    copies = (cosine(scenario) or 0.0) >= threshold("near_copy")
    return True if apart(scenario) or (capabilities(scenario) == "complementary" and not copies) else None


@signal
def low_conflict_figures(scenario: Scenario) -> bool | None:
    """Whether measured weight statistics look harmless (|cosine| under 0.1, no sign majority): no reason to call it safe."""
    cos, sign = max(values(scenario, "cosine"), key=abs, default=None), sign_disagreement(scenario)
    if cos is None and sign is None:
        return None
    return (cos is None or abs(cos) < 0.1) and (sign is None or sign <= 0.55)
