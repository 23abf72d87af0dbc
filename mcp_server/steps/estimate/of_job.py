"""How long a job that measures will take: what `start` says before the work begins."""

from __future__ import annotations

from pathlib import Path

from mcp_server.errors import MergingError
from mcp_server.formats.lineage import Lineage, read_lineage
from mcp_server.schemas.estimate import Seconds
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.estimate.minutes import evaluation_seconds, parameters_of
from mcp_server.steps.evaluate.line_up import limit_of, models_of, suites_of


def takes(request: EvaluateRequest) -> Seconds | None:
    """None where the models are elsewhere (an endpoint), or a size or a number of prompts is not known."""
    if request.endpoint or request.backend != "hf":
        return None
    try:
        lineage = read_lineage(Path(request.out)) if request.out else Lineage()
        refs = models_of(lineage, out=request.out, base=request.base, sources=request.sources, against=request.against)
        sizes = [parameters_of(ref) for ref in refs.values()]
    except (MergingError, OSError):
        return None
    suites = suites_of(request, refs)
    return evaluation_seconds(sizes, suites, request.split, {s.name: limit_of(request, s) for s in suites}, request.dtype)
