"""Paired bootstrap: intervals of figures that several models earned on the same prompts.

Prompts differ in difficulty far more than models do, so resampling prompts *jointly* for all models gives much narrower, and
honest, intervals of differences and ratios. 95 % percentile intervals (Efron and Tibshirani 1993, chapter 13); a fixed seed makes
every report reproducible. numpy is imported on first use: importing this module stays cheap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mcp_server.schemas.evidence import Interval
from mcp_server.steps.evaluate.samples import Metric

if TYPE_CHECKING:
    import numpy as np

RESAMPLES: Final = 2000
SEED: Final = 20_250_101


def resample(metrics: Mapping[str, Metric], resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, np.ndarray[Any, Any]]:
    """Figures of every model under the same `resamples` draws of prompts: label → array of that length.

    Models whose metric is a bare aggregate, or that have no sample, are left out. Raises `ValueError` when two models were not
    measured on the same number of prompts: they cannot be paired.
    """
    import numpy as np

    usable = {label: metric for label, metric in metrics.items() if metric.kind != "point" and metric.values}
    if not usable:
        return {}
    sizes = {len(metric.values) for metric in usable.values()}
    if len(sizes) > 1:
        raise ValueError(f"models were measured on different numbers of prompts: {sorted(sizes)}")
    count = sizes.pop()
    draws = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    figures = {}
    for label, metric in usable.items():
        values = np.asarray(metric.values, dtype=np.float64)[draws]
        if metric.kind == "perplexity":
            weights = np.asarray(metric.weights, dtype=np.float64)[draws]
            figures[label] = np.exp(np.minimum(-values.sum(axis=1) / weights.sum(axis=1), 700.0))
        else:
            figures[label] = values.mean(axis=1)
    return figures


def interval(figures: np.ndarray[Any, Any]) -> Interval | None:
    """The middle 95 % of the finite figures; null when fewer than half are finite (a ratio whose divisor vanished)."""
    import numpy as np

    finite = figures[np.isfinite(figures)]
    if finite.size * 2 < figures.size:
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(low=float(low), high=float(high))


def ratio(numerator: np.ndarray[Any, Any], divisor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Element-wise, with a vanished divisor as NaN rather than a warning."""
    import numpy as np

    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, divisor, out=result, where=np.abs(divisor) > 1e-12)
    return result
