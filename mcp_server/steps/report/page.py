"""Fill in the page. The template holds the words and the order; this module prepares what it shows."""

from __future__ import annotations

import math
import re
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from mcp_server.errors import BadInput
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.evidence import Capability, Interval, ReportResult
from mcp_server.schemas.limits import MAX_CELLS
from mcp_server.steps.evaluate.verdict import load_thresholds
from mcp_server.steps.report import charts
from mcp_server.steps.report.gather import HOW, Evidence, gather
from mcp_server.steps.report.markdown import model_card_section
from mcp_server.system.outputs import require_file, write_own
from mcp_server.system.plain_text import printable

HERE = Path(__file__).parent
_REPORT_MARK = '<meta name="generator" content="model-merging report">'
_SECTION_MARK = "<!-- made by model-merging report -->"


class Row(Frozen):
    """One model in one capability's table."""

    label: str
    kind: str
    value: float | None
    interval: Interval | None
    chart: Any = None
    note: str = ""


class Panel(Frozen):
    """One capability: its rows and how to read them."""

    name: str
    metric: str
    direction: str
    n: int
    rows: list[Row]
    target: float | None
    retention: float | None
    gain: float | None
    gain_interval: Interval | None
    gain_chart: Any = None
    details: list[tuple[str, dict[str, float | None]]]


def write_report(out: Path, output: Path | None = None) -> ReportResult:
    """Write `output` (default: OUT/report.html) and the evaluation as Markdown beside it, over earlier reports only.

    Raises `NotFound`, `Malformed`, `BadInput` for a name that does not end in .html, `OutputExists` for another file's place.
    """
    target = output or out / "report.html"
    if target.suffix != ".html":
        raise BadInput(f"{target} does not end in .html", "name a report as REPORT.html")
    evidence = gather(out)
    markdown = target.with_suffix(".md") if evidence.evaluation is not None else None
    require_file(target, _is_report, "a report")
    if markdown is not None:
        require_file(markdown, _is_section, "a report's Markdown")
    html = render_page(evidence)
    if evidence.evaluation is not None and markdown is not None:
        write_own(markdown, f"{_section(evidence)}\n{_SECTION_MARK}\n", _is_section, "a report's Markdown")
    write_own(target, html, _is_report, "a report")
    return ReportResult(
        html=str(target),
        markdown=str(markdown) if markdown else None,
        bytes=len(html.encode()),
        current=evidence.current,
        left_out=evidence.left_out,
    )


def _section(evidence: Evidence) -> str:
    """The evaluation for the model card; figures of other weights say so first."""
    if evidence.evaluation is None:
        return ""
    text = model_card_section(evidence.evaluation)
    if evidence.current.get("evaluation") is not False:
        return text
    return text.replace("\n\n", "\n\n**These figures are of other weights: the merge changed since it was measured.**\n\n", 1)


def _is_report(text: str) -> bool:
    return _REPORT_MARK in text[:4000]


def _is_section(text: str) -> bool:
    return text.rstrip().endswith(_SECTION_MARK)


