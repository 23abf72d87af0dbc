"""Replies side by side: kept beside a merge as `replies.json`, shown where they differ first.

A merge is held against the suite's best source, prompt by prompt, so that a loss is a prompt that somebody could answer before.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

from pydantic import ValidationError

from mcp_server.errors import BadInput, Malformed, NotFound, did_you_mean
from mcp_server.formats.content import content_hash
from mcp_server.formats.folder import require_folder_there
from mcp_server.schemas.evidence import Evaluation
from mcp_server.schemas.faults import first_fault
from mcp_server.schemas.replies import KeptReplies, Outcome, PromptReplies, ShownReplies, Tally
from mcp_server.steps.evaluate.samples import SuiteSamples
from mcp_server.system.outputs import is_json_with, leave_record

FILE: Final = "replies.json"
ORDER: Final[tuple[Outcome, ...]] = ("loss", "win", "differs", "same")
MEASURE: Final = "model-merging evaluate OUT"


def side_by_side(samples: Mapping[str, Mapping[str, SuiteSamples]], found: Evaluation) -> KeptReplies:
    """Every prompt of every suite that has replies. `samples`: suite → label → what that model answered."""
    kept: list[PromptReplies] = []
    experts = {c.suite: c.expert for c in found.capabilities.values()}
    for suite, by in samples.items():
        first = next(iter(by.values()))
        if not first.replies or "merged" not in by:
            continue
        for number, prompt in enumerate(first.prompts):
            replies = {label: one.replies[number] for label, one in by.items()}
            scores = {label: one.primary.values[number] for label, one in by.items() if len(one.primary.values) > number}
            expert = experts.get(suite)
            kept.append(
                PromptReplies(
                    suite=suite,
                    split=found.split,
                    prompt=prompt,
                    expected=first.expected[number] if first.expected else "",
                    replies=replies,
                    scores=scores,
                    outcome=_outcome(replies, scores, expert, better=1.0 if first.higher_is_better else -1.0),
                )
            )
    return KeptReplies(model=found.model, created=found.created, replies=kept, experts=experts)


def _outcome(replies: Mapping[str, str], scores: Mapping[str, float], expert: str | None, better: float) -> Outcome:
    reference = expert if expert is not None and expert in replies else "base"
    if "merged" in scores and reference in scores and scores["merged"] != scores[reference]:
        return "win" if better * (scores["merged"] - scores[reference]) > 0 else "loss"
    return "same" if reference in replies and replies["merged"] == replies[reference] else "differs"


def keep_replies(out: Path, new: KeptReplies) -> None:
    """Leave them beside the merge. What is there of other suites and splits stays while it speaks of the same weights."""
    measured = {(one.suite, one.split) for one in new.replies}
    if not measured:
        return
    before = stored_replies(out)
    old = before if before is not None and before.model == new.model else KeptReplies(replies=[])
    others = [one for one in old.replies if (one.suite, one.split) not in measured]
    whole = new.model_copy(update={"replies": [*others, *new.replies], "experts": {**old.experts, **new.experts}})
    leave_record(out / FILE, whole.model_dump(mode="json"), is_json_with("replies", "experts"))


def show_replies(
    out: Path, *, suite: str | None = None, split: Literal["dev", "test"] | None = None, outcome: Outcome | None = None,
    find: str | None = None, offset: int = 0, limit: int | None = None,
) -> ShownReplies:  # fmt: skip
    """What lies in `out`, selected; `find` is any text in prompt, expected answer or reply, upper and lower case alike.

    Raises `NotFound` where nothing was measured or no suite has the name, `Malformed` for a file that is not ours.
    """
    require_folder_there(out)
    if (kept := stored_replies(out)) is None:
        raise NotFound(f"{out} holds no replies: it was not evaluated yet on a suite that generates", MEASURE)
    names = list(dict.fromkeys(one.suite for one in kept.replies))
    if suite is not None and suite not in names:
        raise BadInput(f"{out} has no replies on {suite!r}.{did_you_mean(suite, names)}", f"it has {', '.join(names)}")
    chosen = [one for one in kept.replies if suite in (None, one.suite) and split in (None, one.split)]
    tallies = {name: _tally([one for one in chosen if one.suite == name], kept) for name in names if suite in (None, name)}
    wanted = find.casefold() if find else ""
    chosen = [
        one
        for one in chosen
        if outcome in (None, one.outcome) and wanted in "\n".join([one.prompt, one.expected, *one.replies.values()]).casefold()
    ]
    chosen.sort(key=lambda one: ORDER.index(one.outcome))
    page = chosen[offset:] if limit is None else chosen[offset : offset + limit]
    end = offset + len(page)
    return ShownReplies(
        output=str(out),
        created=kept.created,
        current=None if kept.model is None else kept.model == content_hash(out, remembered=True),
        suites=tallies,
        replies=page,
        found=len(chosen),
        next_offset=end if end < len(chosen) else None,
    )


def _tally(chosen: list[PromptReplies], kept: KeptReplies) -> Tally:
    outcomes = [one.outcome for one in chosen]
    return Tally(
        prompts=len(chosen),
        losses=outcomes.count("loss"),
        wins=outcomes.count("win"),
        differs=outcomes.count("differs"),
        expert=kept.experts.get(chosen[0].suite) if chosen else None,
    )


def stored_replies(out: Path) -> KeptReplies | None:
    """What lies beside a merge, or None. Raises `Malformed` for a file that is not ours."""
    file = out / FILE
    if not file.is_file():
        return None
    try:
        return KeptReplies.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise Malformed(f"{file}: {first_fault(error, KeptReplies)}", f"remove it, then {MEASURE}") from error
