"""Which suites there are, how many prompts each has, and about how long one model takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from mcp_server.catalog import threshold
from mcp_server.formats.own_data import read_data
from mcp_server.formats.suites import Suite, list_suites
from mcp_server.schemas.evidence import SuiteInfo, SuiteList
from mcp_server.system import paths

LIKELIHOOD_METRICS: Final = ("perplexity", "acc", "acc_norm")
HINT: Final = (
    'A file of your own works like a suite: {"prompt": …, "expected": …} a line in a .jsonl file, or plain prose in a .txt file. '
    "Tasks of lm-eval go by their names."
)


def suite_list(extra: Iterable[str | Path] = ()) -> SuiteList:
    """Shipped suites and those in the folders `extra`, by name. Raises `Malformed` for a suite.yaml that is wrong."""
    return SuiteList(suites=[describe(suite) for _, suite in sorted(list_suites(extra).items())], hint=HINT)


def describe(suite: Suite) -> SuiteInfo:
    prompts = {split: count_prompts(suite, split) for split in ("dev", "test")}
    return SuiteInfo(
        name=suite.name,
        capability=suite.capability,
        title=suite.title,
        metric=suite.metric,
        needs="likelihoods" if needs_likelihoods(suite) else "replies",
        prompts=prompts,
        minutes={split: None if count is None else minutes(count) for split, count in prompts.items()},
        shipped=suite.folder is not None and Path(suite.folder).is_relative_to(paths.SUITES),
        note=suite.note,
    )


def needs_likelihoods(suite: Suite) -> bool:
    """Whether it cannot be measured by replies alone. Of a task of lm-eval's own that is not known before it runs."""
    if suite.data is not None:
        return any(example.match == "choice" for example in read_data(Path(suite.data)))
    return suite.likelihoods == "required" and suite.metric in LIKELIHOOD_METRICS


def minutes(prompts: int, billions: float = 1.0) -> float:
    """For one model of so many billion parameters, by what was measured on two cores."""
    return round(prompts * billions * threshold("seconds_per_prompt_and_billion") / 60, 2)


def count_prompts(suite: Suite, split: Literal["dev", "test"]) -> int | None:
    """From the files beside the suite; null where only its Python code or lm-eval knows."""
    if suite.data is not None:
        return len(read_data(Path(suite.data)))
    folder = Path(suite.folder or "")
    if suite.folder is None:
        return None
    if (lines := folder / f"{split}.jsonl").is_file():
        return sum(1 for line in lines.read_text(encoding="utf-8").splitlines() if line.strip())
    if (text := folder / f"{split}.txt").is_file():
        return len(text.read_text(encoding="utf-8").strip().split("\n\n"))
    return None
