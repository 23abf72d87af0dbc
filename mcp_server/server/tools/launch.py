"""Start work in the background: merges, comparisons, sweeps. Each returns at once with a job id."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from pydantic import Field

from mcp_server import jobs
from mcp_server.formats.provenance import not_ours
from mcp_server.formats.refs import demo_aliases
from mcp_server.schemas.base import Engine, Verdict
from mcp_server.schemas.go import Gone
from mcp_server.schemas.job import CompareRequest, FetchRequest, JobStatus, MergeRequest, SweepRequest
from mcp_server.server.access import Access
from mcp_server.server.checked import CheckedTool, checked
from mcp_server.server.consent import LaunchConsent, require_consent
from mcp_server.server.inputs import (
    REPLACES,
    STARTS,
    AdapterSpace,
    Data,
    Form,
    Limit,
    Out,
    Output,
    PlanFile,
    PlanTable,
    RamGib,
    Rank,
    Recipe,
    Ref,
    Seed,
    Suites,
)
from mcp_server.steps.extract import extraction
from mcp_server.steps.handles import keep_plan, kept_recipe
from mcp_server.steps.handles import plan_file as plan_file_of
from mcp_server.steps.prepare import prepare, scenario_of
from mcp_server.system.outputs import require_folder


def tools() -> list[CheckedTool]:
    return [
        checked(merge_adapters, "Merge in one call", STARTS),
        checked(compare_models, "Compare task vectors", STARTS),
        checked(launch_merge, "Start a merge", REPLACES),
        checked(extract_adapter, "Extract an adapter from a fine-tune", STARTS),
        checked(sweep_merges, "Merge and evaluate several candidates", STARTS),
    ]


def merge_adapters(
    refs: Annotated[
        list[Ref], Field(min_length=1, max_length=12, description="Adapters or models: folders, hub ids in the local cache.")
    ],
    out: Annotated[Out, Field(description="Folder to write; must not exist.")],
    base: Annotated[Ref | None, Field(description="Default: the one that the adapters name.")] = None,
    ram_gib: RamGib = None,
    seed: Seed = None,
    go_on: Annotated[bool, Field(description="Start with open questions; only when the user has seen them.")] = False,
) -> Gone:
    """Inspect, recommend, render, validate and estimate in one call, and start the merge when nothing stands against it and no
    question is open. Else `prepared` has the questions for the user, or the reason to stop. Then merge_status, verify_merge,
    evaluate_merge(suites=prepared.suites), write_report.
    """
    access = Access.now()
    target = access.output(out)
    require_folder(target, overwrite=False, not_ours=not_ours)
    scenario = access.scenario(scenario_of(list(refs), base, ram_gib))
    found = prepare(scenario, ram_gib=ram_gib, out=target)
    if found.absent and all(ref in demo_aliases() for ref in found.absent):
        made = jobs.start(FetchRequest(ref=found.absent[0]), policy=access.policy)
        again = f"merge_status(job_id={made.job_id!r}, wait_seconds=50) until the demo's base is made, then this call again"
        return Gone(prepared=found, job=made, next=again)
    if found.absent:
        return Gone(prepared=found, next=f"fetch_model(ref={found.absent[0]!r}), then this call again")
    if found.stop:
        return Gone(prepared=found, next="tell the user why; recommend_strategy(scenario) takes what they know")
    if found.questions and not go_on:
        answer = "ask the user, then recommend_strategy with the answers, or merge_adapters with go_on=true"
        return Gone(prepared=found, next=answer)
    request = MergeRequest(recipe=kept_recipe(str(found.recipe_id)), out=str(target), ram_gib=ram_gib, seed=seed)
    started = jobs.start_merge(request, policy=access.policy)
    return Gone(prepared=found, job=started, output=str(target), next=f"merge_status(job_id={started.job_id!r}, wait_seconds=50)")


def compare_models(
    base: Ref,
    refs: Annotated[list[Ref], Field(min_length=1, max_length=12, description="Fine-tunes or adapters of it.")],
    sample: Annotated[bool, Field(description="Only a part of every tensor.")] = False,
) -> JobStatus:
    """Start a job that measures how task vectors relate: norms, cosine, sign disagreement, per layer. recommend_strategy finds
    its result. None of these numbers can clear a merge.
    """
    access = Access.now()
    request = CompareRequest(base=access.ref(base), refs=[access.ref(ref) for ref in refs], sample=sample)
    return jobs.start(request, policy=access.policy)


def launch_merge(
    recipe: Recipe,
    out: Annotated[Out, Field(description="Folder to write; it appears only when whole.")],
    consent: LaunchConsent,
    engine: Annotated[
        Engine,
        Field(description="auto: stream (little memory) where it can."),
    ] = "auto",
    output: Output = "model",
    output_format: Form = None,
    rank: Rank = None,
    space: AdapterSpace = "weights",
    ram_gib: RamGib = None,
    seed: Seed = None,
    threads: Annotated[int | None, Field(ge=1, le=1024, description="Never change the result.")] = None,
    shard_size: Annotated[int, Field(ge=1_000_000, description="Bytes of the largest file.")] = 5_000_000_000,
    allow_nonfinite: Annotated[bool, Field(description="Keep NaN and infinity.")] = False,
    hash: Annotated[Literal["headers", "full"], Field(description="full: SHA-256 of every input.")] = "headers",
    overwrite: Annotated[bool, Field(description="Replace `out`; only with the user's consent.")] = False,
    verdict: Annotated[
        Verdict | None,
        Field(description="The plan's; one against it asks the user."),
    ] = None,
    proceed_anyway: Annotated[bool, Field(description="Against the verdict; only with the user's consent.")] = False,
) -> JobStatus:
    """Start a merge as a job that outlives client and server. Run validate_config and estimate_ram first;
    then merge_status(job_id, wait_seconds=50) until it is over.
    """
    access = Access.now()
    text, folder = access.recipe(recipe)
    target = access.output(out)
    replace = require_consent(consent, out, overwrite, verdict, proceed_anyway)
    request: dict[str, Any] = {
        "recipe": text,
        "recipe_folder": str(folder),
        "out": str(target),
        "engine": engine,
        "output": output,
        "output_format": output_format,
        "rank": rank,
        "space": space,
        "ram_gib": ram_gib,
        "seed": seed,
        "threads": threads,
        "shard_size": shard_size,
        "allow_nonfinite": allow_nonfinite,
        "hash": hash,
        "overwrite": replace,
    }
    return jobs.start_merge(MergeRequest(**request), policy=access.policy)


def extract_adapter(
    base: Annotated[str, Field(min_length=1, max_length=4096, description="What the fine-tune began from.")],
    finetune: Annotated[str, Field(min_length=1, max_length=4096, description="The full model.")],
    out: Annotated[str, Field(min_length=1, max_length=4096, description="Folder; must not exist.")],
    rank: Annotated[int, Field(ge=1, le=4096, description="Per matrix.")] = 64,
    whole: Annotated[
        list[Literal["embeddings", "norms", "biases"]] | None, Field(max_length=3, description="Stored whole where changed.")
    ] = None,
) -> JobStatus:
    """Start a job that writes a full fine-tune's change as a LoRA, by truncated SVD, with its error."""
    access = Access.now()
    fields = extraction(access.ref(base), access.ref(finetune), rank=rank, whole=list(whole or []), dtype="bfloat16")
    return jobs.start_merge(MergeRequest(**fields, out=str(access.output(out))), policy=access.policy)


