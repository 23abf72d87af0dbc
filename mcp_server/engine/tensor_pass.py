"""The tensors of a merge, one after the other: load blocks, check them, merge, round, write; and count what the result shows."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Protocol

import numpy as np

from mcp_server.engine import kernels
from mcp_server.engine.blocks import Block
from mcp_server.engine.codecs import decode, encode
from mcp_server.engine.deltas import OpenTensor
from mcp_server.engine.evidence import TensorEvidence
from mcp_server.engine.fp8 import Fp8
from mcp_server.engine.layout import Layout
from mcp_server.engine.limits import PeakMeter
from mcp_server.engine.methods import prepare, weighted
from mcp_server.engine.plan import MergePlan, TensorPlan
from mcp_server.engine.reader import Reader
from mcp_server.engine.request import Report
from mcp_server.engine.stores import Plain, Store
from mcp_server.engine.thread_pool import ThreadPool, Workspace
from mcp_server.errors import Malformed
from mcp_server.formats.digests import digest_of, piece_digest
from mcp_server.formats.tensors import ITEM_BYTES, STORED

Array = np.ndarray[Any, Any]


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
        self.weight_bytes = layout.weight_bytes
        self.skipped = 0
        self.meter = PeakMeter()

    def all_tensors(self, shards: Container[int] | None = None) -> None:
        """Those of the output files with these numbers; None: of all."""
        places = self.layout.places
        wanted = [number for number, place in enumerate(places) if shards is None or place.shard in shards]
        self.weight_bytes = sum(places[number].nbytes for number in wanted)
        done = set(self.journal.done)
        for number in wanted:
            tensor = self.plan.tensors[number]
            scaled = tensor.form is not None
            if tensor.how == "scales":
                continue
            if number in done and (not scaled or number + 1 in done):
                self.skipped += 1 + scaled
                self.written += places[number].nbytes + (places[number + 1].nbytes if scaled else 0)
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
            pieces.append(piece_digest(buffer[:size].data))
            self.writer.write(number, done, buffer, size)
            done += size
            largest = max(largest, size)
        self.written += donor.nbytes
        self.report("merge", self.written, self.weight_bytes, "bytes")
        return TensorEvidence(differing=sorted(differing), digest=digest_of(pieces, largest))

    def tensor(self, number: int, plan: TensorPlan) -> TensorEvidence:
        """Merge one tensor and write it; of FP8 codes the scales too, which are the tensor after it."""
        tensor = OpenTensor(plan, self.reader)
        evidence = TensorEvidence()
        self.check(tensor, tensor.nonfinite_factors(), evidence)
        method = self.plan.recipe.method
        merge_block = weighted(0.0, [1.0]) if plan.how == "kept" else prepare(method, tensor, self.pool, self.seed)
        fp8 = Fp8(plan.form, self.reader, powers_of_two=self.plan.scales_are_powers) if plan.form else None
        store: Store = fp8 or Plain(tensor)
        size = store.item_bytes

        def look(workspace: Workspace, block: Block) -> None:
            reference, deltas, bad = tensor.load_checked(workspace, block)
            self.check(tensor, bad)
            out = workspace.take("out", block.count)
            merge_block(workspace, block, reference, deltas, out)
            store.measure(workspace, block, out)

        if store.measures:
            self.pool.run(look, tensor.blocks)

        def work(workspace: Workspace, block: Block) -> tuple[list[list[float]], dict[str, int], bytes]:
            reference, deltas, bad = tensor.load_checked(workspace, block)
            self.check(tensor, bad)
            out = workspace.take("out", block.count)
            merge_block(workspace, block, reference, deltas, out)
            buffer = self.writer.buffer()
            raw = buffer[: block.count * size]
            count = store.store(workspace, block, out, raw)
            piece = piece_digest(raw.data)
            if count:
                if not self.allow_nonfinite:
                    raise _overflow(tensor, reference, deltas, out, "float32" if fp8 else plan.dtype)
                bad["merged"] = count
            rounded = store.stored(workspace, block, out, raw) if tensor.reference is not None else out
            self.writer.write(number, block.start * size, buffer, raw.size)
            self.written += raw.size
            self.report("merge", self.written, self.weight_bytes, "bytes")
            if tensor.reference is None:
                return [], bad, piece
            grid = store.on_grid(workspace, block, reference)
            sums = np.zeros((len(deltas), 4))
            kernels.landing(reference, grid, out, rounded, deltas, sums)
            return sums.tolist(), bad, piece

        results = self.pool.run(work, tensor.blocks)
        chunk = max((block.count for block in tensor.blocks), default=0) * size
        evidence.digest = digest_of([piece for _, _, piece in results], chunk)
        for sums, bad, _ in results:
            for source, count in bad.items():
                evidence.nonfinite[source] = evidence.nonfinite.get(source, 0) + count
            for entry, values in zip(tensor.deltas, sums, strict=False):
                held = evidence.landing.setdefault(entry.source, [0.0] * 4)
                for i, value in enumerate(values):
                    held[i] += value
        if fp8 is not None:
            self._write_scales(number + 1, fp8.scale_bytes.reshape(-1))
        self.meter.sample()
        tensor.close()
        return evidence

    def _write_scales(self, number: int, raw: Array) -> None:
        pieces: list[bytes] = []
        done = largest = 0
        while done < raw.size:
            buffer = self.writer.buffer()
            part = raw[done : done + buffer.size]
            buffer[: part.size] = part
            pieces.append(piece_digest(part))
            self.writer.write(number, done, buffer, part.size)
            done, largest = done + part.size, max(largest, part.size)
        self.written += raw.size
        self.journal.computed(number, TensorEvidence(digest=digest_of(pieces, largest)).as_dict())
        self.writer.finished(number)

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


def _overflow(tensor: OpenTensor, reference: Array, deltas: Array, out: Array, dtype: str) -> Malformed:
    """The sources are finite and the result is not: too large for the output's dtype. Names the source that is largest there."""
    stored = STORED[dtype]
    raw, rounded = np.empty(out.size * ITEM_BYTES[stored], np.uint8), np.empty_like(out)
    encode(out, stored, raw)
    decode(raw, stored, rounded)
    place = int(np.flatnonzero(~np.isfinite(rounded))[0])
    values = {entry.source: float(delta[place]) for entry, delta in zip(tensor.deltas, deltas, strict=True)}
    if tensor.reference is not None:
        start = float(reference[place])
        values = {source: start + delta for source, delta in values.items()} | {tensor.reference.source: start}
    source = max(values, key=lambda ref: abs(values[ref]))
    return Malformed(
        f"{tensor.plan.name} overflows {dtype}: the value {out[place]:g} becomes infinite; {source} has the largest there, "
        f"{values[source]:g}",
        "write bfloat16 or float32 (`dtype:`), or lower the weights; --allow-nonfinite writes it anyway",
        tensor=tensor.plan.name,
        source=source,
    )
