"""Which merges of the six skills are measured, and the recipe of each: the product's own rendering of its own methods."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from mcp_server.catalog.signals import SeenScenario
from mcp_server.schemas.plan import Plan
from mcp_server.schemas.scenario import PairRelation, Relation, Scenario, ScenarioSource
from mcp_server.steps.recommend import plan_for
from mcp_server.steps.recommend.look import look
from mcp_server.steps.sweep.candidates import Candidate, from_grid

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "six_skills"
NAMES = ("terse", "verbose", "lights", "home", "notes", "refuse")
PAIRS = tuple(itertools.combinations(NAMES, 2))
TRIPLES = (("terse", "lights", "notes"), ("lights", "home", "refuse"), ("verbose", "notes", "refuse"))
GROUPS = (*PAIRS, *TRIPLES, NAMES)
OURS = (
    "task_arithmetic lambda=1.0",
    "ties lambda=1.0",
    "task_arithmetic lambda=0.7",
    "dare_ties lambda=1.0",
    "task_arithmetic lambda=0.5",
    "dare_linear lambda=1.0",
    "della lambda=1.0",
)
"""All with weights of 1: what a sum leaves of every source is λ. λ 0.5 of a pair is `linear` with equal shares."""
MERGEKIT = ("ties density=1.0", "sce", "model_stock", "linear")
"""What mergekit makes of weights of 1 and no other parameter; its task_arithmetic, dare_linear and dare_ties are then `OURS[0]`
or TIES at density 1. Our engine computes them: its weights are mergekit's (docs/recipes.md)."""
MANY = ("task_arithmetic lambda=0.3", "task_arithmetic lambda=0.2")
"""For three and more, whose sums are longer."""
PEFT = ("linear", "ties", "dare_ties", "svd")
"""Combination types of PEFT's `add_weighted_adapter`, weights 1, density 0.5."""


Cosines = dict[str, float]
"""Of two task vectors, by the sources' names with a space between."""
Cross = dict[str, dict[str, float]]
"""Source → context → share of replies that show the source's behaviour there."""


def examples(name: str) -> int:
    """How many examples an adapter was trained on."""
    return len((EXAMPLE / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())


def scenario(names: tuple[str, ...], base: Path | str = "base", adapters: Path = EXAMPLE) -> Scenario:
    """What somebody would say who knows no more than the files: no claim about how the skills stand to each other."""
    sources = [
        ScenarioSource(name=name, ref=str(adapters / name), kind="lora", training_examples=examples(name), status="works")
        for name in names
    ]
    return Scenario(sources=sources, base_model=str(base), relation=Relation(same_base=True), goal="balanced")


def as_measured(names: tuple[str, ...], cosines: Cosines, norms: dict[str, float], cross: Cross | None = None) -> SeenScenario:
    """The same with what the files showed, and with the cross-context check where it was run; needs no file."""
    said = scenario(names)
    sources = [source.model_copy(update={"norm": norms[str(source.name)]}) for source in said.sources or []]
    pairs = [
        PairRelation(between=pair, same_base=True, cosine=cosines[" ".join(pair)]) for pair in itertools.combinations(names, 2)
    ]
    known = {name: row for name, row in (cross or {}).items() if name in names}
    rates = {name: {context: rate for context, rate in row.items() if context in names} for name, row in known.items()}
    fields = {name: getattr(said, name) for name in Scenario.model_fields} | {"sources": sources, "relations": pairs}
    if cross is not None:
        fields |= {"cross_context": rates, "own_context": {name: name for name in names}}
    return SeenScenario(**fields)


def first(found: Plan) -> str:
    """The recipe that a plan begins with, in the words of `OURS`. Equal shares (which are rounded to hundredths) are one recipe
    whatever their size under TIES and DELLA, which divide by their sum; an average is the sum at λ = 1/k."""
    assert found.strategy is not None
    weights, parameters = list(found.weights.values()), found.strategy.parameters
    equal = max(weights) - min(weights) < 0.015
    if equal and found.strategy.id in ("ties", "della"):
        return f"{found.strategy.id} lambda=1.0"
    if equal and found.strategy.id == "linear":
        return f"task_arithmetic lambda={1 / len(weights):.2g}"
    name = f"{found.strategy.id} lambda={float(parameters.get('lambda', 1.0))}"
    return name if set(weights) == {1.0} else f"{name} weights={json.dumps(found.weights)}"


def planned(names: tuple[str, ...], base: Path | str, adapters: Path = EXAMPLE) -> Plan:
    return plan_for(look(scenario(names, base, adapters)))


def candidates(names: tuple[str, ...], base: Path | str, adapters: Path = EXAMPLE) -> dict[str, Candidate]:
    """Each of our recipes for these sources, by its name in `OURS`, `MANY` and `MERGEKIT`."""
    wanted = (*OURS, *(MANY if len(names) > 2 else ()), *MERGEKIT)
    tries = {name: " ".join(_settings(name, names)) for name in wanted}
    found = from_grid(planned(names, base, adapters), [], None, tries.values())
    return dict(zip(tries, found, strict=True))


def _settings(recipe: str, names: tuple[str, ...]) -> Iterator[str]:
    method, *given = recipe.split()
    yield f"strategy={method}"
    if method not in ("model_stock", "sce"):  # they weigh by themselves
        yield from (f"sources.{name}.weight=1.0" for name in names)
    yield from (f"parameters.{parameter}" for parameter in given)
