"""The linter: find what would fail late or silently, before anything runs."""

from mcp_server.steps.validate.registry import CHECKS, LintRule, rules
from mcp_server.steps.validate.repair import fix
from mcp_server.steps.validate.run import require_valid, validate

__all__ = ["CHECKS", "LintRule", "fix", "require_valid", "rules", "validate"]
