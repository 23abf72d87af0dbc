"""How long evaluations and sweeps will take, before they start.

The work is prompts times parameters. What a prompt and a billion parameters cost is remembered for every suite and dtype that was
measured on this machine (`note_rate`); for other suites it is rules/costs.yaml's figure, taken at a known speed of multiplying
matrices, times how fast this machine multiplies them: a probe of hundredths of a second of processor time. Where other work
waits for the processor too, only the high figure says so.
What a start takes is remembered too (`note_start`). Answers that are remembered cost nothing, and a model of which all are is not
loaded; who estimates says how many those are (`steps/evaluate/known.py`).
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from mcp_server.engine.limits import usable_cores
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.gguf import gguf_files, read_gguf
from mcp_server.formats.own_data import Split, of_split, read_data
from mcp_server.formats.suites import DEFAULT_SPLIT, Suite, content_hash
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.estimate import Seconds
from mcp_server.steps.estimate.costs import costs
from mcp_server.steps.evaluate.listing import count_prompts
from mcp_server.system import paths
from mcp_server.system.files import private_folder, write_json
from mcp_server.system.machine import multiplies_bfloat16

KEPT_RATES: Final = 12
START: Final = "start"
FEWEST: Final = 4
"""Prompts that a rate is taken from at least; fewer are mostly start-up."""
Known = Mapping[tuple[str, str], int]
"""(model's label, suite) → prompts from the first on whose answers are remembered."""
NOTHING: Final[Known] = {}
UNSURE: Final = 2.0
"""A figure that was not measured here may be off by this factor in either direction."""
CROWD: Final = 4.0
"""Other work may be over soon: the most that it lengthens an estimate by."""
PROBE_SIDE: Final = 64
PROBE_GAIN: Final = 1.2
"""What products of 512 rows gain over those of 64: 92 GFLOPS a core against 77, OpenBLAS on an EPYC, idle or busy."""


class Rate(Frozen):
    """Seconds for a prompt and a billion parameters, or for what the function says. `here`: measured on this machine."""

    seconds: float
    here: bool


def note_rate(suite: Suite, dtype: str, seconds: float, prompts: float, parameters: int) -> None:
    """Remember what the prompts of a suite cost one model here, loading it not counted."""
    if prompts < FEWEST or parameters <= 0 or seconds <= 0:
        return
    _note(_key(suite, dtype), seconds / prompts / (parameters / 1e9))


def note_start(seconds: float) -> None:
    """Remember what an evaluation takes here beside loading models and their answers: imports, tasks, reading files, scoring."""
    _note(START, seconds)


def start_of() -> Rate:
    """Seconds, of no model: the same for all."""
    if known := _read_rates(_rates_file()).get(START):
        return Rate(seconds=statistics.median(known), here=True)
    return Rate(seconds=costs().evidence.start_seconds * slowness(), here=False)


def rate_of(suite: Suite, dtype: str) -> Rate:
    """Over base, sources and merges alike: a base agrees with no known reply and is the slowest."""
    if known := _read_rates(_rates_file()).get(_key(suite, dtype)):
        return Rate(seconds=statistics.median(known), here=True)
    return general_rate(dtype)


def general_rate(dtype: str) -> Rate:
    """For a suite that was not measured here."""
    constants = costs().evidence
    return Rate(seconds=constants.seconds_per_prompt_and_billion[_width(dtype)] * slowness(), here=False)


def slowness() -> float:
    """How many times as long as on the machine of the measured figures."""
    return costs().evidence.probe_gflops / multiply_gflops()


def evaluation_seconds(
    models: Mapping[str, int],
    suites: Sequence[Suite],
    prompts: Mapping[str, int | None],
    dtype: str = "auto",
    known: Known = NOTHING,
) -> Seconds | None:
    """Start to end for models (label → parameters) that answer so many prompts of each suite, except what is `known`. None where
    a suite's prompts cannot be counted (a task of lm-eval)."""
    asked = asking_seconds(models, suites, prompts, dtype, known)
    if asked is None:
        return None
    start = start_of()
    return between(start.seconds + asked.seconds, sure=start.here and asked.here)


def asking_seconds(
    models: Mapping[str, int],
    suites: Sequence[Suite],
    prompts: Mapping[str, int | None],
    dtype: str = "auto",
    known: Known = NOTHING,
) -> Rate | None:
    """The same without the start: loading every model that is asked anything, and its answers."""
    load = costs().evidence.load_seconds_per_billion
    seconds, here = 0.0, True
    for label, parameters in models.items():
        left = {name: count and max(count - known.get((label, name), 0), 0) for name, count in prompts.items()}
        answering = answer_seconds(suites, left, dtype)
        if answering is None:
            return None
        seconds += (load + answering.seconds) * parameters / 1e9 if answering.seconds else 0.0
        here = here and answering.here
    return Rate(seconds=seconds, here=here)


def answer_seconds(suites: Sequence[Suite], prompts: Mapping[str, int | None], dtype: str = "auto") -> Rate | None:
    """For a billion parameters to answer so many prompts of each suite. None where a number of prompts is not known."""
    seconds, here = 0.0, True
    for suite in suites:
        if (count := prompts[suite.name]) is None:
            return None
        if count:
            rate = rate_of(suite, dtype)
            seconds, here = seconds + count * rate.seconds, here and rate.here
    return Rate(seconds=seconds, here=here)


def spent(models: Sequence[int], per_billion: float, *, sure: bool) -> Seconds:
    """Start, loading every model, and `per_billion` seconds of answers for each billion parameters."""
    billions = sum(models) / 1e9
    return between(start_of().seconds + billions * (costs().evidence.load_seconds_per_billion + per_billion), sure=sure)


def between(value: float, *, sure: bool) -> Seconds:
    """A figure as far as it is known: a factor of `UNSURE` either way, or of its root where it was measured here, on the machine
    as it usually is. What was not may grow with what else runs."""
    wide, crowd = (math.sqrt(UNSURE), 1.0) if sure else (UNSURE, crowded())
    return Seconds(low=round(value / wide, 1), high=round(value * wide * crowd, 1))


def prompts_of(suite: Suite, split: Split | None, limit: int | None) -> int | None:
    """How many prompts are asked; null where only lm-eval knows and no limit says."""
    if suite.data is not None:
        count: int | None = len(of_split(read_data(Path(suite.data)), split))
    elif suite.text is not None:
        count = len(Path(suite.text).read_text(encoding="utf-8").strip().split("\n\n"))
    else:
        count = count_prompts(suite, split or DEFAULT_SPLIT)
    if count is None:
        return limit
    return count if limit is None else min(count, limit)


def parameters_of(ref: str) -> int:
    """Numbers of a model, of `base+adapter` the base's, from headers. Raises what `open_checkpoint` and `read_gguf` raise."""
    if ref.endswith(".gguf"):
        return sum(math.prod(shape) for file in gguf_files(Path(ref)) for shape in read_gguf(file).shapes.values())
    base = ref if Path(ref).is_dir() else ref.partition("+")[0]
    return sum(math.prod(tensor.shape) for tensor in open_checkpoint(base).tensors.values())


@cache
def multiply_gflops() -> float:
    """How fast the cores of this process multiply float32 matrices when it has them for itself: by the processor time of one
    thread, so that a busy machine looks no slower than it is. Small products, which no library divides between threads."""
    import numpy as np

    side, many = PROBE_SIDE, 64
    stack, one = np.full((many, side, side), 0.5, np.float32), np.full((side, side), 0.5, np.float32)
    result = np.empty_like(stack)
    best = math.inf
    for _ in range(30):
        start = time.thread_time()
        np.matmul(stack, one, out=result)
        best = min(best, time.thread_time() - start)
    return PROBE_GAIN * many * 2 * side**3 / max(best, 1e-9) / 1e9 * usable_cores()


def crowded() -> float:
    """How many times as long as alone work takes just now, by those that wait for the processor; `CROWD` at most."""
    try:
        waiting = os.getloadavg()[0]
    except OSError:
        return 1.0
    return min(max(waiting / usable_cores(), 1.0), CROWD)


def _width(dtype: str) -> str:
    narrow = multiplies_bfloat16() if dtype == "auto" else dtype in ("bfloat16", "float16")
    return "bfloat16" if narrow else "float32"


def _key(suite: Suite, dtype: str) -> str:
    return f"{suite.name} {content_hash(suite)[:16]} {_width(dtype)}"


def _note(key: str, value: float) -> None:
    file = _rates_file()
    known = _read_rates(file)
    known[key] = [*known.get(key, []), float(f"{value:.4g}")][-KEPT_RATES:]
    private_folder(file.parent)
    write_json(file, known)


def _rates_file() -> Path:
    return paths.cache_dir() / "evaluations" / "rates.json"


def _read_rates(file: Path) -> dict[str, list[float]]:
    """Nothing where there is no file, or none of ours: rates are remembered for comfort."""
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): [float(value) for value in values] for key, values in found.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
