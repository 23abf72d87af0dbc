"""All that is known about a merged folder, read once: its record, a fresh look at its weights, its sources, its evaluation."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from mcp_server.errors import MergingError
from mcp_server.formats.content import content_hash
from mcp_server.formats.folder import require_merge
from mcp_server.formats.identity import token_ids
from mcp_server.formats.lineage import Lineage, read_lineage
from mcp_server.formats.provenance import Provenance, identify, read_provenance, weight_files
from mcp_server.recompute.methods import WHOLE
from mcp_server.schemas.evidence import Check, Evaluation, Verification
from mcp_server.schemas.plan import Observed
from mcp_server.schemas.scenario import PairRelation, Scenario, ScenarioSource
from mcp_server.steps.recommend.look import look
from mcp_server.steps.verify import verify
from mcp_server.system.hashes import sha256_of

VERIFICATION: Final = "verification.json"
EVIDENCE: Final = frozenset(
    {
        VERIFICATION, "evaluation.json", "evaluations.jsonl", "replies.json", "report.html", "report.md", "comparison.json",
        "README.md",
    }
)  # fmt: skip
"""What is written about a merge after it."""

RECOMPUTED_BYTES: Final = 1_200_000_000
"""Of weights times sources: half a minute on two idle cores. A tool's call must end before its client gives up."""
COMPUTED_ELEMENTS: Final = 1 << 23
"""Of tensors that a method such as TIES must sort whole: two seconds of one core."""
M = TypeVar("M", bound=BaseModel)


@dataclass
class Known:
    """What the rules read. None, or an empty table, is unknown."""

    folder: Path
    provenance: Provenance | None = None
    lineage: Lineage = field(default_factory=Lineage)
    checks: dict[str, Check] = field(default_factory=dict)
    landed: dict[str, float] = field(default_factory=dict)
    rounding_loss: dict[str, float] = field(default_factory=dict)
    changed_files: list[str] = field(default_factory=list)
    observed: Observed = field(default_factory=Observed)
    pairs: list[PairRelation] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    tokens_moved: str | None = None
    evaluation: Evaluation | None = None
    looked_at: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def read_evidence(out: Path) -> Known:
    """Raises `NotFound` without a folder, `NotAModel` where nothing speaks of a merge; what else is wrong in it is evidence."""
    require_merge(out)
    known = Known(out)
    _read_record(known)
    _read_weights(known)
    _read_sources(known)
    _read_tokens(known)
    _read_evaluation(known)
    return known


def _read_record(known: Known) -> None:
    try:
        known.provenance = read_provenance(known.folder)
        known.lineage = read_lineage(known.folder)
    except MergingError as error:
        known.unknown.append(f"record: {error.message}")
        return
    if known.provenance is None:
        known.unknown.append("record: there is no merge_provenance.json, so changes since the merge cannot be told")
        return
    known.looked_at.append("provenance")
    recorded, digests = known.provenance.output, known.provenance.digests
    beside = dict(digests.files) if digests else {}
    known.changed_files = [name for name, digest in beside.items() if _digest(known.folder / name) != digest]
    try:
        now = {file.name: file for file in identify(known.folder, recorded.hash).files} if recorded else {}
    except MergingError:
        return  # unreadable weights are the verification's finding
    known.changed_files += [
        file.name for file in (recorded.files if recorded else []) if now.get(file.name) != file and file.name not in beside
    ]


def _digest(file: Path) -> str | None:
    return sha256_of(file) if file.is_file() else None


