"""Inline SVG for the report. Positions are per cent and sizes pixels, so a chart fits any width and its text keeps its size.

Colour repeats what shape and text already say: base is a ring, sources are squares, the merge is a diamond, and every figure is
also written out. Charts are decoration to a screen reader; the table around them holds the numbers.
"""

from __future__ import annotations

from markupsafe import Markup, escape

from mcp_server.schemas.evidence import Interval

HEIGHT = 26
PAD = 3.0
"""Per cent left free at both ends, so that marks at the limits are whole."""


def place(value: float, low: float, high: float) -> float:
    """Where a value lies on the axis, in per cent, kept inside it."""
    share = (value - low) / (high - low) if high > low else 0.5
    return round(PAD + (100 - 2 * PAD) * min(max(share, 0.0), 1.0), 2)


def mark(kind: str, x: float) -> str:
    """A mark at `x` per cent: ring (base), square (source) or diamond (merge)."""
    middle = HEIGHT / 2
    if kind == "base":
        return f'<circle class="mark base" cx="{x}%" cy="{middle}" r="5"/>'
    shape = "M0 -7 L7 0 L0 7 L-7 0 Z" if kind == "merged" else "M-5 -5 H5 V5 H-5 Z"
    path = f'<path class="mark {escape(kind)}" d="{shape}"/>'
    return f'<svg x="{x}%" y="{middle}" overflow="visible">{path}</svg>'


def dot(value: float | None, span: Interval | None, kind: str, low: float, high: float, target: float | None = None) -> Markup:
    """One row of a dot plot: axis, target line, interval, mark."""
    middle = HEIGHT / 2
    parts = [f'<line class="axis" x1="{PAD}%" x2="{100 - PAD}%" y1="{middle}" y2="{middle}"/>']
    if target is not None:
        x = place(target, low, high)
        parts.append(f'<line class="target" x1="{x}%" x2="{x}%" y1="2" y2="{HEIGHT - 2}"/>')
    if span is not None:
        left, right = place(span.low, low, high), place(span.high, low, high)
        parts.append(f'<line class="span {escape(kind)}" x1="{left}%" x2="{right}%" y1="{middle}" y2="{middle}"/>')
        parts += [
            f'<line class="cap {escape(kind)}" x1="{x}%" x2="{x}%" y1="{middle - 5}" y2="{middle + 5}"/>' for x in (left, right)
        ]
    if value is not None:
        parts.append(mark(kind, place(value, low, high)))
    return _svg(parts, HEIGHT)


def bar(value: float | None, low: float, high: float, kind: str = "merged", target: float | None = None) -> Markup:
    """A bar from zero (or the axis's low end) to the value, with an optional target line."""
    parts = [f'<rect class="trough" x="{PAD}%" y="7" width="{100 - 2 * PAD}%" height="12" rx="2"/>']
    if value is not None:
        zero = place(max(low, min(0.0, high)), low, high)
        x = place(value, low, high)
        left, width = min(zero, x), abs(x - zero)
        parts.append(f'<rect class="fill {escape(kind)}" x="{left}%" y="7" width="{width:.2f}%" height="12" rx="2"/>')
    if target is not None:
        x = place(target, low, high)
        parts.append(f'<line class="target" x1="{x}%" x2="{x}%" y1="2" y2="{HEIGHT - 2}"/>')
    return _svg(parts, HEIGHT)


def scatter(points: list[tuple[str, float, float, bool]], width_to_height: float = 0.8) -> Markup:
    """Two scores against each other: (label, x, y, on the Pareto front). The front's labels, which should be short, stand beside
    their marks; the ends of both axes are written at the edges.
    """
    height = int(360 * width_to_height)
    parts = [f'<rect class="plane" x="{PAD}%" y="4" width="{100 - 2 * PAD}%" height="{height - 8}" rx="4"/>']
    xs, ys = [p[1] for p in points], [p[2] for p in points]
    places: dict[tuple[float, float], list[tuple[str, bool]]] = {}
    for label, x_value, y_value, on_front in points:
        places.setdefault((x_value, y_value), []).append((label, on_front))
    for (x_value, y_value), here in sorted(places.items(), key=lambda entry: any(front for _, front in entry[1])):
        x = _inset(place(x_value, min(xs), max(xs)))
        y = round(height - 16 - (height - 32) * (place(y_value, min(ys), max(ys)) - PAD) / (100 - 2 * PAD), 1)
        front = [label for label, on_front in here if on_front]
        kind, shape = ("merged", "M0 -6 L6 0 L0 6 L-6 0 Z") if front else ("other", "M-3 -3 H3 V3 H-3 Z")
        title = f"<title>{escape(', '.join(label for label, _ in here))}: {x_value:.3f}, {y_value:.3f}</title>"
        parts.append(f'<svg x="{x}%" y="{y}" overflow="visible"><path class="mark {kind}" d="{shape}">{title}</path></svg>')
        if front:
            anchor, shift = ("end", -10) if x > 50 else ("start", 10)
            text = ", ".join(front)
            parts.append(
                f'<svg x="{x}%" y="{y}" overflow="visible">'
                f'<text class="label" x="{shift}" y="4" text-anchor="{anchor}">{escape(text)}</text></svg>'
            )
    parts += [
        f'<text class="label ends" x="{PAD}%" y="{height + 10}">{min(xs):.3g}</text>',
        f'<text class="label ends" x="{100 - PAD}%" y="{height + 10}" text-anchor="end">{max(xs):.3g}</text>',
        f'<text class="label ends" x="{PAD + 0.5}%" y="{height - 10}">{min(ys):.3g} ↑</text>',
        f'<text class="label ends" x="{PAD + 0.5}%" y="18">{max(ys):.3g} ↑</text>',
    ]
    return _svg(parts, height + 16)


def _inset(x: float) -> float:
    """Off the edges, so that marks and the ends of the axes do not meet."""
    return round(10 + 0.84 * x, 2)


def _svg(parts: list[str], height: int) -> Markup:
    return Markup(f'<svg class="chart" width="100%" height="{height}" aria-hidden="true">{"".join(parts)}</svg>')
