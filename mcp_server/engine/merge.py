"""A merge from recipe to finished folder. Start reading here.

    recipe → plan (everything is checked) → layout (where each byte goes) → for each tensor: prepare, merge its blocks → metadata

The folder is complete and on disk when `merge` returns; giving it its final name is the caller's business, as are locks and jobs.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from blake3 import blake3

from mcp_server.engine import kernels
from mcp_server.engine.blocks import BLOCK_ELEMENTS, Block, split
from mcp_server.engine.codecs import count_stored_nonfinite, decode, encode
from mcp_server.engine.coverage import require_coverage
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.evidence import TensorEvidence, digest_of, rounding_warnings, total
from mcp_server.engine.journal import InputFile, Journal
from mcp_server.engine.layout import Layout, plan_layout
from mcp_server.engine.limits import PeakMeter, usable_cores
from mcp_server.engine.metadata import write_metadata
from mcp_server.engine.methods import prepare, weighted
from mcp_server.engine.plan import MergePlan, TensorPlan, make_plan
from mcp_server.engine.reader import Reader
from mcp_server.engine.request import Report, Request, all_headers, choose_seed
from mcp_server.engine.thread_pool import ThreadPool, Workspace
from mcp_server.engine.writer import Writer
from mcp_server.errors import Malformed
from mcp_server.formats.recipe import merge_recipe
from mcp_server.formats.tensors import ITEM_BYTES, STORED
from mcp_server.system.machine import limit_bytes

FIRST_RUN = "compile kernels (first run on this machine: seconds, once)"
BUFFERS_AHEAD = 4
"""Blocks that may wait for the disk, besides one per computing thread."""

Array = np.ndarray[Any, Any]
ENGINE_VERSION = 3
"""Raised when the same recipe would give other bytes; a resumed job of another version starts again."""


def merge(request: Request, report: Report) -> dict[str, Any]:
    """Run the merge, or finish one that was interrupted. Returns the measurements that a merge result needs."""
    started = time.monotonic()
    recipe = merge_recipe(request.recipe)
    require_coverage(recipe)
    plan = make_plan(recipe)
    layout = plan_layout(plan.tensors, request.shard_bytes)
    seed = choose_seed(request)
    inputs = [InputFile.of(path, header.sha256) for path, header in all_headers(plan).items()]
    with closing(Journal(request.journal, fingerprint(plan, layout, seed), seed, inputs)) as journal:
        if journal.resumes and not all(_has_size(request.folder / s.file, s.file_bytes) for s in layout.shards):
            journal.forget()
        forget = limit_bytes() < layout.file_bytes + sum(entry.bytes for entry in inputs)
        threads = request.threads or usable_cores()
        largest = max((block.count for tensor in plan.tensors for block in split(tensor.shape)), default=0)
        writer = Writer(
            request.folder,
            layout,
            journal.on_disk,
            keep=journal.resumes,
            buffers=threads + BUFFERS_AHEAD,
            buffer_bytes=4 * largest,
        )
        if not kernels.are_compiled():
            report(FIRST_RUN, 0, 1, "")
        with closing(Reader(forget=forget)) as reader, closing(ThreadPool(threads)) as pool:
            run = Pass(plan, layout, reader, writer, journal, pool, seed, request.allow_nonfinite, report)
            try:
                run.all_tensors()
            except BaseException:
                writer.abandon()
                raise
        writer.close()
        journal.check_inputs()
    landed, lost, nonfinite = total(journal.done[number] for number in range(len(plan.tensors)))
    measured: dict[str, Any] = {
        "engine": "stream",
        "seed": seed,
        "tensors": len(plan.tensors),
        "bytes": layout.file_bytes,
        "landed": landed,
        "rounding_loss": lost,
        "nonfinite": nonfinite,
        "digests": {t.name: journal.done[n].get("digest") for n, t in enumerate(plan.tensors)},
        "warnings": [*plan.warnings, *_differing(plan, journal), *rounding_warnings(lost, _main_dtype(plan))],
        "resumed": run.skipped > 0,
    }
    report("metadata", 0, 1, "")
    measured |= {"wall_seconds": time.monotonic() - started, "peak_anon_bytes": run.meter.sample()}
    measured["warnings"] += write_metadata(request, plan, layout, measured)
    report("metadata", 1, 1, "")
    return measured


class Sink(Protocol):
    """Where blocks go: see `Writer`, which is one."""

    def buffer(self) -> Array: ...
    def write(self, tensor: int, offset: int, buffer: Array, count: int) -> None: ...
    def finished(self, tensor: int) -> None: ...


class Record(Protocol):
    """What is done already, and what was counted: see `Journal`, which is one."""

    done: dict[int, Any]

    def computed(self, tensor: int, evidence: Any) -> None: ...


class Pass:
    """The tensors of one merge, computed one after the other into `writer`; `journal` knows which are done."""

    def __init__(
        self,
        plan: MergePlan,
        layout: Layout,
        reader: Reader,
        writer: Sink,
        journal: Record,
        pool: ThreadPool,
        seed: int,
        allow_nonfinite: bool,
        report: Report,
    ) -> None:
        self.plan, self.layout, self.reader, self.writer, self.journal = plan, layout, reader, writer, journal
        self.pool, self.seed, self.allow_nonfinite, self.report = pool, seed, allow_nonfinite, report
        self.written = 0
        self.skipped = 0
        self.meter = PeakMeter()

    def all_tensors(self) -> None:
        done = set(self.journal.done)
        for number, tensor in enumerate(self.plan.tensors):
            if number in done:
                self.skipped += 1
                self.written += self.layout.places[number].nbytes
                continue
            evidence = self.copy(number, tensor) if tensor.how == "copied" else self.tensor(number, tensor)
            self.journal.computed(number, evidence.as_dict())
            self.writer.finished(number)

    def copy(self, number: int, plan: TensorPlan) -> TensorEvidence:
        """Write the donor's bytes as they are, and see whether the other sources have the same."""
        donor, *others = (entry.stored for entry in plan.inputs)
        differing: set[str] = set()
        done = largest = 0
        pieces: list[bytes] = []
        while done < donor.nbytes:
            buffer = self.writer.buffer()
            size = min(buffer.size, donor.nbytes - done)
            self.reader.bytes_into(donor.file, donor.offset + done, buffer[:size])
            for entry, other in zip(plan.inputs[1:], others, strict=True):
                theirs = np.empty(size, np.uint8)
                if other.dtype == donor.dtype and entry.source not in differing:
                    self.reader.bytes_into(other.file, other.offset + done, theirs)
                    differing |= set() if np.array_equal(theirs, buffer[:size]) else {entry.source}
            pieces.append(blake3(buffer[:size].data).digest())
            self.writer.write(number, done, buffer, size)
            done += size
            largest = max(largest, size)
        self.written += donor.nbytes
        self.report("merge", self.written, self.layout.weight_bytes, "bytes")
        return TensorEvidence(differing=sorted(differing), digest=digest_of(pieces, largest))

    def tensor(self, number: int, plan: TensorPlan) -> TensorEvidence:
        """Merge one tensor and write it."""
        tensor = OpenTensor(plan, self.reader)
        evidence = TensorEvidence()
        self.check(tensor, tensor.nonfinite_factors(), evidence)
        method = self.plan.recipe.method
        merge_block = weighted(0.0, [1.0]) if plan.how == "kept" else prepare(method, tensor, self.pool, self.seed)
        stored = STORED[plan.dtype]
        known = tensor.reference
        same_grid = known is not None and known.stored.dtype == stored and not known.stored.packed and not known.updates

        def work(workspace: Workspace, block: Block) -> tuple[list[list[float]], dict[str, int], bytes]:
            reference, deltas, bad = tensor.load_checked(workspace, block)
            self.check(tensor, bad)
            out = workspace.take("out", block.count)
            merge_block(workspace, block, reference, deltas, out)
            size = ITEM_BYTES[stored]
            buffer = self.writer.buffer()
            raw = buffer[: block.count * size]
            encode(out, stored, raw)
            piece = blake3(raw.data).digest()
            if count := count_stored_nonfinite(raw, stored):
                if not self.allow_nonfinite:
                    raise _overflow(tensor, reference, deltas, out, stored)
                bad["merged"] = count
            rounded = out
            if tensor.reference is not None and stored != "F32":
                rounded = workspace.take("rounded", block.count)
                decode(raw, stored, rounded)
            self.writer.write(number, block.start * size, buffer, raw.size)
            self.written += raw.size
            self.report("merge", self.written, self.layout.weight_bytes, "bytes")
            if tensor.reference is None:
                return [], bad, piece
            grid = reference
            if not same_grid and stored != "F32":
                grid, raw = workspace.take("grid", block.count), workspace.take("raw", block.count * size, np.uint8)
                encode(reference, stored, raw)
                decode(raw, stored, grid)
            sums = np.zeros((len(deltas), 4))
            kernels.landing(reference, grid, out, rounded, deltas, sums)
            return sums.tolist(), bad, piece

        results = self.pool.run(work, tensor.blocks)
        chunk = max((block.count for block in tensor.blocks), default=0) * ITEM_BYTES[stored]
        evidence.digest = digest_of([piece for _, _, piece in results], chunk)
        for sums, bad, _ in results:
            for source, count in bad.items():
                evidence.nonfinite[source] = evidence.nonfinite.get(source, 0) + count
            for entry, values in zip(tensor.deltas, sums, strict=False):
                held = evidence.landing.setdefault(entry.source, [0.0] * 4)
                for i, value in enumerate(values):
                    held[i] += value
        self.meter.sample()
        tensor.close()
        return evidence

    def check(self, tensor: OpenTensor, bad: dict[str, int], evidence: TensorEvidence | None = None) -> None:
        """Stop at the first value that is not finite, unless that was allowed."""
        if bad and not self.allow_nonfinite:
            source, count = next(iter(bad.items()))
            raise Malformed(
                f"{tensor.plan.name} of {source} holds values that are not finite ({count} in one block)",
                "train or download that source again; --allow-nonfinite merges it anyway",
                tensor=tensor.plan.name,
                source=source,
            )
        if evidence:
            evidence.nonfinite |= bad


