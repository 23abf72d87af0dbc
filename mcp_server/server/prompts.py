"""Starting points that a person picks: plan a merge, attack a plan, find out why a merge failed."""

from __future__ import annotations

from typing import Annotated

from mcp.server import MCPServer
from pydantic import Field

from mcp_server import jobs
from mcp_server.errors import MergingError, NotFound
from mcp_server.server.access import Access


def register(server: MCPServer) -> None:
    server.prompt(title="Plan a merge")(plan_merge)
    server.prompt(title="Challenge a plan before it runs")(challenge_plan)
    server.prompt(title="Find out why a merge failed or lost a skill")(diagnose_merge)


def plan_merge(
    sources: Annotated[str, Field(description="The models or adapters: folders or hub ids, separated by commas or lines.")],
    base_model: Annotated[str, Field(description="The base that they were trained on, if you know it.")] = "",
    goal: Annotated[str, Field(description="What the merged model must do, and what must not get worse.")] = "",
    ram_gib: Annotated[str, Field(description="Memory in GiB that the merge may use.")] = "",
) -> str:
    """From sources to a validated, costed recipe, with the decision whether to merge at all made first."""
    known = [
        f"Sources: {sources}",
        f"Base: {base_model or 'unknown; read it from the adapters, or ask me'}",
        f"Goal: {goal or 'unknown; ask me what must work and what must not get worse'}",
        f"Memory: {f'{ram_gib} GiB' if ram_gib else 'what this machine has free'}",
    ]
    return "\n".join(
        [
            *known,
            "",
            "Plan this merge; do not start it.",
            "1. inspect_models on every source and the base. If they do not fit each other, stop and tell me which "
            "fields differ.",
            "2. Ask me, in one message, whatever you would otherwise guess: how many training examples each source "
            "saw, how much their"
            " data overlaps, whether their behaviours conflict, whether each was evaluated alone.",
            "3. recommend_strategy with what is known. If the verdict is not a merge, say so plainly and stop.",
            "4. render_config, validate_config, estimate_ram. Fix every error. If it does not fit, give me the options.",
            "5. Show me: verdict with reasons and sources, the recipe, the cost, the evaluation you will run, and "
            "what would make us stop.",
        ]
    )


def challenge_plan(
    plan: Annotated[str, Field(description="The plan or recipe, or what you intend in your own words.")],
) -> str:
    """Asks the uncomfortable questions first, then argues against the plan."""
    return "\n".join(
        [
            "Here is what I intend to merge:",
            "",
            plan,
            "",
            "Challenge it. Begin with clarifying questions only, in one message, and wait for my answers:",
            "- For each source: does it work alone, and how was that measured? On which prompts does it act that are "
            "not its own?",
            "- When both behaviours could apply to one prompt (the assistant should call a tool, and the persona "
            "wants to chat), which wins?",
            "- How much do the training data overlap? Do two sources pull length, tone or format in opposite directions?",
            "- What is the smallest loss on each capability that would make the merge useless?",
            "- What else would do: one adapter trained on both sets, routing between adapters, or leaving them apart?",
            "",
            "Then argue the strongest case against the plan from my answers and from inspect_models and "
            "compare_models. Name what would be",
            "lost, how I would see it in an evaluation (exact match rather than valid JSON, gain recovered rather "
            "than retention, each source",
            "on the other's prompts), and the cheapest test that settles it. Weight statistics alone cannot clear a "
            "merge: do not use them to.",
            "End with one of: go, change this first, or do not merge.",
        ]
    )


def diagnose_merge(
    job_id: Annotated[str, Field(description="The job that failed or whose model disappoints, or the merged model's folder.")],
    symptom: Annotated[str, Field(description="What you see: an error, gibberish, a skill that is gone.")] = "",
) -> str:
    """From a failed job or a disappointing model to the cause and the next recipe."""
    return "\n".join(
        [
            *_seen(job_id),
            f"Symptom: {symptom or 'not told'}",
            "",
            "Find out what went wrong.",
            "1. A job that failed: merge_status and merge_logs. Interrupted: resume_merge. Out of memory: estimate_ram with the "
            "memory that is there. Recipe at fault: validate_config, and read every finding.",
            "2. A model that disappoints: the findings above (or diagnose_merge on its folder). Believe a finding only with its "
            "evidence; what is listed as unknown, measure first.",
            "3. Nothing found and nothing measured: evaluate_merge with cross=true against base and sources, then diagnose_merge "
            "again.",
            "4. Tell me the cause, the evidence for it, and one next step.",
        ]
    )


def _seen(named: str) -> list[str]:
    """What the rules find now in the folder, or in a job's output. Where neither can be looked at, the tools will say why."""
    from mcp_server.steps.diagnose import diagnose

    lines = [f"Job or folder: {named}"]
    try:
        try:
            out = jobs.status(named).output or ""
        except NotFound:
            out = named
        found = diagnose(Access.now().existing_folder(out)) if out else None
    except MergingError:
        found = None
    if found is None:
        return lines
    lines += ["Findings in its folder:" if found.findings else "Findings in its folder: none"]
    lines += [f"- {one.code}: {one.cause}. Evidence: {one.evidence}. Next: {one.next}" for one in found.findings]
    return lines + [f"- unknown: {text}" for text in found.unknown]
