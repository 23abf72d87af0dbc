"""Signals: the facts that rules may read, each derived from the scenario by one named function.

A function returns a value, or None when the scenario does not say: unknown stays unknown. A rule that names a signal missing here
is refused at load, and a message can only quote signals from here, so no advice rests on something that nobody computed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any, Final

from mcp_server.core.models.scenario import Favour, Relation, Scenario, ScenarioSource

Facts = dict[str, Any]
SIGNALS: Final[dict[str, Callable[[Scenario], Any]]] = {}

_VOICE: Final = re.compile(r"persona|voice|tone|style|character|chat", re.IGNORECASE)
_TOOLS: Final = re.compile(r"json|tool|function|\bapi\b|agent|structured", re.IGNORECASE)
_UNSET: Final = "none"


def signal(function: Callable[[Scenario], Any]) -> Callable[[Scenario], Any]:
    SIGNALS[function.__name__] = function
    return function


def read_facts(scenario: Scenario) -> Facts:
    """Every signal's value for this scenario; None is unknown."""
    return {name: function(scenario) for name, function in SIGNALS.items()}


def source_names(scenario: Scenario) -> list[str]:
    """Names of the sources in order: the given one, else the last part of the ref, else `source1`, …; always distinct."""
    names: list[str] = []
    for number, source in enumerate(scenario.sources or [], 1):
        last = re.sub(r"[^\w.-]+", "_", (source.ref or "").rstrip("/").rpartition("/")[2]).strip("._")
        name = source.name or last or f"source{number}"
        names.append(name if name not in names else f"{name}_{number}")
    return names


def is_base(scenario: Scenario, source: ScenarioSource) -> bool:
    """True when a listed source is the base itself: its task vector is zero."""
    return bool(scenario.base_model) and source.ref == scenario.base_model and source.kind != "lora"


def trained(scenario: Scenario) -> list[tuple[str, ScenarioSource]]:
    """The sources that carry something learnt, by name: all but the base itself."""
    pairs = zip(source_names(scenario), scenario.sources or [], strict=True)
    return [(name, source) for name, source in pairs if not is_base(scenario, source)]


def same_name(base: str) -> str:
    """A base's name without owner, upper case, and suffixes of quantised copies ('unsloth/llama-3-8b-bnb-4bit')."""
    last = base.rstrip("/").rpartition("/")[2].lower()
    return re.sub(r"^meta-|-(unsloth-)?bnb-4bit$|-hf$|-(gptq|awq)$", "", last)


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


def _values(scenario: Scenario, field: str) -> list[Any]:
    values = [getattr(relation, field) for _, relation in pair_relations(scenario)]
    if not values and scenario.relation is not None:
        values = [getattr(scenario.relation, field)]
    return [value for value in values if value is not None]


