"""What the demo did, step by step."""

from __future__ import annotations

from mcp_server.core.models.base import Frozen
from mcp_server.core.models.estimation import Estimate
from mcp_server.core.models.evidence import Evaluation, Verification
from mcp_server.core.models.inspect import Inspection
from mcp_server.core.models.job import MergeResult
from mcp_server.core.models.plan import Plan
from mcp_server.core.models.validation import Validation


class Step(Frozen):
    name: str
    summary: str
    seconds: float


class Demo(Frozen):
    steps: list[Step]
    inspection: Inspection
    plan: Plan
    recipe: str
    validation: Validation
    estimate: Estimate
    merge: MergeResult
    verification: Verification
    evaluation: Evaluation
    paths: dict[str, str]
    seconds: float
