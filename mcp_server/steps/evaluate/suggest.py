"""Which knob to turn after an evaluation, and why. One suggestion, the one most likely to help, from figures that were measured.

The order follows what measured best on the running example and elsewhere: scale before method (halving λ cut perplexity from 51
to 20 and doubled a skill), then balance, then another method, and retraining with replay when a source leaks before any merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mcp_server.catalog import load
from mcp_server.formats.lineage import Tried
from mcp_server.schemas.evidence import Capability
from mcp_server.steps.evaluate.cross import CrossContext, leaks
from mcp_server.steps.evaluate.verdict import Outcome, Thresholds, is_perplexity, perplexity_ratio

LAMBDA_STEP: Final = 0.7
WEIGHT_STEP: Final = 1.15


def suggest_next(
    verdict: Outcome,
    capabilities: Mapping[str, Capability],
    limits: Thresholds,
    tried: Tried,
    cross: CrossContext | None = None,
    needed: Mapping[str, int] | None = None,
) -> dict[str, Any] | None:
    """The next recipe to try; null when nothing needs changing.

    Keys: `action` (lower_lambda, rebalance, raise_lambda, change_method, retrain, measure_more), `strategy`, `set` (values for
    `render --set`), `why`, and `sweep: true` where one try is a guess and a bake-off is the better answer.
    """
    if verdict == "passed":
        return None
    if verdict == "inconclusive" and needed:
        most = max(needed.values())
        return {
            "action": "measure_more",
            "prompts": most,
            "why": f"{', '.join(needed)} cannot be told from the target with so few prompts: about {most} would decide it. Leave "
            "--limit out, or give more prompts of your own with --data",
        }
    if verdict == "inconclusive":
        return {
            "action": "measure_more",
            "why": "give the base and the sources, and a suite on which a source is better than the base",
        }
    weak = _weak(capabilities, limits)
    measured = any(is_perplexity(c) for c in capabilities.values())
    worst_ratio = max(
        (r for c in capabilities.values() if is_perplexity(c) and (r := perplexity_ratio(c)) is not None), default=1.0
    )
    leaking = leaks(cross, limits.cross_context_leak) if cross else []
    strategy = tried.method or "task_arithmetic"
    if leaking and weak:
        source, context, rate = leaking[0]
        return {
            "action": "retrain",
            "strategy": strategy,
            "sweep": True,
            "why": f"{source} alone already shows its own behaviour in {rate:.0%} of the {context} prompts, which no recipe "
            "removes: retrain it with replay of the base's answers to such prompts, or keep the adapters apart and route; "
            "until then a sweep over λ finds the best compromise",
        }
    if worst_ratio > limits.perplexity_adjust and tried.method != "linear":
        value = round((tried.lambda_ or 1.0) * LAMBDA_STEP, 2)
        return {
            "action": "lower_lambda",
            "strategy": strategy,
            "set": {"parameters.lambda": value},
            "sweep": True,
            "why": f"perplexity is {worst_ratio:.2f} times the best source's: the deltas are too long in sum; "
            f"λ {value:g} shortens them together",
        }
    if not weak:
        return _together(capabilities)
    strong = [c for c in capabilities.values() if _counts(c) and c not in weak]
    if strong:
        name = weak[0].expert or ""
        if not _weights_scale(strategy):
            full = {f"sources.{source}.weight": 1.0 for source in tried.weights}
            return {
                "action": "change_method",
                "strategy": "task_arithmetic",
                "set": {"strategy": "task_arithmetic", **full, f"sources.{name}.weight": WEIGHT_STEP},
                "why": f"{name} lost its skill and the others kept theirs; under {strategy} a weight does not scale its source, "
                "under task_arithmetic it does, at 1 for a source that is to stay whole",
            }
        value = round(tried.weights.get(name, 1.0) * WEIGHT_STEP, 2)
        return {
            "action": "rebalance",
            "strategy": strategy,
            "set": {f"sources.{name}.weight": value},
            "why": f"{name} recovered only {weak[0].gain_recovered:.0%} of its gain while the others kept theirs",
        }
    if strategy in {"linear", "slerp", "nuslerp", "multislerp", "karcher"}:
        return {
            "action": "change_method",
            "strategy": "task_arithmetic",
            "set": {"parameters.lambda": 1.0},
            "sweep": True,
            "why": f"every skill faded, which averaging ({strategy}) does to deltas that point apart: each keeps only its share; "
            "task_arithmetic adds them",
        }
    return {
        "action": "change_method",
        "strategy": "dare_ties" if strategy != "dare_ties" else "task_arithmetic",
        "sweep": True,
        "why": f"every skill fell under {strategy}{' although perplexity is fine' if measured else ''}: which method keeps both "
        "depends on how the adapters were trained, so compare the shortlist",
    }


def _together(capabilities: Mapping[str, Capability]) -> dict[str, Any] | None:
    """Every source's own skill is kept, and what takes several at once is not: no recipe teaches that."""
    below = [name for name, c in capabilities.items() if c.target is not None and c.merged is not None and c.merged < c.target]
    if not below:
        return None
    return {
        "action": "retrain",
        "why": f"the sources' own skills are kept, {below[0]} is not reached: no source was trained on prompts that need several "
        "of them, and no recipe adds that. Say in the prompt which role is wanted, route by it, or train on such prompts",
    }


def _counts(capability: Capability) -> bool:
    return capability.gain_recovered is not None


def _weak(capabilities: Mapping[str, Capability], limits: Thresholds) -> list[Capability]:
    """Capabilities below target, least recovered first."""
    below = [
        c
        for c in capabilities.values()
        if c.gain_recovered is not None
        and (c.gain_recovered < limits.gain_recovered_target or (c.retention or 0.0) < limits.retention_adjust)
    ]
    return sorted(below, key=lambda c: c.gain_recovered or 0.0)


def _weights_scale(method: str) -> bool:
    """Whether a source's weight scales its own delta; elsewhere weights are normalised or only settle elections."""
    known = load().strategies.get(method)
    return known is not None and known.deltas == "added" and known.inputs.base == "required"