def _ratio(values: Iterable[float | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    if len(known) < 2 or min(known) <= 0:
        return None
    return max(known) / min(known)


def _constraint(scenario: Scenario, field: str) -> Any:
    return getattr(scenario.constraints, field) if scenario.constraints else None


@signal
def sources_known(scenario: Scenario) -> bool | None:
    """Whether the scenario says which sources there are."""
    return None if scenario.sources is None else True


@signal
def source_count(scenario: Scenario) -> int | None:
    """How many trained sources there are (the base itself does not count)."""
    return None if scenario.sources is None else len(trained(scenario))


@signal
def listed_count(scenario: Scenario) -> int | None:
    """How many models the scenario lists, the base included where it is listed."""
    return None if scenario.sources is None else len(scenario.sources)


@signal
def base_is_listed(scenario: Scenario) -> bool:
    """Whether the base itself is listed as a source."""
    return len(trained(scenario)) < len(scenario.sources or [])


def _with_status(scenario: Scenario, status: str) -> str | None:
    return ", ".join(name for name, source in trained(scenario) if source.status == status) or None


@signal
def missing_sources(scenario: Scenario) -> str | None:
    """Names of the sources that do not exist yet."""
    return _with_status(scenario, "missing")


@signal
def broken_sources(scenario: Scenario) -> str | None:
    """Names of the sources that are known not to work."""
    return _with_status(scenario, "broken")


@signal
def unevaluated_sources(scenario: Scenario) -> str | None:
    """Names of the sources that nobody has evaluated."""
    return _with_status(scenario, "unevaluated")


@signal
def source_status(scenario: Scenario) -> str | None:
    """The worst status of all sources: missing, broken, unevaluated, works; unknown when one is not given."""
    found = [s.status or ("works" if s.scores else None) for _, s in trained(scenario)]
    for status in ("missing", "broken", "unevaluated"):
        if status in found:
            return status
    return "works" if found and all(found) else None


@signal
def has_base(scenario: Scenario) -> bool | None:
    """Whether a common base exists: named, implied by adapters (each belongs to one), or said to be none (`base_model: none`)."""
    if scenario.base_model is not None:
        return scenario.base_model.lower() != _UNSET
    sources = [s for _, s in trained(scenario)]
    if sources and all(s.kind == "lora" or s.rank is not None or s.base for s in sources):
        return True
    return None


@signal
def base_named(scenario: Scenario) -> bool:
    """Whether the base's name or folder is known, not only that there is one."""
    return has_base(scenario) is True and (bool(scenario.base_model) or any(s.base for _, s in trained(scenario)))


@signal
def same_base(scenario: Scenario) -> bool | None:
    """Whether all sources were trained from one base: said, or seen from the bases' names."""
    said = _values(scenario, "same_base")
    if said:
        return all(said)
    if has_base(scenario) is False:
        return None
    bases = [s.base for _, s in trained(scenario)] + ([scenario.base_model] if scenario.base_model else [])
    known = {same_name(b) for b in bases if b}
    if len(known) > 1:
        return False
    return True if known and (scenario.base_model or all(bases)) else None


@signal
def base_names(scenario: Scenario) -> str | None:
    """The bases that the sources name, as 'source: base'."""
    named = [f"{name}: {s.base or scenario.base_model}" for name, s in trained(scenario) if s.base or scenario.base_model]
    return "; ".join(named) or None


@signal
def base_names_agree(scenario: Scenario) -> bool | None:
    """Whether the names given for bases mean one model; unknown when fewer than two are given."""
    bases = [s.base for _, s in trained(scenario)] + [scenario.base_model]
    known = [same_name(b) for b in bases if b]
    return len(set(known)) == 1 if len(known) > 1 else None


@signal
def same_architecture(scenario: Scenario) -> bool | None:
    """Whether all sources have one architecture."""
    found = [s.architecture for _, s in trained(scenario)]
    known = {a for a in found if a}
    if len(known) > 1:
        return False
    # Sources of one base have its architecture, whether or not they say so.
    return True if (known and all(found)) or same_base(scenario) else None


@signal
def architectures(scenario: Scenario) -> str | None:
    """The architectures that the sources name, as 'source: architecture'."""
    return "; ".join(f"{name}: {s.architecture}" for name, s in trained(scenario) if s.architecture) or None


@signal
def kind(scenario: Scenario) -> str | None:
    """'lora' when every source is an adapter, 'full' when none is, 'mixed' otherwise; unknown when one is not told."""
    kinds = {s.kind or ("lora" if s.rank is not None else None) for _, s in trained(scenario)}
    if not kinds or None in kinds:
        return None
    return kinds.pop() if len(kinds) == 1 else "mixed"


@signal
def data_overlap(scenario: Scenario) -> float | None:
    """The largest share of training data that any two sources have in common."""
    return max(_values(scenario, "data_overlap"), default=None)


@signal
def capabilities(scenario: Scenario) -> str | None:
    """The worst relation of any two sources' capabilities: conflicting, partial or complementary."""
    found = _values(scenario, "capabilities")
    return next((c for c in ("conflicting", "partial", "complementary") if c in found), None)


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
    found = _values(scenario, "similarity")
    if "distinct" in found:
        return "distinct"
    return "similar" if found and len(found) >= len(pair_relations(scenario)) else None


@signal
def redundant_deltas(scenario: Scenario) -> bool | None:
    """Whether most of what the sources changed is redundant (small and repeated)."""
    found = _values(scenario, "redundant_deltas")
    return any(found) if found else None


@signal
def sign_disagreement(scenario: Scenario) -> float | None:
    """The largest measured share of parameters that two sources push in opposite directions (0.5 for unrelated vectors)."""
    return max(_values(scenario, "sign_disagreement"), default=None)


@signal
def cosine(scenario: Scenario) -> float | None:
    """The largest measured cosine of two task vectors."""
    return max(_values(scenario, "cosine"), default=None)


@signal
def low_conflict_figures(scenario: Scenario) -> bool | None:
    """Whether measured weight statistics look harmless (|cosine| under 0.1, no sign majority): no reason to call it safe."""
    cos, sign = cosine(scenario), sign_disagreement(scenario)
    if cos is None and sign is None:
        return None
    return (cos is None or abs(cos) < 0.1) and (sign is None or sign <= 0.55)


@signal
def examples_ratio(scenario: Scenario) -> float | None:
    """Largest over smallest number of training examples."""
    return _ratio(s.training_examples for _, s in trained(scenario))


@signal
def examples_known(scenario: Scenario) -> bool | None:
    """Whether every source says how many examples it was trained on."""
    found = [s.training_examples for _, s in trained(scenario)]
    return all(v is not None and v > 0 for v in found) if found else None


@signal
def norm_ratio(scenario: Scenario) -> float | None:
    """Largest over smallest measured norm of the task vectors."""
    return _ratio(s.norm for _, s in trained(scenario))


@signal
def rank_ratio(scenario: Scenario) -> float | None:
    """Largest over smallest LoRA rank."""
    return _ratio(s.rank for _, s in trained(scenario))


@signal
def importance_given(scenario: Scenario) -> bool:
    """Whether the user rated any source's importance other than neutral."""
    return any(s.importance not in (None, 1.0) for _, s in trained(scenario))


@signal
def goal(scenario: Scenario) -> str | None:
    """What the user is after; 'favour' when one source is to be favoured."""
    return "favour" if isinstance(scenario.goal, Favour) else scenario.goal


@signal
def favoured(scenario: Scenario) -> str | None:
    """The source to favour."""
    return scenario.goal.favour if isinstance(scenario.goal, Favour) else None


@signal
def asked_strategy(scenario: Scenario) -> str | None:
    """The strategy that the user asked for by name."""
    return scenario.strategy


@signal
def asked_problem(scenario: Scenario) -> str | None:
    """Why the strategy that the user asked for cannot take these sources; unknown when nothing was asked or it fits."""
    if scenario.strategy is None:
        return None
    from mcp_server.core.catalog import strategy

    inputs, count, base = strategy(scenario.strategy).inputs, len(trained(scenario)), has_base(scenario)
    if inputs.base == "one_of_the_sources" and base:
        count = max(count, 2)
    if inputs.max is not None and count > inputs.max:
        return f"it takes {inputs.max} sources at most, the scenario has {count}"
    if count < inputs.min:
        return f"it takes {inputs.min} sources at least, the scenario has {count}"
    if inputs.base == "required" and base is not True:
        return "it needs the base that all sources were trained from" + (", and it is not known" if base is None else "")
    return None


@signal
def ram_gib(scenario: Scenario) -> float | None:
    """Memory that the merge may use, in GiB."""
    value = _constraint(scenario, "ram_gib")
    return None if value is None else float(value)


@signal
def compute(scenario: Scenario) -> str | None:
    """Compute that is there for training: none, limited or ample."""
    return _text(_constraint(scenario, "compute"))


@signal
def quality(scenario: Scenario) -> str | None:
    """Whether quality may be tuned later or is critical."""
    return _text(_constraint(scenario, "quality"))


@signal
def reuse(scenario: Scenario) -> str | None:
    """Whether the parts will be reused (modular) or deployed once."""
    return _text(_constraint(scenario, "reuse"))


@signal
def iteration(scenario: Scenario) -> str | None:
    """Whether fast iteration matters."""
    return _text(_constraint(scenario, "iteration"))


@signal
def training_data(scenario: Scenario) -> str | None:
    """Whether the sources' training data is still available, or gone."""
    return _text(_constraint(scenario, "training_data"))


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


@signal
def factors_for_retraining(scenario: Scenario) -> int:
    """How many of four soft factors favour retraining: ample compute, slow iteration, critical quality, one-time use."""
    return sum(
        (
            compute(scenario) == "ample",
            iteration(scenario) == "slow",
            quality(scenario) == "critical",
            reuse(scenario) == "one_time",
        )
    )


@signal
def cross_context_rate(scenario: Scenario) -> float | None:
    """The highest measured rate at which a source breaks into its own behaviour in another source's context."""
    return max((rate for rates in (scenario.cross_context or {}).values() for rate in rates.values()), default=None)


@signal
def has_voice(scenario: Scenario) -> bool:
    """Whether a source adds a voice or persona."""
    return any(_VOICE.search(f"{name} {s.capability or ''}") for name, s in trained(scenario))


@signal
def has_tools(scenario: Scenario) -> bool:
    """Whether a source adds tool calls or strict JSON."""
    return any(_TOOLS.search(f"{name} {s.capability or ''}") for name, s in trained(scenario))


@signal
def has_prompts(scenario: Scenario) -> bool | None:
    """Whether every source says which prompts belong to it (what a mixture of experts routes by)."""
    found = [bool(s.prompts) or bool(s.capability) for _, s in trained(scenario)]
    return all(found) if found else None
