"""The evaluation as Markdown for the model card, and a sweep's table for the documents."""

from __future__ import annotations

from mcp_server.schemas.evidence import Capability, Evaluation, Sweep, SweepCandidate
from mcp_server.system.plain_text import markdown_inline


def model_card_section(evaluation: Evaluation) -> str:
    """A table per the same prompts for base, sources and merge, the verdict, and how it was measured."""
    sources = list(dict.fromkeys(name for c in evaluation.capabilities.values() for name in c.sources))
    header = ["capability (metric, prompts)", "base", *sources, "merged", "retention", "gain recovered"]
    lines = ["## Evaluation", "", _row(header), _row(["---"] * len(header))]
    lines += [_row(_cells(name, c, sources)) for name, c in evaluation.capabilities.items()]
    lines += _exports(evaluation)
    lines += _confusions(evaluation)
    lines += ["", f"Verdict: **{evaluation.verdict}**.", ""]
    lines += [f"- {markdown_inline(reason)}" for reason in evaluation.why]
    if evaluation.next:
        lines += ["", f"Next: {markdown_inline(str(evaluation.next.get('why', evaluation.next)))}"]
    served = evaluation.numerics.startswith("endpoint")
    notes = [
        f"{evaluation.split} split, greedy, the same prompts for every model ({evaluation.numerics})",
        *([] if served else ["adapters were folded into their base in float32 and rounded once"]),
        "intervals are 95 % paired bootstrap; gain recovered = (merged − base) ÷ (expert − base), given only where the expert "
        "beats the base by two standard errors",
        *map(markdown_inline, evaluation.notes),
    ]
    return "\n".join([*lines, "", "Measured with lm-evaluation-harness: " + "; ".join(notes) + ".", ""])


def _exports(evaluation: Evaluation) -> list[str]:
    """What each quantisation changed, capability by capability, on the same prompts."""
    if not evaluation.exports:
        return []
    header = ["capability", "export", "merged", "export's", "change (95 %)", "replies as the merge's"]
    lines = ["", _row(header), _row(["---"] * len(header))]
    for name, c in evaluation.capabilities.items():
        for label, one in c.exports.items():
            span = f" ({one.ci.low:+.3g} to {one.ci.high:+.3g})" if one.ci else ""
            change = "–" if one.change is None else f"{one.change:+.3g}{span}"
            same = "–" if one.same_replies is None else f"{one.same_replies} of {c.n}"
            lines.append(_row([name, label, _plain(c.merged), _plain(one.figure), change, same]))
    return lines


def _confusions(evaluation: Evaluation) -> list[str]:
    """What was wanted against what each model chose, for suites that say both."""
    lines: list[str] = []
    for suite, by in evaluation.tables.items():
        chosen = sorted({name for counts in by.values() for row in counts.values() for name in row})
        header = [suite, "wanted", *(f"chose {name}" for name in chosen)]
        lines += ["", _row(header), _row(["---"] * len(header))]
        for label, counts in by.items():
            lines += [_row([label, wanted, *(str(row.get(one, 0)) for one in chosen)]) for wanted, row in counts.items()]
    return lines


def _cells(name: str, capability: Capability, sources: list[str]) -> list[str]:
    arrow = "↑" if capability.higher_is_better else "↓"
    return [
        f"{name} ({capability.metric} {arrow}, {capability.n})",
        _figure(capability, "base", capability.base),
        *(_figure(capability, source, capability.sources.get(source)) for source in sources),
        _figure(capability, "merged", capability.merged),
        _figure(capability, "retention", capability.retention),
        _figure(capability, "gain_recovered", capability.gain_recovered),
    ]


def _figure(capability: Capability, label: str, value: float | None) -> str:
    if value is None:
        return "–"
    span = capability.ci.get(label)
    return f"{value:.3g}" + (f" ({span.low:.3g}–{span.high:.3g})" if span and span.low != span.high else "")


def _row(cells: list[str]) -> str:
    """A row of a table; text in it is text, whatever it holds, unless it was `_Written` here."""
    return "| " + " | ".join(cell if isinstance(cell, _Written) else markdown_inline(cell) for cell in cells) + " |"


class _Written(str):
    """Markdown of our own making."""


def sweep_section(sweep: Sweep) -> str:
    """Every candidate of a bake-off in the order of its worst kept gain, the sources it is measured against, and the winner."""
    names = list(dict.fromkeys(name for c in sweep.candidates for name in c.gains))
    header = ["candidate", *(f"{n} (gain)" for n in names), "perplexity ÷ best source", "note"]
    lines = ["## Candidates", "", _row(header), _row(["---"] * len(header))]
    ranked = sorted(sweep.candidates, key=lambda c: (c.stopped is not None, -_least(c)))
    for candidate in ranked:
        note = "; ".join(
            text
            for text, wanted in (
                ("**chosen**", candidate.name == sweep.winner),
                ("Pareto front", candidate.pareto),
                (f"stopped: {markdown_inline(candidate.stopped or '')}", candidate.stopped is not None),
            )
            if wanted
        )
        figures = [f"{_plain(candidate.scores.get(n))} ({_percent(candidate.gains.get(n))})" for n in names]
        lines.append(_row([candidate.name, *figures, _plain(candidate.perplexity_ratio), _Written(note)]))
    lines += ["", "Measured against, on the same prompts:", ""]
    labels = list(dict.fromkeys(label for row in sweep.sources.values() for label in row))
    lines += [_row(["capability", *labels]), _row(["---"] * (len(labels) + 1))]
    lines += [_row([name, *(_plain(row.get(label)) for label in labels)]) for name, row in sweep.sources.items()]
    prompts = max((c.prompts for c in sweep.candidates), key=lambda p: sum(p.values()), default={})
    counted = ", ".join(f"{count} {name}" for name, count in prompts.items())
    lines += ["", f"Development split ({counted}); stopped candidates stand on the quick look. {markdown_inline(sweep.why)}.", ""]
    lines += [part for note in sweep.notes for part in (f"{markdown_inline(note)}.", "")]
    if sweep.test is not None:
        lines += ["The winner on the test split, which the choice did not use:", ""]
        lines += model_card_section(sweep.test).splitlines()[2:]
    return "\n".join([*lines, ""])


def _least(candidate: SweepCandidate) -> float:
    return min((gain for gain in candidate.gains.values() if gain is not None), default=-1.0)


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
