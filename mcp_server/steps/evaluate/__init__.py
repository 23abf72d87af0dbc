"""From measured samples to a decision: pure scoring, no model and no torch.

    samples      what one model answered on one suite, as numbers per prompt
    bootstrap    paired resampling: every model sees the same resampled prompts
    capability   base, sources and merge on one suite: retention, gain recovered, intervals
    verdict      passed, adjust or failed, by the thresholds in rules/thresholds.yaml
    suggest      which knob to turn, and why
    cross        each source on every other source's prompts

The worker `mcp_server.workers.evaluate` measures; this package says what the figures mean.
"""

from mcp_server.steps.evaluate.capability import score_capability
from mcp_server.steps.evaluate.cross import cross_context
from mcp_server.steps.evaluate.samples import Metric, SuiteSamples
from mcp_server.steps.evaluate.suggest import suggest_next
from mcp_server.steps.evaluate.verdict import Thresholds, judge, load_thresholds

__all__ = [
    "Metric",
    "SuiteSamples",
    "Thresholds",
    "cross_context",
    "judge",
    "load_thresholds",
    "score_capability",
    "suggest_next",
]
