"""What proves a merge: verification, evaluation, report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mcp_server import jobs
from mcp_server.errors import BadInput
from mcp_server.schemas.evidence import EvaluationList, ReportResult, SuiteList
from mcp_server.schemas.job import EvaluateRequest, JobStatus, VerifyRequest
from mcp_server.server.access import Access
from mcp_server.server.checked import CheckedTool, checked
from mcp_server.server.inputs import READS, REPEATABLE, STARTS, Data, Limit, Out, Recipe, Ref, Suites
from mcp_server.steps.evaluate.history import evaluations
from mcp_server.steps.evaluate.listing import suite_list


def tools() -> list[CheckedTool]:
    return [
        checked(verify_merge, "Verify a merged model", STARTS),
        checked(list_evaluations, "List a merge's evaluations", READS),
        checked(list_suites, "List evaluation suites", READS),
        checked(evaluate_merge, "Evaluate a merged model", STARTS),
        checked(write_report, "Write the report", REPEATABLE),
    ]


def verify_merge(
    out: Out,
    full: Annotated[bool, Field(description="Compute every value again, not a sample of each tensor.")] = False,
    recipe: Annotated[Recipe | None, Field(description="Path of the recipe, when the folder does not hold its own.")] = None,
    base: Annotated[Ref | None, Field(description="The base, for a merge from elsewhere or a base that was moved.")] = None,
    sources: Annotated[
        list[Ref] | None,
        Field(max_length=12, description="The sources, in the recipe's order: models, BASE+ADAPTER, or adapters of `base`."),
    ] = None,
) -> JobStatus:
    """Start a job that checks whether a merged model, made here or elsewhere, is what its recipe says: every tensor is
    computed again from the sources, and what differs is named; then structure, finite weights, what rounding lost, and that
    it loads. Its verdict is verified, failed, unreadable or inconclusive. Follow it with merge_status.
    """
    access = Access.now()
    request = VerifyRequest(
        out=str(access.existing_folder(out)),
        full=full,
        recipe=str(access.file(recipe, "recipe")) if recipe is not None else None,
        base=access.ref(base) if base is not None else None,
        sources=[access.ref(ref) for ref in sources or []],
    )
    return jobs.start(request, policy=access.policy)


def list_evaluations(out: Out) -> EvaluationList:
    """List every evaluation of a merge, newest first, with split, prompts, figures and verdict; none replaces another. `current`
    is false where the model's files have changed since that run.
    """
    return evaluations(Access.now().existing_folder(out))


def list_suites() -> SuiteList:
    """List what can be measured: the shipped suites with capability, metric, number of prompts in the dev and test splits and
    the minutes that one model takes. The user's own .jsonl file of prompts and expected answers works like a suite.
    """
    return suite_list()


def evaluate_merge(
    out: Annotated[
        Out | None, Field(description="The merged model's folder. Left out: measure `against` alone, before a merge.")
    ] = None,
    suites: Suites = None,
    data: Data = None,
    against: Annotated[
        dict[str, Ref] | None,
        Field(
            max_length=12,
            description="Models to compare with, by name: `base` and the sources. Default: those in the merge's provenance.",
            examples=[{"base": "demo:smollm2-135m-instruct", "persona": "./persona_adapter"}],
        ),
    ] = None,
    cross: Annotated[
        bool, Field(description="Also run each source on the others' prompts: predicts trouble that weights hide.")
    ] = False,
    limit: Limit = None,
    split: Annotated[
        Literal["dev", "test"] | None, Field(description="Default: dev, for choosing. test once, for the report.")
    ] = None,
) -> JobStatus:
    """Start a job that measures the merge, its sources and its base on the same prompts, capability by capability:
    retention, gain recovered with confidence intervals, perplexity against the best source, and the next recipe to try. This
    is the evidence; nothing else clears a merge. Takes minutes. Follow it with merge_status.
    """
    access = Access.now()
    if out is None and not against:
        raise BadInput("there is nothing to measure: neither `out` nor `against` was given", "name a merge, or base and sources")
    request = EvaluateRequest(
        out=str(access.existing_folder(out)) if out is not None else None,
        suites=access.suites(suites),
        data=access.data(data),
        against={name: access.ref(ref) for name, ref in (against or {}).items()},
        cross=cross,
        limit=limit,
        split=split,
    )
    return jobs.start(request, policy=access.policy)


def write_report(
    out: Out,
    path: Annotated[
        str | None, Field(description="Where to write it. Default: report.html in the merged model's folder.")
    ] = None,
) -> ReportResult:
    """Write one self-contained HTML page about a merge from its evidence: rationale, source inventory, recipe, verification,
    evaluation against base and sources, and what to do next. Replaces an earlier report.
    """
    from mcp_server.steps.report import write_report as write_html

    access = Access.now()
    folder = access.existing_folder(out)
    return write_html(folder, access.output(path) if path is not None else access.output(str(folder / "report.html")))
