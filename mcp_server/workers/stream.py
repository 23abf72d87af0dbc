"""The streaming merge as a job.

in    request.json: kind "merge", parameters recipe (text), out, partial (the folder to fill), seed, threads, shard_size,
      allow_nonfinite, hash, output (model | adapter), output_format, rank,
      space, whole, workers and ray (the merge as one task for each output file: workers/parts.py); such a task has shard and
      fingerprint
      hub ids that are not in the local cache are fetched first, where the operator allows the network
out   the folder `partial`, complete and synced; result.json; progress in events.jsonl; journal.jsonl (a rerun continues it)

Not covered: locking OUT, renaming the folder, cancelling: the job layer's. Recipes outside `engine.coverage` are refused.
"""

from __future__ import annotations

import gc
import os
import sys

# Both together halve the processor time of the start (1.15 s to 0.6 s on a 2-core EPYC):
gc.disable()  # imports make no garbage, and a merge makes no cycles
sys.modules["scipy.linalg"] = None  # type: ignore[assignment]  # numba asks for its BLAS, which no kernel uses

# One thread per matrix product: threads share blocks instead, and a product must not round differently with their number.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[_variable] = "1"

from dataclasses import asdict  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from mcp_server.engine.adapter_space import merge_adapters  # noqa: E402
from mcp_server.engine.merge import merge, merge_part  # noqa: E402
from mcp_server.engine.request import Request  # noqa: E402
from mcp_server.formats.provenance import read_provenance  # noqa: E402
from mcp_server.workers.chat_templates import named_template  # noqa: E402
from mcp_server.workers.hub_sources import with_sources  # noqa: E402
from mcp_server.workers.protocol import Job, online, run_worker  # noqa: E402

gc.freeze()  # the collection at exit need not look at all this either


def main(job: Job) -> dict[str, Any]:
    parameters = job.parameters
    adapter = parameters.get("output") == "adapter"
    recipe = parameters["recipe"]
    if online():
        recipe = with_sources(job, recipe, bases=not adapter)
    request = Request(
        recipe=recipe,
        folder=Path(parameters["partial"]),
        journal=job.folder / "journal.jsonl",
        seed=parameters.get("seed"),
        threads=parameters.get("threads"),
        shard_bytes=parameters.get("shard_size") or 5_000_000_000,
        allow_nonfinite=bool(parameters.get("allow_nonfinite")),
        hashing=parameters.get("hash") or "headers",
        name=Path(parameters["out"]).name,
        job_id=str(parameters.get("job_id", "")),
        rank=parameters.get("rank"),
        space=parameters.get("space") or "weights",
        whole=tuple(parameters.get("whole") or ()),
        output_format=parameters.get("output_format"),
        chat_template=None if adapter else named_template(recipe),
    )

    def report(stage: str, done: float, total: float, unit: str) -> None:
        job.progress(stage, done, total, unit=unit)

    if parameters.get("shard") is not None:
        return asdict(merge_part(request, parameters["shard"], parameters["fingerprint"], report))
    if adapter:
        measured = merge_adapters(request, report)
    elif parameters.get("ray") or parameters.get("workers", 1) > 1:
        from mcp_server.workers.parts import merge_by_tasks  # only such a merge pays for it

        measured = merge_by_tasks(request, job, report)
    else:
        measured = merge(request, report)
    if record := read_provenance(request.folder):
        measured |= {"landed": record.landed, "rounding_loss": record.rounding_loss, "nonfinite": record.nonfinite}
    return {"output": parameters["out"], **measured}


if __name__ == "__main__":
    sys.exit(run_worker(main))
