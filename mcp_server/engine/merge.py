"""A merge from recipe to finished folder. Start reading here.

    recipe → plan (everything is checked) → layout (where each byte goes) → tensors (tensor_pass.py) → metadata

The folder is complete and on disk when `merge` returns; giving it its final name is the caller's business, as are locks and jobs.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server.engine import kernels
from mcp_server.engine.blocks import BLOCK_ELEMENTS, split
from mcp_server.engine.coverage import require_coverage
from mcp_server.engine.evidence import rounding_warnings, total
from mcp_server.engine.fp8_plan import in_fp8
from mcp_server.engine.journal import InputFile, Journal
from mcp_server.engine.layout import Layout, plan_layout
from mcp_server.engine.limits import usable_cores
from mcp_server.engine.metadata import write_metadata
from mcp_server.engine.plan import MergePlan, make_plan
from mcp_server.engine.reader import Reader
from mcp_server.engine.request import Report, Request, all_headers, choose_seed, require_template
from mcp_server.engine.tensor_pass import Pass
from mcp_server.engine.thread_pool import ThreadPool
from mcp_server.engine.writer import Writer, require_space
from mcp_server.errors import InputChanged
from mcp_server.formats.recipe import merge_recipe
from mcp_server.system.machine import limit_bytes

FIRST_RUN = "compile kernels (first run on this machine: seconds, once)"
BUFFERS_AHEAD = 4
"""Blocks that may wait for the disk, besides one per computing thread."""

ENGINE_VERSION = 3
"""Raised when the same recipe would give other bytes; a resumed job of another version starts again."""


@dataclass(frozen=True)
class Work:
    """What a merge is going to do: everything is checked, no weight is read."""

    plan: MergePlan
    layout: Layout
    seed: int
    inputs: list[InputFile]

    @classmethod
    def of(cls, request: Request) -> Work:
        """Plan a merge. Raises what is wrong with the recipe or its sources."""
        recipe = merge_recipe(request.recipe)
        require_coverage(recipe)
        require_template(request, recipe)
        plan = make_plan(recipe)
        if request.output_format == "fp8":
            plan = in_fp8(plan)
        inputs = [InputFile.of(path, header.sha256) for path, header in all_headers(plan).items()]
        return cls(plan, plan_layout(plan.tensors, request.shard_bytes), choose_seed(request), inputs)

    def fingerprint(self) -> str:
        return fingerprint(self.plan, self.layout, self.seed)

    def journal(self, path: Path) -> Journal:
        return Journal(path, self.fingerprint(), self.seed, self.inputs)


@dataclass(frozen=True)
class Filled:
    """Output files that are whole. `evidence`: tensor number → what was counted for it; `skipped`: tensors that were there."""

    evidence: dict[int, Any]
    skipped: int
    peak_anon_bytes: int


def merge(request: Request, report: Report) -> dict[str, Any]:
    """Run the merge, or finish one that was interrupted. Returns the measurements that a merge result needs."""
    started = time.monotonic()
    work = Work.of(request)
    with closing(work.journal(request.journal)) as journal:
        filled = fill(request, work, journal, report)
        journal.check_inputs()
    return finish(request, work, filled, report, started)


def merge_in_parts(request: Request, parts: Callable[[Work], Iterable[Filled]], report: Report) -> dict[str, Any]:
    """The same merge, its output files written by others: `parts` gives what was counted for each file once it is on disk."""
    started = time.monotonic()
    work = Work.of(request)
    evidence: dict[int, Any] = {}
    skipped = peak = 0
    with closing(work.journal(request.journal)) as journal:
        request.folder.mkdir(parents=True, exist_ok=True)
        require_space(request.folder, work.layout.shards, keep=True)
        for filled in parts(work):
            evidence |= filled.evidence
            skipped, peak = skipped + filled.skipped, max(peak, filled.peak_anon_bytes)
        journal.check_inputs()
    return finish(request, work, Filled(evidence, skipped, peak), report, started)


def merge_part(request: Request, shard: int, expected: str, report: Report) -> Filled:
    """One output file of a merge whose fingerprint is `expected`. Raises `InputChanged` where the sources here make another."""
    work = Work.of(request)
    if work.fingerprint() != expected:
        raise InputChanged(
            "the sources, or the version of model-merging, are not those that this merge was planned with",
            "give every machine the same installation and the same files under the same paths",
        )
    with closing(work.journal(request.journal)) as journal:
        filled = fill(request, work, journal, report, [shard])
        journal.check_inputs()
    return filled


def fill(request: Request, work: Work, journal: Journal, report: Report, shards: Sequence[int] | None = None) -> Filled:
    """Write the tensors of some output files (by number; None: of all), but those that the journal knows to be on disk."""
    plan, layout = work.plan, work.layout
    wanted = range(len(layout.shards)) if shards is None else shards
    files = [layout.shards[shard] for shard in wanted]
    if journal.resumes and not all(_has_size(request.folder / s.file, s.file_bytes) for s in files):
        journal.forget()
    written = sum(shard.file_bytes for shard in files)
    threads = request.threads or usable_cores()
    largest = max((block.count for tensor in plan.tensors for block in split(tensor.shape)), default=0)
    writer = Writer(
        request.folder,
        layout,
        journal.on_disk,
        keep=journal.resumes,
        buffers=threads + BUFFERS_AHEAD,
        buffer_bytes=4 * largest,
        shards=wanted,
    )
    if not kernels.are_compiled():
        report(FIRST_RUN, 0, 1, "")
    forget = limit_bytes() < written + sum(entry.bytes for entry in work.inputs)
    with closing(Reader(forget=forget)) as reader, closing(ThreadPool(threads)) as pool:
        run = Pass(plan, layout, reader, writer, journal, pool, work.seed, request.allow_nonfinite, report)
        try:
            run.all_tensors(set(wanted))
        except BaseException:
            writer.abandon()
            raise
    writer.close()
    return Filled(dict(journal.done), run.skipped, run.meter.sample())


def finish(request: Request, work: Work, filled: Filled, report: Report, started: float) -> dict[str, Any]:
    """Write what is not weights, once all files are whole. Returns the measurements; `started` is by the monotonic clock."""
    plan, layout, evidence = work.plan, work.layout, filled.evidence
    landed, lost, nonfinite = total(evidence[number] for number in range(len(plan.tensors)))
    measured: dict[str, Any] = {
        "engine": "stream",
        "seed": work.seed,
        "tensors": len(plan.tensors),
        "bytes": layout.file_bytes,
        "landed": landed,
        "rounding_loss": lost,
        "nonfinite": nonfinite,
        "digests": {t.name: evidence[n].get("digest") for n, t in enumerate(plan.tensors)},
        "warnings": [*plan.warnings, *_differing(plan, evidence), *rounding_warnings(lost, _main_dtype(plan))],
        "resumed": filled.skipped > 0,
    }
    report("metadata", 0, 1, "")
    measured |= {"wall_seconds": time.monotonic() - started, "peak_anon_bytes": filled.peak_anon_bytes}
    measured["warnings"] += write_metadata(request, plan, layout, measured)
    report("metadata", 1, 1, "")
    return measured


def _differing(plan: MergePlan, evidence: dict[int, Any]) -> list[str]:
    """A warning for tensors that are copied, not merged, although a source has another content."""
    found: dict[str, list[str]] = {}
    for number, tensor in enumerate(plan.tensors):
        for source in evidence[number].get("differing", ()):
            found.setdefault(source, []).append(tensor.name)
    return [
        f"{len(names)} integer or buffer tensors of {source} differ from the output's, which are copied from "
        f"{plan.recipe.donor}, such as {names[0]}"
        for source, names in found.items()
    ]


def _main_dtype(plan: MergePlan) -> str:
    if any(tensor.form for tensor in plan.tensors):
        return "float8_e4m3fn"
    return next((tensor.dtype for tensor in plan.tensors if tensor.how != "copied"), "float32")


def fingerprint(plan: MergePlan, layout: Layout, seed: int) -> str:
    """Everything that decides the output's bytes: the plan holds every parameter, scale, path, offset and type."""
    decides = (ENGINE_VERSION, BLOCK_ELEMENTS, seed, plan.recipe.method, plan.tensors, layout.shards)
    return hashlib.sha256(repr(decides).encode()).hexdigest()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
