"""Collect the evidence that lies in and beside a merged folder. Nothing is computed here, and nothing is required."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mcp_server.errors import Malformed, MergingError
from mcp_server.formats.folder import require_folder_there, require_merge
from mcp_server.formats.provenance import Provenance, read_provenance, read_recipe_text
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.evidence import Evaluation, Verification
from mcp_server.schemas.faults import first_fault
from mcp_server.schemas.inspect import SourceInfo
from mcp_server.schemas.limits import MAX_EVIDENCE_BYTES
from mcp_server.schemas.plan import Plan
from mcp_server.schemas.replies import KeptReplies, ShownReplies
from mcp_server.steps.evaluate.history import of_these_files
from mcp_server.steps.evaluate.replies import FILE as REPLIES
from mcp_server.steps.evaluate.replies import show_replies, stored_replies
from mcp_server.steps.scenario import read_plan
from mcp_server.system import paths

M = TypeVar("M", bound=BaseModel)
FILES: Final = {
    "evaluation": "evaluation.json",
    "verification": "verification.json",
    "comparison": "comparison.json",
    "sweep": "sweep.json",
    "estimate": "estimate.json",
}
HOW: Final = {
    "evaluation": "model-merging evaluate OUT",
    "verification": "model-merging verify OUT",
    "comparison": "model-merging compare BASE REF REF -o OUT/comparison.json",
    "sweep": "model-merging sweep PLAN.yaml OUT",
    "plan": "model-merging recommend SCENARIO.yaml -o plan.yaml",
}


class _Part(BaseModel):
    """What the page shows of a file. Files of other versions may hold more; what is shown has to be of its type."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class _Candidate(_Part):
    name: str
    scores: dict[str, float | None] | None = None
    perplexity_ratio: float | None = None
    pareto: bool = False
    stopped: str | None = None


class _Sweep(_Part):
    candidates: list[_Candidate]
    winner: str | None = None


class _Change(_Part):
    name: str
    norm: float = Field(ge=0)
    relative_norm: float | None = Field(ge=0)


class _Pair(_Part):
    between: tuple[str, str]
    sign_disagreement: float | None
    norm_ratio: float | None = Field(gt=0)


class _Layer(_Part):
    sources: list[_Change]
    pairs: list[_Pair]


class _Comparison(_Part):
    sources: dict[str, str]
    layers: dict[str, _Layer]


class _Span(_Part):
    low: float
    high: float


class _Cost(_Part):
    peak_anon_bytes: int | None = None
    disk_bytes: int | None = None
    seconds: _Span | None = None


class _Estimate(_Part):
    engines: dict[str, _Cost] = Field(default_factory=dict)
    evaluate: _Cost | None = None


class _Merge(_Part):
    peak_anon_bytes: int | None = None
    bytes: int | None = None
    wall_seconds: float | None = None


class Evidence(Frozen):
    """Everything that a report can show about one merge."""

    folder: str
    name: str
    recipe: str | None = None
    plan: Plan | None = None
    provenance: Provenance | None = None
    sources: list[SourceInfo] = Field(default_factory=list)
    verification: Verification | None = None
    evaluation: Evaluation | None = None
    comparison: dict[str, Any] | None = None
    sweep: dict[str, Any] | None = None
    estimate: dict[str, Any] | None = None
    replies: ShownReplies | None = Field(default=None, description="where the merge and the best source differ, losses first")
    merge: dict[str, Any] = Field(default_factory=dict, description="the merge job's result, while the store still has it")
    left_out: list[str] = Field(default_factory=list, description="files that are not what their name says, and why")
    current: dict[str, bool | None] = Field(
        default_factory=dict,
        description="evaluation, verification, replies → does it speak of the files that lie here now; null: unknown",
    )

    @property
    def absent(self) -> dict[str, str]:
        """Part → the command that makes it, for every part that is not there."""
        return {part: command for part, command in HOW.items() if getattr(self, part) is None}


