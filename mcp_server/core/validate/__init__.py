"""The linter: find what would fail late or silently, before anything runs."""

from mcp_server.core.validate.gate import require_valid
from mcp_server.core.validate.registry import CHECKS, LintRule, rules
from mcp_server.core.validate.repair import fix
from mcp_server.core.validate.run import validate

__all__ = ["CHECKS", "LintRule", "fix", "require_valid", "rules", "validate"]