def _read_weights(known: Known) -> None:
    stored = _stored(known.folder / VERIFICATION, Verification)
    if stored and stored.model not in (None, content_hash(known.folder, remembered=True)):
        stored = None  # a copied folder has its files' change times in any order
    current = stored if stored and _newest_is_its_verification(known.folder) else None
    found = verify(known.folder, before=current or _recorded(known), most=COMPUTED_ELEMENTS)
    checks = [*found.checks, *(check for check in (stored.checks if stored else []) if check.name == "loads")]
    known.checks = {check.name: check for check in checks}
    known.landed = {name: share for name, share in found.landed.items() if share is not None}
    known.rounding_loss = {name: share for name, share in found.rounding_loss.items() if share is not None}
    known.looked_at.append("weights (sampled)")
    if stored is None:
        part = " and, of what was computed again only in part, the rest" if _in_part(known) else ""
        known.unknown.append(f"whether it loads{part}: model-merging verify {shlex.quote(str(known.folder))}")


def _in_part(known: Known) -> bool:
    elements = sum(file.stat().st_size for file in weight_files(known.folder)) // 2
    return known.lineage.tried.method in WHOLE and elements > COMPUTED_ELEMENTS


def _recorded(known: Known) -> Verification | None:
    """For a merge too large to be computed again here: what the merge itself counted, while its files are as they were then."""
    work = sum(file.stat().st_size for file in weight_files(known.folder)) * max(1, len(known.lineage.sources))
    if work <= RECOMPUTED_BYTES:
        return None
    record = known.provenance if known.provenance and not known.changed_files else None
    counted = "; what landed is what the merge counted" if record and record.landed else ", and so what landed"
    known.unknown.append(
        f"whether its values are what the recipe gives{counted}: computing {work / 1e9:.0f} GB again takes minutes, "
        f"model-merging verify {shlex.quote(str(known.folder))}"
    )
    landed = {"landed": record.landed, "rounding_loss": record.rounding_loss} if record else {}
    return Verification(verdict="inconclusive", checks=[], **landed)


def _newest_is_its_verification(folder: Path) -> bool:
    """Whether nothing but evidence was written since, by the times that no program can set back."""
    since = (folder / VERIFICATION).stat().st_ctime_ns
    return all(file.stat().st_ctime_ns <= since for file in folder.rglob("*") if file.name not in EVIDENCE)


def _read_sources(known: Known) -> None:
    """Sources and base as `recommend` looks at them: another base, shapes, tokenizers, lengths and angles of the deltas."""
    if not known.lineage.sources:
        known.unknown.append("sources: no recipe in the folder names them")
        return
    sources = [ScenarioSource(name=name, ref=ref.rpartition("+")[2]) for name, ref in known.lineage.sources.items()]
    seen = look(Scenario(sources=sources, base_model=known.lineage.base))
    known.observed = seen.observed
    known.pairs = list(seen.relations or [])
    known.norms = {s.name: s.norm for s in seen.sources or [] if s.name and s.norm is not None}
    if seen.observed.looked_at:
        known.looked_at.append("sources and base (headers and samples)")
    if seen.observed.unreachable:
        known.unknown.append(f"not here: {seen.observed.unreachable}")


def _read_tokens(known: Known) -> None:
    """Token ids of the output against the base's, where the recipe asks for no other vocabulary."""
    if known.lineage.base is None or "tokenizer" in known.lineage.recipe:
        return
    try:
        here, there = token_ids(known.folder), token_ids(Path(known.lineage.base))
    except MergingError:
        return
    if here is None or there is None:
        return
    moved = [token for token, number in there.items() if here.get(token, number) != number]
    if moved:
        known.tokens_moved = f"{len(moved)} of {len(there)} tokens have another id than in the base, such as {moved[0]!r}"


def _read_evaluation(known: Known) -> None:
    known.evaluation = _stored(known.folder / "evaluation.json", Evaluation)
    if known.evaluation is None:
        known.unknown.append(
            f"skills, and with --cross leaks between contexts: model-merging evaluate {shlex.quote(str(known.folder))}"
        )
        return
    known.looked_at.append("evaluation")
    if not known.evaluation.cross_context:
        known.unknown.append(f"leaks between contexts: model-merging evaluate {shlex.quote(str(known.folder))} --cross")


def _stored(file: Path, model: type[M]) -> M | None:
    try:
        return model.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None