def render_page(evidence: Evidence) -> str:
    """The whole page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"figure": figure, "percent": percent, "size": size, "short": short, "ticks": ticks}
    evaluation = evidence.evaluation
    limits = load_thresholds()
    return environment.get_template("page.html.j2").render(
        e=evidence,
        css=(HERE / "page.css").read_text(encoding="utf-8"),
        panels=[panel(name, c, limits.gain_recovered_target) for name, c in evaluation.capabilities.items()]
        if evaluation
        else [],
        how=HOW,
        limits=limits,
        contexts=_contexts(evidence),
        recipe=_recipe(evidence),
        heat=_heat(evidence),
        pareto=_pareto(evidence),
        cost=_cost(evidence),
        headline=_headline(evidence),
    )


def panel(name: str, capability: Capability, target: float) -> Panel:
    values = [("base", "base", capability.base)]
    values += [(source, "source", value) for source, value in capability.sources.items()]
    values += [("merged", "merged", capability.merged)]
    values += [(label, "merged", one.figure) for label, one in capability.exports.items()]
    low, high = _axis(capability)
    rows = [
        Row(
            label=label,
            kind=kind,
            value=value,
            interval=capability.ci.get(label),
            chart=charts.dot(value, capability.ci.get(label), kind, low, high),
            note="expert" if label == capability.expert and capability.gain_recovered is not None else "",
        )
        for label, kind, value in values
        if value is not None
    ]
    gain = capability.gain_recovered
    return Panel(
        name=name,
        metric=capability.metric,
        direction="more is better" if capability.higher_is_better else "less is better",
        n=capability.n,
        rows=rows,
        target=capability.target,
        retention=capability.retention,
        gain=gain,
        gain_interval=capability.ci.get("gain_recovered"),
        gain_chart=charts.bar(gain, min(0.0, gain), max(1.0, gain), target=target) if gain is not None else None,
        details=[(label, dict(found)) for label, found in capability.detail.items() if isinstance(found, dict)],
    )


def _axis(capability: Capability) -> tuple[float, float]:
    """0 to 1 for shares; otherwise a range around what is shown."""
    figures = [v for v in (capability.base, capability.merged, *capability.sources.values()) if v is not None]
    shown = figures + [
        end for name, i in capability.ci.items() if name not in ("retention", "gain_recovered") for end in (i.low, i.high)
    ]
    if not shown:
        return 0.0, 1.0
    if capability.higher_is_better and min(shown) >= 0 and max(shown) <= 1:
        return 0.0, 1.0
    margin = (max(shown) - min(shown)) * 0.1 or max(abs(max(shown)), 1.0) * 0.1
    return min(shown) - margin, max(shown) + margin


def _headline(evidence: Evidence) -> str:
    evaluation = evidence.evaluation
    if evaluation is None:
        return "Nobody has measured this merge yet."
    if evidence.current.get("evaluation") is False:
        return "The merge changed since it was measured: the figures below are of other weights."
    kept = [(name, c.gain_recovered) for name, c in evaluation.capabilities.items() if c.gain_recovered is not None]
    kept = [(name, gain) for name, gain in kept if "perplexity" not in evaluation.capabilities[name].metric]
    parts = [f"{name} keeps {gain:.0%} of its expert's gain" for name, gain in kept]
    if evaluation.perplexity_ratio is not None:
        parts.append(f"perplexity is {evaluation.perplexity_ratio:.2f} times the best source's")
    return (
        "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "." if parts else "No capability could be compared with an expert."
    )


def _recipe(evidence: Evidence) -> str | None:
    """The recipe with folders by their names: the page is for sharing, a home folder is not."""
    if (text := evidence.recipe) is None:
        return None
    parts = {part for source in (evidence.provenance.sources if evidence.provenance else []) for part in source.ref.split("+")}
    for part in sorted(parts, key=len, reverse=True):
        if part.startswith("/"):
            text = text.replace(part, f"…/{Path(part).name}")
    return text


def _contexts(evidence: Evidence) -> list[str]:
    evaluation = evidence.evaluation
    rows = evaluation.cross_context.values() if evaluation else []
    return list(dict.fromkeys(context for row in rows for context in row))


def _heat(evidence: Evidence) -> dict[str, Any] | None:
    """The comparison by layer: how much each source changed, and for each pair sign disagreement and how uneven the norms are.

    Every cell is (figure, shade from 0 to 4). Layers that no source changed are left out, and those beyond `MAX_CELLS`
    are counted. Null without a comparison.
    """
    layers = (evidence.comparison or {}).get("layers") or {}
    changed = {name: row for name, row in layers.items() if any(source["norm"] for source in row["sources"])}
    if not changed:
        return None
    first = next(iter(changed.values()))
    largest = max(source["relative_norm"] or 0.0 for row in changed.values() for source in row["sources"])
    rows: list[tuple[str, list[tuple[float | None, int | None]]]] = []
    shown = MAX_CELLS // (len(first["sources"]) + 2 * len(first["pairs"]))
    for name, row in islice(changed.items(), shown):
        cells = [(source["relative_norm"], _shade(source["relative_norm"], 0.0, largest)) for source in row["sources"]]
        for pair in row["pairs"]:
            ratio = pair["norm_ratio"]
            cells.append((pair["sign_disagreement"], _shade(pair["sign_disagreement"], 0.4, 0.6)))
            cells.append((ratio, _shade(abs(math.log2(ratio)) if ratio else None, 0.0, 2.0)))
        rows.append((name, cells))
    return {
        "sources": [source["name"] for source in first["sources"]],
        "pairs": [" and ".join(pair["between"]) for pair in first["pairs"]],
        "rows": rows,
        "more": len(changed) - len(rows),
    }


def _shown(value: object) -> object:
    """Text out of files without controls and marks that turn the direction of writing; the page's own pieces as they are."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _shade(value: float | None, low: float, high: float) -> int | None:
    return None if value is None else min(4, max(0, int(5 * (value - low) / ((high - low) or 1.0))))


