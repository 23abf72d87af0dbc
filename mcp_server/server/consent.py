"""Ask before a merge replaces something, or before one that the recommendation spoke against.

The question reaches the user through the client where it can ask; where it cannot, a plain argument says yes beforehand. Without
either, the call ends with an error that names the argument, and nothing has happened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from mcp.server.elicitation import AcceptedElicitation, ElicitationResult
from mcp.server.mcpserver import Context, Elicit, Resolve
from pydantic import BaseModel, Field

from mcp_server.errors import NotAllowed, OutputExists
from mcp_server.formats.provenance import not_ours
from mcp_server.schemas.base import Verdict
from mcp_server.server.access import Access
from mcp_server.system.outputs import is_free, require_folder

FIT_VERDICTS = frozenset({"merge", "merge_with_caution"})


class Consent(BaseModel):
    go_on: bool = Field(description="Start the merge all the same?")


class NothingToAsk(Consent):
    """Not the user's word: nothing stood against starting, or nobody could be asked."""


def reasons_to_ask(out: str, overwrite: bool, verdict: Verdict | None, proceed_anyway: bool) -> list[str]:
    """What stands against starting at once, in words for the user. Depends on nothing but the arguments and the output folder."""
    reasons = []
    if not overwrite and not is_free(Access.now().output(out)):
        reasons.append(f"the output {out} exists already and would be replaced")
    if verdict is not None and verdict not in FIT_VERDICTS and not proceed_anyway:
        reasons.append(f"the recommendation for these sources is {verdict!r}, not a merge")
    return reasons


def may_be_replaced(path: Path) -> bool:
    """Nothing to be replaced is there, or a merge of ours: nobody is asked about what no answer would replace."""
    return is_free(path) or (path.is_dir() and not_ours(path) is None)


def ask_before_launch(
    ctx: Context, out: str, overwrite: bool, verdict: Verdict | None, proceed_anyway: bool
) -> Consent | Elicit[Consent]:
    """Resolver: yes when nothing stands against it, the user's word where the client can ask, else no."""
    reasons = reasons_to_ask(out, overwrite, verdict, proceed_anyway)
    if not reasons:
        return NothingToAsk(go_on=True)
    if not can_ask(ctx) or not may_be_replaced(Access.now().output(out)):
        return NothingToAsk(go_on=False)
    return Elicit(f"Before the merge starts: {'; '.join(reasons)}. Go on?", Consent)


def can_ask(ctx: Context) -> bool:
    """Whether the client declared that it can show a form to its user."""
    capabilities = ctx.client_capabilities
    elicitation = capabilities.elicitation if capabilities else None
    return elicitation is not None and (elicitation.form is not None or elicitation.url is None)


LaunchConsent = Annotated[ElicitationResult[Consent], Resolve(ask_before_launch)]


class PublishingWord(BaseModel):
    publish: bool = Field(description="Upload it?")


def ask_before_publishing(ctx: Context, out: str, repo: str, private: bool) -> PublishingWord | Elicit[PublishingWord]:
    """Resolver: the user's own word each time, and no where the client cannot ask for it."""
    if not can_ask(ctx):
        return PublishingWord(publish=False)
    return Elicit(f"Publish {out} as {repo}, {'for you alone' if private else 'for everybody to see'}?", PublishingWord)


PublishConsent = Annotated[ElicitationResult[PublishingWord], Resolve(ask_before_publishing)]


def require_publishing(consent: ElicitationResult[PublishingWord], out: str, repo: str) -> None:
    """Raise `NotAllowed` unless the user said yes to this very upload. No argument stands in for that."""
    if isinstance(consent, AcceptedElicitation) and consent.data.publish:
        return
    raise NotAllowed(
        f"the user did not say yes to publishing {repo}; nothing was uploaded",
        f"where this client cannot ask, the user runs it in a shell: model-merging publish {out} {repo} --yes",
    )


def require_consent(
    consent: ElicitationResult[Consent], out: str, overwrite: bool, verdict: Verdict | None, anyway: bool
) -> bool:
    """Whether an existing output may be replaced; raises unless the answer is yes, naming the argument that says yes
    beforehand.
    """
    if isinstance(consent, AcceptedElicitation) and consent.data.go_on:
        return overwrite or not isinstance(consent.data, NothingToAsk)
    reasons = reasons_to_ask(out, overwrite, verdict, anyway)
    if not overwrite:
        require_folder(Access.now().output(out), overwrite=True, not_ours=not_ours)  # what no consent would replace
    said = "" if isinstance(consent, AcceptedElicitation) else f" (the user's answer: {consent.action})"
    if any("exists already" in reason for reason in reasons):
        raise OutputExists(
            f"{'; '.join(reasons)}{said}; nothing was started",
            "choose another `out`, or ask the user and pass overwrite=true",
        )
    raise NotAllowed(
        f"{'; '.join(reasons)}{said}; nothing was started",
        "tell the user why, and pass proceed_anyway=true only if they still want it",
    )
