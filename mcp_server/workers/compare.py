"""Comparing task vectors as a job.

in    request.json: kind "compare", parameters base, refs (full models, base+adapter, or adapters of the base), sample, threads
out   comparison.json (every tensor and layer); result.json (the whole, the layers that stand out, the path of the rest)

Not covered: sources on different bases (compare each with its own base), and any verdict: these are facts for a plan.
"""

from __future__ import annotations

import os
import sys

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ[_variable] = "1"

from mcp_server.engine.compare import compare  # noqa: E402
from mcp_server.schemas.comparison import Comparison  # noqa: E402
from mcp_server.schemas.job import CompareRequest  # noqa: E402
from mcp_server.workers.protocol import Job, run_worker  # noqa: E402


def main(job: Job) -> Comparison:
    request = job.request(CompareRequest)

    def report(stage: str, done: float, total: float, unit: str) -> None:
        job.progress(stage, done, total, unit=unit)

    return compare(
        request.base,
        list(request.refs),
        job.folder / "comparison.json",
        report,
        sample=request.sample,
        threads=request.threads or os.cpu_count() or 1,
    )


if __name__ == "__main__":
    sys.exit(run_worker(main))