def sweep_merges(
    out: Annotated[Out, Field(description="Folder for candidates and winner.")],
    plan: PlanTable = None,
    plan_file: PlanFile = None,
    suites: Suites = None,
    data: Data = None,
    grid: Annotated[
        dict[str, list[float | int | str]] | None,
        Field(
            max_length=6,
            description='Values to try: {"parameters.lambda": [0.5, 1]}. Default: the plan\'s shortlist.',
            examples=[{"parameters.lambda": [0.5, 0.7, 1.0], "strategy": ["task_arithmetic", "dare_ties"]}],
        ),
    ] = None,
    tries: Annotated[
        list[dict[str, Any]] | None, Field(max_length=24, description="Single candidates: their changes by dotted name.")
    ] = None,
    minutes: Annotated[float | None, Field(gt=0, le=100_000, description="Search so long, from shortlist or grid.")] = None,
    limit: Limit = None,
    quick_limit: Annotated[int, Field(ge=1, le=100_000, description="Prompts for the first look.")] = 20,
    seed: Seed = None,
) -> JobStatus:
    """Start a job that merges and measures a plan's candidates, chooses on the dev split and reports the winner on the test
    split: only that says which method and scale keep the skills.
    """
    access = Access.now()
    target = access.output(out)
    source = str(plan_file_of(str(keep_plan(access.plan(plan, plan_file)).plan_id)))
    axes = {name: [access.grid_value(name, value) for value in values] for name, values in (grid or {}).items()}
    request = SweepRequest(
        plan=source,
        out=str(target),
        suites=access.suites(suites),
        data=access.data(data),
        grid=[f"{name}={','.join(values)}" for name, values in axes.items()],
        tries=[shlex.join(f"{name}={access.grid_value(name, value)}" for name, value in one.items()) for one in tries or []],
        minutes=minutes,
        limit=limit,
        quick_limit=quick_limit,
        seed=seed or 0,
    )
    return jobs.start(request, policy=access.policy)