def gather(out: Path) -> Evidence:
    """Read what lies in `out`, and plan.yaml, comparison.json, sweep.json and estimate.json also beside it.

    Raises `NotFound` without the folder, `NotAModel` where nothing in it speaks of a merge, `Malformed` for a file of ours that
    cannot be read.
    """
    require_folder_there(out)
    provenance = read_provenance(out)
    left_out: list[str] = []
    verification = _read(out / FILES["verification"], Verification)
    evaluation = _read(out / FILES["evaluation"], Evaluation)
    replies = _replies(out, left_out)
    current = of_these_files(out, evaluation=evaluation, verification=verification, replies=replies and replies[0])
    evidence = Evidence(
        folder=str(out),
        name=out.name,
        recipe=read_recipe_text(out) or (provenance.recipe if provenance else None),
        plan=_plan(out),
        provenance=provenance,
        sources=_sources(provenance),
        verification=verification,
        evaluation=evaluation,
        current=current,
        replies=replies and replies[1].model_copy(update={"current": current["replies"]}),
        merge=_job_result(provenance),
        comparison=_near(out, FILES["comparison"], _Comparison, left_out) or _compared(provenance),
        sweep=_near(out, FILES["sweep"], _Sweep, left_out),
        estimate=_near(out, FILES["estimate"], _Estimate, left_out) or _estimate(provenance),
        left_out=left_out,
    )
    told = (evaluation, verification, evidence.plan, evidence.replies, evidence.comparison, evidence.sweep, left_out)
    if not any(told):
        require_merge(out)
    return evidence


def _replies(out: Path, left_out: list[str]) -> tuple[KeptReplies, ShownReplies] | None:
    try:
        kept = stored_replies(out)
        return (kept, show_replies(out)) if kept is not None else None
    except MergingError as error:
        left_out.append(f"{REPLIES}: {error.message}")
        return None


def _estimate(provenance: Provenance | None) -> dict[str, Any] | None:
    """What the merge was expected to cost, worked out again from its recipe; null when its sources are gone."""
    from mcp_server.steps.estimate import estimate

    if provenance is None:
        return None
    try:
        return estimate(provenance.recipe).model_dump(mode="json")
    except MergingError:
        return None


def _compared(provenance: Provenance | None) -> dict[str, Any] | None:
    """The newest comparison in the job store of exactly the sources of this merge."""
    wanted = {record.ref.rpartition("+")[2] for record in provenance.sources if record.role != "base"} if provenance else set()
    for folder in sorted(paths.jobs_dir().glob("compare-*"), reverse=True) if wanted else []:
        if not (folder / "result.json").is_file():
            continue
        found = _near(folder, FILES["comparison"], _Comparison, [])
        if found and {str(ref).rpartition("+")[2] for ref in found.get("sources", {}).values()} == wanted:
            return found
    return None


def _job_result(provenance: Provenance | None) -> dict[str, Any]:
    """What the merge's job measured. The id comes from the folder, so it may say anything: only a plain name is looked up."""
    job_id = provenance.job_id if provenance else ""
    file = paths.jobs_dir() / job_id / "result.json"
    if not job_id or Path(job_id).name != job_id or not file.is_file():
        return {}
    return _typed(file, _Merge, []) or {}


def _read(file: Path, model: type[M]) -> M | None:
    """None where there is no such file; one that cannot be looked at (a link to itself) is not taken for that."""
    try:
        if file.stat().st_size > MAX_EVIDENCE_BYTES:
            raise Malformed(_too_large(file), "make it again with the command that wrote it")
        return model.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise Malformed(f"{file}: {first_fault(error, model)}", "make it again with the command that wrote it") from error


def _too_large(file: Path) -> str:
    return f"{file.name} has {file.stat().st_size:,} bytes, which exceeds the limit of {MAX_EVIDENCE_BYTES:,}"


def _near(out: Path, name: str, model: type[BaseModel], left_out: list[str]) -> dict[str, Any] | None:
    """The table in the file, in the folder or beside it. A file that is something else is left out, and `left_out` says so."""
    for folder in (out, out.parent):
        if (file := folder / name).is_file() and (found := _typed(file, model, left_out)) is not None:
            return found
    return None


def _typed(file: Path, model: type[BaseModel], left_out: list[str]) -> dict[str, Any] | None:
    try:
        if file.name != FILES["comparison"] and file.stat().st_size > MAX_EVIDENCE_BYTES:
            left_out.append(_too_large(file))
            return None
        return model.model_validate(read_json(file)).model_dump(mode="json")
    except ValidationError as error:
        left_out.append(f"{file.name}: {first_fault(error, model)}")
    except (MergingError, OSError) as error:
        left_out.append(f"{file.name}: {error}")
    return None


def _plan(out: Path) -> Plan | None:
    for folder in (out, out.parent):
        if (file := folder / "plan.yaml").is_file():
            return read_plan(file)
    return None


def _sources(provenance: Provenance | None) -> list[SourceInfo]:
    """What the sources are now, for those that are still here."""
    from mcp_server.steps.inspect import inspect_source

    found = []
    for record in provenance.sources if provenance else []:
        try:
            found.append(inspect_source(record.ref))
        except MergingError:
            continue
    return found
