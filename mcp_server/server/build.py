"""One seam for every transport and every test: `build_server()` returns the whole server, not yet connected to anything."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any, Final

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from mcp_server.errors import did_you_mean
from mcp_server.server import completions, prompts, resources
from mcp_server.server.apps import report_app
from mcp_server.server.tools import all_tools


class MergingServer(MCPServer[dict[str, Any]]):
    """The SDK's server, except that a misspelt tool name is answered with the nearest one."""

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        known = [tool.name for tool in await self.list_tools()]
        if name not in known:
            raise ToolError(f"there is no tool {name!r}.{did_you_mean(name, known)}\n→ known: {', '.join(known)}")
        return await super().call_tool(name, arguments, context)


def build_server() -> MergingServer:
    """Tools, resources, prompts and completions on one server object."""
    server = MergingServer(
        name="model-merging",
        title="Model merging",
        description="Merge fine-tuned models and LoRA adapters, verified and evaluated.",
        instructions=INSTRUCTIONS,
        version=version("model-merging"),
        tools=list(all_tools()),
        extensions=[report_app()],
        log_level="WARNING",
    )
    resources.register(server)
    prompts.register(server)
    completions.register(server)
    return server


INSTRUCTIONS: Final = """\
Merge fine-tuned language models and LoRA adapters on one machine, and prove what the merge kept. Works offline on local folders.

Order of work:
1. inspect_models: what the sources are, whether they fit each other (headers only, instant).
2. recommend_strategy: merge, retrain, route …? With reasons and open questions. Ask the user those questions; do not guess.
3. render_config(plan) → validate_config(recipe) → estimate_ram(recipe): fix every error, see that it fits.
4. launch_merge(recipe, out) returns a job id at once. merge_status(job_id, wait_seconds=50) until the state is final; \
merge_logs if it failed; resume_merge if interrupted.
5. verify_merge(out), then evaluate_merge(out, suites): jobs as well. Compare with base and sources: perplexity more than 10 % \
worse than the best source: adjust; more than 2×: failed.
6. `next` in the evaluation is the next recipe to try; sweep_merges tries several. write_report ends the work.

One call for all of 1 to 4: merge_adapters(refs, out). Plans and recipes go by plan_id and recipe_id. A bad merge: \
diagnose_merge(out).

Good to know: a mergeable verdict from weights alone is no evidence, only the evaluation is. compare_models measures how task \
vectors relate. Jobs outlive client and server. Scale (lambda, weights) matters more than the method. merge://strategies/{id} \
explains a strategy, merge://templates/{id} shows its recipe. Every error says what to do next. \
Never report a merge as done before verify_merge says verified.
"""
