"""The same merge into memory: each tensor's bytes are handed over as it is finished, and nothing is written.

For who tries many recipes of one model, such as a sweep. The bytes are those that `merge` would write (the same passes, plan and
seed); there is no journal, because starting again costs as much as looking for one.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np

from mcp_server.engine.blocks import split
from mcp_server.engine.coverage import require_coverage
from mcp_server.engine.layout import Layout, plan_layout
from mcp_server.engine.limits import usable_cores
from mcp_server.engine.merge import fingerprint
from mcp_server.engine.output_config import output_config
from mcp_server.engine.plan import MergePlan, TensorPlan, make_plan
from mcp_server.engine.reader import Reader
from mcp_server.engine.request import Report
from mcp_server.engine.tensor_pass import Pass
from mcp_server.engine.thread_pool import ThreadPool
from mcp_server.formats import tensor_names
from mcp_server.formats.companions import TurnSettings
from mcp_server.formats.dtypes import DTYPE_KEYS
from mcp_server.formats.recipe import merge_recipe

Array = np.ndarray[Any, Any]
Take = Callable[[TensorPlan, Array], None]
"""Takes a finished tensor and its bytes (uint8, as the output would store them); called once per tensor, in the plan's order."""


class InMemory:
    """One recipe, planned. Raises what `merge` raises for a recipe that is wrong."""

    def __init__(self, recipe: str, seed: int) -> None:
        parsed = merge_recipe(recipe)
        require_coverage(parsed)
        self.plan: MergePlan = make_plan(parsed)
        self.seed = seed
        self._layout: Layout = plan_layout(self.plan.tensors, 1 << 62)
        self.fingerprint = fingerprint(self.plan, self._layout, seed)

    def differs_from_donor(self) -> str | None:
        """Why a loaded donor cannot take the output's values: it is another model beside them. None when it can."""
        plan, donor = self.plan, self.plan.sources[self.plan.recipe.donor]
        if plan.layers is not None:
            return "it takes layers apart"
        if plan.vocabulary is not None or plan.recipe.chat_template or plan.recipe.tokenizer_from:
            return "it has a tokenizer of its own"
        if donor.tied is not False and any(tensor_names.is_head(tensor.name) for tensor in plan.tensors):
            return "its head may be tied or not"
        if _without_dtypes(output_config(plan)) != _without_dtypes(donor.checkpoint.config):
            return "it has a config of its own"
        own = TurnSettings.of(donor.checkpoint.folder)
        folders = [
            source.adapter.folder
            if source.adapter and (source.adapter.folder / "tokenizer_config.json").is_file()
            else source.checkpoint.folder
            for source in plan.sources.values()
        ]
        return "its sources end their turns otherwise" if any(TurnSettings.of(f).differences(own) for f in folders) else None

    def run(self, take: Take, report: Report, threads: int | None = None) -> None:
        """Merge every tensor. Raises what `merge` raises: not finite, changed or unreadable inputs."""
        count = threads or usable_cores()
        sink = _Sink(self.plan, self._layout, take, count)
        with closing(Reader(forget=False)) as reader, closing(ThreadPool(count)) as pool:
            Pass(self.plan, self._layout, reader, sink, sink, pool, self.seed, False, report).all_tensors()


class _Sink:
    """In the place of writer and journal: blocks are copied to their tensor, which is handed over when it is finished."""

    def __init__(self, plan: MergePlan, layout: Layout, take: Take, threads: int) -> None:
        self.plan, self.layout, self.take = plan, layout, take
        self.done: dict[int, Any] = {}
        self._open: dict[int, Array] = {}
        self._free: queue.SimpleQueue[Array] = queue.SimpleQueue()
        largest = max((block.count for tensor in plan.tensors for block in split(tensor.shape)), default=1)
        for _ in range(threads + 1):
            self._free.put(np.empty(4 * largest, np.uint8))

    def buffer(self) -> Array:
        return self._free.get()

    def write(self, tensor: int, offset: int, buffer: Array, count: int) -> None:
        whole = self._open.get(tensor)
        if whole is None:
            whole = self._open.setdefault(tensor, np.empty(self.layout.places[tensor].nbytes, np.uint8))
        whole[offset : offset + count] = buffer[:count]
        self._free.put(buffer)

    def computed(self, tensor: int, evidence: Any) -> None:
        """Nothing is recorded."""

    def finished(self, tensor: int) -> None:
        self.take(self.plan.tensors[tensor], self._open.pop(tensor, np.empty(0, np.uint8)))


def _without_dtypes(config: Any) -> Any:
    if isinstance(config, dict):
        return {key: _without_dtypes(value) for key, value in config.items() if key not in DTYPE_KEYS}
    return config
