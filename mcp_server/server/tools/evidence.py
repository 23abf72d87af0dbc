"""What proves a merge: verification, evaluation, report."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mcp_server import jobs
from mcp_server.errors import BadInput
from mcp_server.schemas.evidence import EvaluationList, ReportResult, SuiteList
from mcp_server.schemas.job import AskRequest, EvaluateRequest, JobStatus, VerifyRequest
from mcp_server.schemas.replies import Outcome, ShownReplies
from mcp_server.server.access import Access
from mcp_server.server.apps import shown_in_client
from mcp_server.server.checked import CheckedTool, checked
from mcp_server.server.inputs import READS, REPEATABLE, STARTS, Against, Data, Limit, Offset, Out, PageSize, Recipe, Ref, Suites
from mcp_server.steps.evaluate import replies
from mcp_server.steps.evaluate.history import evaluations
from mcp_server.steps.evaluate.listing import suite_list


def tools() -> list[CheckedTool]:
    return [
        checked(verify_merge, "Verify a merged model", STARTS),
        checked(list_evaluations, "List a merge's evaluations", READS),
        checked(show_replies, "Show replies side by side", READS),
        checked(ask_models, "Ask all models at once", STARTS),
        checked(list_suites, "List evaluation suites", READS),
        checked(evaluate_merge, "Evaluate a merged model", STARTS),
        shown_in_client(checked(write_report, "Write the report", REPEATABLE)),
    ]


def verify_merge(
    out: Out,
    full: Annotated[bool, Field(description="Every value, not a sample of each tensor.")] = False,
    recipe: Annotated[Recipe | None, Field(description="Its path, when the folder holds none.")] = None,
    base: Annotated[Ref | None, Field(description="For a merge from elsewhere, or a base that was moved.")] = None,
    sources: Annotated[
        list[Ref] | None,
        Field(max_length=12, description="The same, in the recipe's order."),
    ] = None,
) -> JobStatus:
    """Start a job that checks whether a merge, made here or elsewhere, is what its recipe says: tensors computed again from the
    sources, structure, rounding, loading. Verdict: verified, failed, unreadable or inconclusive.
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
    """List a merge's evaluations, newest first, with figures and verdict. `current` is false where the files have changed
    since.
    """
    return evaluations(Access.now().existing_folder(out))


def show_replies(
    out: Out,
    suite: Annotated[str | None, Field(max_length=200, description="Only this suite.")] = None,
    only: Annotated[Outcome | None, Field(description="One outcome.")] = None,
    find: Annotated[str | None, Field(max_length=1000, description="Text in prompt or reply.")] = None,
    offset: Offset = 0,
    limit: PageSize = 5,
) -> ShownReplies:
    """Show what base, sources and merge replied to the same prompts, the merge's losses against its best source first."""
    folder = Access.now().existing_folder(out)
    return replies.show_replies(folder, suite=suite, outcome=only, find=find, offset=offset, limit=limit)


def ask_models(
    out: Out,
    text: Annotated[str, Field(min_length=1, max_length=100_000, description="What to ask.")],
    system: Annotated[str | None, Field(max_length=100_000, description="System prompt.")] = None,
    against: Against = None,
    max_tokens: Annotated[int, Field(ge=1, le=4096, description="Of a reply.")] = 128,
) -> JobStatus:
    """Start a job that asks base, sources and merge the same thing; its result has their replies."""
    access = Access.now()
    request = AskRequest(
        out=str(access.existing_folder(out)),
        text=text,
        system=system,
        against=access.refs(against),
        max_tokens=max_tokens,
    )
    return jobs.start(request, policy=access.policy)


def list_suites() -> SuiteList:
    """List the shipped suites: capability, metric, prompts in each split, minutes for one model."""
    return suite_list()


def evaluate_merge(
    out: Annotated[Out | None, Field(description="The merge's folder. Left out: measure `against` alone.")] = None,
    suites: Suites = None,
    data: Data = None,
    against: Against = None,
    gguf: Annotated[list[str] | None, Field(max_length=12, description="Its GGUF exports, to measure beside it.")] = None,
    cross: Annotated[bool, Field(description="Also each source on the others' prompts, to see leaks.")] = False,
    limit: Limit = None,
    quick: Annotated[bool, Field(description="Each suite's small number of prompts.")] = False,
    split: Annotated[
        Literal["dev", "test"] | None, Field(description="dev (default) for choosing, test once for the report.")
    ] = None,
    endpoint: Annotated[str | None, Field(description="OpenAI-compatible server on this machine.")] = None,
    served: Annotated[dict[str, str] | None, Field(description="Label → name of the model at the endpoint.")] = None,
    tokenizer: Annotated[Ref | None, Field(description="Of the models at the endpoint.")] = None,
) -> JobStatus:
    """Start a job that measures merge, sources and base on the same prompts: gain recovered with intervals, perplexity, the next
    recipe to try. Nothing else clears a merge.
    """
    access = Access.now()
    if out is None and not against:
        raise BadInput("there is nothing to measure: neither `out` nor `against` was given", "name a merge, or base and sources")
    request = EvaluateRequest(
        out=str(access.existing_folder(out)) if out is not None else None,
        suites=access.suites(suites),
        data=access.data(data),
        against=access.refs(against),
        gguf=access.data(gguf),
        cross=cross,
        limit=limit,
        quick=quick,
        split=split,
        backend="openai" if endpoint else "hf",
        endpoint=access.endpoint(endpoint) if endpoint else None,
        served=served or {},
        tokenizer=access.ref(tokenizer) if tokenizer else None,
    )
    return jobs.start(request, policy=access.policy)


def write_report(
    out: Out,
    path: Annotated[str | None, Field(description="Default: report.html in the folder.")] = None,
) -> ReportResult:
    """Write one self-contained HTML page about a merge: rationale, sources, recipe, verification, evaluation."""
    from mcp_server.steps.report import write_report as write_html

    access = Access.now()
    folder = access.existing_folder(out)
    return write_html(folder, access.output(path) if path is not None else access.output(str(folder / "report.html")))