def _pareto(evidence: Evidence) -> dict[str, Any] | None:
    """Two axes of a sweep and its candidates, for the scatter and the table."""
    sweep = evidence.sweep
    if not sweep or not sweep.get("candidates"):
        return None
    names = list(dict.fromkeys(name for c in sweep["candidates"] for name in (c.get("scores") or {})))
    measured = [c for c in sweep["candidates"] if c.get("scores") and not c.get("stopped")]
    whole = [c for c in measured if all(c["scores"].get(n) is not None for n in names[:2])]
    front = [c["name"] for c in whole if c.get("pareto")]
    marks = {name: "chosen" if name == sweep.get("winner") else str(number) for number, name in enumerate(front, 1)}
    chart = None
    if len(names) >= 2 and len(whole) > 1:
        x, y = names[:2]
        chart = charts.scatter(
            [(marks.get(c["name"], c["name"]), c["scores"][x], c["scores"][y], c["name"] in marks) for c in whole]
        )
    found = {"names": names, "candidates": sweep["candidates"], "winner": sweep.get("winner")}
    return found | {"chart": chart, "marks": marks}


def _cost(evidence: Evidence) -> list[dict[str, str]]:
    """Estimate against measurement of the merge and its evaluation, for whatever of both is known."""
    measured = evidence.merge
    engine = evidence.provenance.engine if evidence.provenance else ""
    estimated = ((evidence.estimate or {}).get("engines") or {}).get(engine) or {}
    evaluating = (evidence.estimate or {}).get("evaluate") or {}
    evaluation = evidence.evaluation
    rows = [
        ("merge: peak anonymous memory", size(estimated.get("peak_anon_bytes")), size(measured.get("peak_anon_bytes"))),
        ("merge: disk", size(estimated.get("disk_bytes")), size(measured.get("bytes"))),
        ("merge: seconds", _span(estimated), figure(measured.get("wall_seconds"))),
    ]
    if evaluation is not None:
        memory = size(evaluating.get("peak_anon_bytes"))
        rows += [
            ("evaluation: peak resident memory", memory, size(evaluation.peak_rss_bytes)),
            ("evaluation: seconds", _span(evaluating), figure(evaluation.seconds)),
        ]
    return [
        {"step": step, "estimate": low, "measured": high} for step, low, high in rows if low != "–" or high not in ("–", "0.000")
    ]


def _span(cost: dict[str, Any]) -> str:
    seconds = cost.get("seconds")
    return f"{seconds['low']:.0f} to {seconds['high']:.0f}" if seconds else "–"


def figure(value: float | None) -> str:
    """Three significant places, or a dash for unknown."""
    if value is None:
        return "–"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def size(value: float | None) -> str:
    """Bytes in binary units."""
    if value is None:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def ticks(text: str) -> Markup:
    """Text with `code` in it."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def short(ref: str) -> str:
    """A path by its last part, an adapter by both; hub ids stay. Keeps the homes of this machine out of the page."""
    return " + ".join(Path(part).name if part.startswith("/") else part for part in str(ref).split("+"))
