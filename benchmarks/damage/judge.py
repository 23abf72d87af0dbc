"""What verify says of one damaged merge: with its recipe alone, in full and by the sample, and with its record."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.damage.acts import Case
from benchmarks.damage.families import Family
from benchmarks.damage.kinds import Kind
from mcp_server.recompute import reading
from mcp_server.schemas.evidence import Verification
from mcp_server.steps.verify import verify

RECORD, RECIPE, CARD = "merge_provenance.json", "mergekit_config.yml", "README.md"


@dataclass(frozen=True)
class Judged:
    """`full`, `sample`: found by the recipe alone. `record`: found by the sample when the record is there. `named`: in full, with
    one of the kind's words."""

    kind: str
    family: str
    full: bool
    sample: bool
    record: bool
    named: bool
    said: str


class Bench:
    """Families and their right merges, built when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._merges: dict[str, Path] = {}
        self._count = 0

    def models(self, family: Family) -> Path:
        folder = self.folder / family.name.replace(" ", "-").replace(",", "")
        return folder if folder.exists() else family.build(folder)

    def right(self, family: Family, kind: Kind) -> tuple[Path, str]:
        """(a right merge, its recipe)."""
        models = self.models(family)
        recipe = family.recipe(
            models, kind.method, sources=("one",) if kind.method == "slerp" else ("one", "two"), **kind.settings
        )
        if recipe not in self._merges:
            out = self.folder / f"right-{len(self._merges)}"
            family.merge(out, recipe)
            self._merges[recipe] = out
        return self._merges[recipe], recipe

    def judge(self, kind: Kind, family: Family) -> Judged:
        right, recipe = self.right(family, kind)
        self._count += 1
        out = self.folder / f"case-{self._count}"
        shutil.copytree(right, out)
        case = Case(family, self.models(family), out)
        kind.act(case)
        with shrunk_sample():
            record = is_found(verify(out))
        keep_seed(out) if kind.seeded else without_record(out)
        given = None if kind.seeded else recipe
        full = verify(out, full=True, recipe=given)
        with shrunk_sample():
            sample = is_found(verify(out, recipe=given))
        said = faults(full)
        words = any(word in said for word in kind.words) or not kind.words
        named = is_found(full) and words and any(name in said for name in case.told)
        for folder in self.folder.glob(f"{out.name}*"):
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
        return Judged(kind.name, family.name, is_found(full), sample, record, named, said)


def is_found(found: Verification) -> bool:
    return found.verdict in ("failed", "unreadable")


def faults(found: Verification) -> str:
    return " | ".join(f"{check.name}: {check.detail}" for check in found.checks if check.passed is False)


def without_record(out: Path) -> None:
    for file in (RECORD, RECIPE, CARD):
        (out / file).unlink(missing_ok=True)


def keep_seed(out: Path) -> None:
    """The record without what it says of the files, as for a merge that was written elsewhere with the same generator."""
    record = json.loads((out / RECORD).read_text("utf-8"))
    (out / RECORD).write_text(json.dumps(record | {"digests": None, "output": None}), encoding="utf-8")


@contextlib.contextmanager
def shrunk_sample() -> Iterator[None]:
    """Three or six rows of each matrix, few as a sample takes of large ones."""
    kept = reading.SAMPLE_ELEMENTS
    reading.SAMPLE_ELEMENTS = 64  # type: ignore[misc]
    try:
        yield
    finally:
        reading.SAMPLE_ELEMENTS = kept  # type: ignore[misc]
