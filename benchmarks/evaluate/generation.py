"""Replies to one suite as lm-eval generates them, and with the shared prefix and expected replies as drafts, in one process.

usage: generation.py MODEL [--suite NAME] [--limit N]

CPU seconds are those of asking and scoring, without imports and loading; nothing is remembered. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from typing import Any

from lm_eval.models.huggingface import HFLM

from mcp_server.formats.suites import find_suite
from mcp_server.workers.evaluating import harness, local
from mcp_server.workers.evaluating.generation import DraftingLM
from mcp_server.workers.evaluating.request import quiet


def as_lm_eval(self: Any, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
    replies: list[str] = HFLM.generate_until(self, requests, disable_tqdm=disable_tqdm)
    return replies


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
    for name, generate in (("lm-eval", as_lm_eval), ("drafts", DraftingLM.generate_until)):
        DraftingLM.generate_until = generate  # type: ignore[method-assign, assignment]
        with tempfile.TemporaryDirectory() as home:
            os.environ["MODEL_MERGING_HOME"] = home
            model = local.local_models({"model": given.model}, "auto", 16, None)["model"].model
            model._model()
            start = time.process_time()
            replies[name] = tasks.run(suite, model).replies
            seconds[name] = round(time.process_time() - start, 1)
    same = sum(one == other for one, other in zip(*replies.values(), strict=True))
    print(json.dumps({"cpu_seconds": seconds, "replies": given.limit, "identical": same, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
