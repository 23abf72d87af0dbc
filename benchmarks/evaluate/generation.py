"""Replies and likelihoods of one suite as lm-eval makes them, and with the shared prefix and expected replies as drafts.

usage: generation.py MODEL [--suite NAME] [--limit N]

CPU seconds are those of asking and scoring, without imports and loading; nothing is remembered. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from typing import Any

from lm_eval.models.huggingface import HFLM

from mcp_server.formats.suites import find_suite
from mcp_server.workers.evaluating import generation, harness, local
from mcp_server.workers.evaluating.generation import DraftingLM
from mcp_server.workers.evaluating.request import quiet


class AsLmEval(DraftingLM):
    """lm-eval's own ways."""

    generate_until = HFLM.generate_until
    _loglikelihood_tokens = HFLM._loglikelihood_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--suite", default="task_api_tools")
    parser.add_argument("--limit", type=int, default=24)
    given = parser.parse_args()
    quiet(offline=True)
    suite = find_suite(given.suite)
    tasks = harness.Harness([suite], "test", {suite.name: given.limit})
    seconds: dict[str, float] = {}
    replies: dict[str, list[str]] = {}
    scores: dict[str, Any] = {}
    for name, way in (("lm-eval", AsLmEval), ("drafts", DraftingLM)):
        generation.DraftingLM = way  # type: ignore[misc, assignment] - where the loader of models takes it from
        with tempfile.TemporaryDirectory() as home:
            os.environ["MODEL_MERGING_HOME"] = home
            model = local.local_models({"model": given.model}, "auto", 16, None)["model"].model
            model._model()
            start = time.process_time()
            found = tasks.run(suite, model)
            seconds[name] = round(time.process_time() - start, 1)
            replies[name] = found.replies
            scores[name] = {key: [round(value, 3) for value in metric.values] for key, metric in found.metrics.items()}
    same = sum(one == other for one, other in zip(*replies.values(), strict=True))
    alike = {
        key: sum(math.isclose(a, b, abs_tol=1e-3) for a, b in zip(values, scores["drafts"][key], strict=True))
        for key, values in scores["lm-eval"].items()
    }
    told = {"cpu_seconds": seconds, "prompts": given.limit, "identical replies": same, "equal scores": alike}
    print(json.dumps({**told, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