def _overflow(tensor: OpenTensor, reference: Array, deltas: Array, out: Array, stored: str) -> Malformed:
    """The sources are finite and the result is not: too large for the output's dtype. Names the source that is largest there."""
    raw, rounded = np.empty(out.size * ITEM_BYTES[stored], np.uint8), np.empty_like(out)
    encode(out, stored, raw)
    decode(raw, stored, rounded)
    place = int(np.flatnonzero(~np.isfinite(rounded))[0])
    values = {entry.source: float(delta[place]) for entry, delta in zip(tensor.deltas, deltas, strict=True)}
    if tensor.reference is not None:
        start = float(reference[place])
        values = {source: start + delta for source, delta in values.items()} | {tensor.reference.source: start}
    source = max(values, key=lambda ref: abs(values[ref]))
    dtype = tensor.plan.dtype
    return Malformed(
        f"{tensor.plan.name} overflows {dtype}: the value {out[place]:g} becomes infinite; {source} has the largest there, "
        f"{values[source]:g}",
        "write bfloat16 or float32 (`dtype:`), or lower the weights; --allow-nonfinite writes it anyway",
        tensor=tensor.plan.name,
        source=source,
    )


def _differing(plan: MergePlan, journal: Journal) -> list[str]:
    """A warning for tensors that are copied, not merged, although a source has another content."""
    found: dict[str, list[str]] = {}
    for number, tensor in enumerate(plan.tensors):
        for source in journal.done[number].get("differing", ()):
            found.setdefault(source, []).append(tensor.name)
    return [
        f"{len(names)} integer or buffer tensors of {source} differ from the output's, which are copied from "
        f"{plan.recipe.donor}, such as {names[0]}"
        for source, names in found.items()
    ]


def _main_dtype(plan: MergePlan) -> str:
    return next((tensor.dtype for tensor in plan.tensors if tensor.how != "copied"), "float32")


def fingerprint(plan: MergePlan, layout: Layout, seed: int) -> str:
    """Everything that decides the output's bytes: the plan holds every parameter, scale, path, offset and type."""
    decides = (ENGINE_VERSION, BLOCK_ELEMENTS, seed, plan.recipe.method, plan.tensors, layout.shards)
    return hashlib.sha256(repr(decides).encode()).hexdigest()


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
