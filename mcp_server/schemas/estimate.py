"""What a merge will cost."""

from __future__ import annotations

from pydantic import Field

from mcp_server.schemas.base import Engine, EngineId, Frozen


class Seconds(Frozen):
    low: float
    high: float

    def in_words(self) -> str:
        """ "2 to 7 min"."""
        low, high = duration(self.low), duration(self.high)
        (first, unit), other = low.split(), high.split()[1]
        return low if low == high else f"{first} to {high}" if unit == other else f"{low} to {high}"


def duration(seconds: float) -> str:
    """Seconds for people: "40 s", "3 min", "1.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class EngineEstimate(Frozen):
    peak_anon_bytes: int = Field(description="upper bound of memory that cannot be reclaimed")
    page_cache_bytes: int = Field(description="helps, is not needed")
    disk_bytes: int = Field(description="output, caches and partial files, at their peak")
    seconds: Seconds
    fits: bool | None
    breakdown: dict[str, int] = Field(description="part → bytes; memory parts sum to peak_anon_bytes")
    covers: bool = True
    why_not: list[str] = Field(default_factory=list)
    settings: dict[str, str] = Field(default_factory=dict, description="settings that make it fit")


class SweepEstimate(Frozen):
    """A bake-off of the plan that the recipe came from, by the suites that a sweep takes where none is named."""

    candidates: int = Field(description="of the plan's shortlist")
    seconds: Seconds = Field(description="for the shortlist, from start to end")
    least_minutes: float = Field(description="of a search; fewer are refused, because not one candidate fits")
    within: dict[str, str] = Field(description="minutes of a search → candidates that it tries, such as `3 to 9`")
    suites: list[str]

    def in_words(self) -> str:
        """One line; a search is what `minutes` of a sweep asks for."""
        tried = ", ".join(f"{count} in {minutes}" for minutes, count in self.within.items())
        search = f"a search for minutes needs {self.least_minutes:g} at least" + (f" and tries {tried}" if tried else "")
        listed = f"the {self.candidates} candidates of the shortlist take {self.seconds.in_words()}"
        return f"a sweep of its plan: {listed}; {search} ({', '.join(self.suites)})"


class Estimate(Frozen):
    engines: dict[EngineId, EngineEstimate]
    recommended: Engine | None = None
    ram_gib: float | None = None
    disk_free_bytes: int | None = None
    verify: EngineEstimate | None = None
    evaluate: EngineEstimate | None = None
    sweep: SweepEstimate | None = Field(default=None, description="null: the recipe names no plan, or a size is not known")
    notes: list[str] = Field(default_factory=list)
