"""Signals about what the files themselves say: what `recommend` saw when it looked at the sources and the base."""

from __future__ import annotations

from typing import Final

from mcp_server.catalog.signals.registry import signal
from mcp_server.schemas.plan import Observed
from mcp_server.schemas.scenario import Scenario

_NOTHING: Final = Observed()


class SeenScenario(Scenario):
    """A scenario together with what its files say. Facts that only the files give are signals of this one."""

    observed: Observed = _NOTHING


def observed(scenario: Scenario) -> Observed:
    return scenario.observed if isinstance(scenario, SeenScenario) else _NOTHING


@signal
def misfits(scenario: Scenario) -> str | None:
    """Shapes or architectures that do not line up, as inspect names them."""
    return observed(scenario).misfits


@signal
def other_base(scenario: Scenario) -> str | None:
    """Sources whose own files name, or show, another base than the one given."""
    return observed(scenario).other_base


@signal
def doubtful_base(scenario: Scenario) -> str | None:
    """Sources whose config names a base that is not here to compare with the one given."""
    return observed(scenario).doubtful_base


@signal
def unrelated(scenario: Scenario) -> str | None:
    """Full models whose weights have nothing in common with the first one's, though every shape fits."""
    return observed(scenario).unrelated


@signal
def unusable(scenario: Scenario) -> str | None:
    """Sources whose files cannot be merged as they are: pickles, GGUF, incomplete downloads, unknown packings."""
    return observed(scenario).unusable


@signal
def damaged(scenario: Scenario) -> str | None:
    """Sources whose stored change is nothing, or no number: never trained, or a training that diverged."""
    return observed(scenario).damaged


@signal
def quantised_base(scenario: Scenario) -> str | None:
    """A base that is quantised: adapters are merged without it, a full model made on it keeps the error of its quantisation."""
    return observed(scenario).quantised_base


@signal
def tokenizers_differ(scenario: Scenario) -> str | None:
    """Vocabularies or token ids that do not agree, as inspect names them."""
    return observed(scenario).tokenizers


@signal
def templates_differ(scenario: Scenario) -> str | None:
    """Sources whose chat templates differ."""
    return observed(scenario).templates


@signal
def settings_differ(scenario: Scenario) -> str | None:
    """Settings of the configs that bend a source's meaning when the output takes the base's: positions, activation, attention."""
    return observed(scenario).settings


@signal
def said_otherwise(scenario: Scenario) -> str | None:
    """Facts of the scenario that the files contradict; the files are believed."""
    return observed(scenario).said_otherwise


@signal
def unreachable(scenario: Scenario) -> str | None:
    """Sources, or the base, that are named and not on this machine, so that nothing about them could be looked up."""
    return observed(scenario).unreachable


@signal
def relative_norm(scenario: Scenario) -> float | None:
    """The shortest task vector's length beside the base's own; a fine-tune changes a few percent of its base."""
    return observed(scenario).relative_norm
