"""Verify a merge: the checks of `mcp_server.steps.verify`, then loading and generating in a process of its own.

Worker inputs   request.json parameters: {out, full, recipe (path), load (default true), base}
Worker outputs  result.json: `Verification`; verification.json beside the merge
Not covered     the quality of the text.

A model that does not fit in memory, or whose loader was killed, is inconclusive and never fine.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mcp_server.errors import Malformed
from mcp_server.formats.content import content_hash
from mcp_server.formats.lineage import read_lineage
from mcp_server.schemas.evidence import Check, Verification
from mcp_server.schemas.job import VerifyRequest
from mcp_server.steps.verify import verify, with_check
from mcp_server.system.outputs import is_json_with, leave_record
from mcp_server.system.yaml_io import read_text
from mcp_server.workers.apart import run_apart
from mcp_server.workers.protocol import Job, run_worker

RESULT_FILE = "verification.json"
LOAD_SECONDS = 1800


def main(job: Job) -> Verification:
    wanted = job.request(VerifyRequest)
    out = Path(wanted.out)
    job.progress("headers and weights", 0, 2, unit="steps")
    model = content_hash(out) if out.is_dir() else None  # before the checks: what changes during them is not what was checked
    recipe = read_text(Path(wanted.recipe), "the recipe") if wanted.recipe is not None else None
    found = verify(out, full=wanted.full, recipe=recipe, base=wanted.base, sources=wanted.sources)
    found = found.model_copy(update={"model": model})
    if found.verdict != "unreadable" and wanted.load:
        job.progress("load and generate", 1, 2, unit="steps")
        found = with_check(found, _loads(out, wanted.base, job))
    job.progress("done", 2, 2, unit="steps")
    leave_record(out / RESULT_FILE, found.model_dump(mode="json"), is_json_with("verdict", "checks"))
    return found


def _loads(out: Path, base: str | None, job: Job) -> Check:
    try:
        base = base or read_lineage(out).base
    except Malformed:
        base = None
    asked = {"kind": "load_check", "parameters": {"out": str(out), "base": base}, "roots": job.roots}
    ended = run_apart("mcp_server.workers.load_check", job.folder / "load", asked, LOAD_SECONDS)
    if ended.status is None:
        return Check(name="loads", passed=None, detail=f"loading did not end within {LOAD_SECONDS} s")
    if ended.status == 0:
        return Check(name="loads", passed=ended.result["loads"], detail=ended.result["detail"])
    if ended.status < 0:
        detail = f"the loader was ended by signal {-ended.status}, probably for want of memory; free some and verify again"
        return Check(name="loads", passed=None, detail=detail)
    if (told := ended.error) is not None:
        too_big = told.get("type") == "DoesNotFit"
        return Check(name="loads", passed=None if too_big else False, detail=f"{told['message']}; {told['next_step']}")
    return Check(name="loads", passed=False, detail=f"transformers refuses it: {ended.last_word}")


if __name__ == "__main__":
    sys.exit(run_worker(main))
