"""How long an evaluation will take: what `start` says before the work begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mcp_server.errors import MergingError
from mcp_server.formats.suites import Suite
from mcp_server.schemas.estimate import Seconds
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.estimate.minutes import evaluation_seconds, parameters_of, prompts_of
from mcp_server.steps.evaluate.held import held_for
from mcp_server.steps.evaluate.known import in_words, known_prompts
from mcp_server.steps.evaluate.line_up import limit_of


def takes(request: EvaluateRequest, refs: Mapping[str, str], suites: Sequence[Suite]) -> tuple[Seconds | None, str]:
    """(how long, how many of the answers are known already). None and nothing where the models are elsewhere (an endpoint), or a
    size or a number of prompts is not known."""
    if request.endpoint:
        return None, ""
    try:
        sizes = {label: parameters_of(ref) for label, ref in refs.items()}
        known = known_prompts(refs, held_for(request.dtype, refs), suites, request.split)
    except (MergingError, OSError):
        return None, ""
    prompts = {suite.name: prompts_of(suite, request.split, limit_of(request, suite)) for suite in suites}
    return evaluation_seconds(sizes, suites, prompts, request.dtype, known), in_words(known, prompts, list(refs))
