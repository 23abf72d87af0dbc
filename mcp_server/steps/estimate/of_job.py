"""How long an evaluation will take: what `start` says before the work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcp_server.errors import MergingError
from mcp_server.formats.suites import Suite
from mcp_server.schemas.estimate import Seconds
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.estimate.minutes import evaluation_seconds, parameters_of
from mcp_server.steps.evaluate.line_up import limit_of


def takes(request: EvaluateRequest, refs: Mapping[str, str], suites: Sequence[Suite]) -> Seconds | None:
    """None where the models are elsewhere (an endpoint), or a size or a number of prompts is not known."""
    if request.endpoint:
        return None
    try:
        sizes = [parameters_of(ref) for ref in refs.values()]
    except (MergingError, OSError):
        return None
    return evaluation_seconds(sizes, suites, request.split, {s.name: limit_of(request, s) for s in suites}, request.dtype)
