"""The evaluation as Markdown, for the model card."""

from __future__ import annotations

from mcp_server.core.models.evidence import Capability, Evaluation


def model_card_section(evaluation: Evaluation) -> str:
    """A table per the same prompts for base, sources and merge, the verdict, and how it was measured."""
    sources = list(dict.fromkeys(name for c in evaluation.capabilities.values() for name in c.sources))
    header = ["capability (metric, prompts)", "base", *sources, "merged", "retention", "gain recovered"]
    lines = ["## Evaluation", "", _row(header), _row(["---"] * len(header))]
    lines += [_row(_cells(name, c, sources)) for name, c in evaluation.capabilities.items()]
    lines += ["", f"Verdict: **{evaluation.verdict}**.", ""]
    lines += [f"- {reason}" for reason in evaluation.why]
    if evaluation.next:
        lines += ["", f"Next: {evaluation.next.get('why', evaluation.next)}"]
    notes = [
        f"{evaluation.split} split, greedy, the same prompts for every model ({evaluation.numerics})",
        "adapters were folded into their base in float32 and rounded once",
        "intervals are 95 % paired bootstrap; gain recovered = (merged − base) ÷ (expert − base), given only where the expert "
        "beats the base by two standard errors",
    ]
    return "\n".join([*lines, "", "Measured with lm-evaluation-harness: " + "; ".join(notes) + ".", ""])


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
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
