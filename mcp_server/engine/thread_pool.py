"""Threads that share the blocks of a tensor, each with buffers of its own that are reused from block to block."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from mcp_server.engine.blocks import BLOCK_ELEMENTS, Block

Array = np.ndarray[Any, Any]
Result = TypeVar("Result")
State = TypeVar("State")


class Workspace:
    """One thread's buffers, by name; they grow to the largest block seen and are never given back."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}

    def take(self, name: str, count: int, dtype: Any = np.float32) -> Array:
        """A contiguous array of `count` items, holding whatever it held before."""
        held = self._buffers.get(name)
        if held is None or held.size < count:
            held = self._buffers[name] = np.empty(max(count, BLOCK_ELEMENTS), dtype)
        return held[:count]

    def stack(self, name: str, number: int, count: int) -> Array:
        """`number` rows of `count` float32, contiguous."""
        return self.take(name, number * count).reshape(number, count)


class ThreadPool:
    """Threads that share the blocks of one tensor at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self.threads - 1, "merge") if self.threads > 1 else None
        self._local = threading.local()

    def workspace(self) -> Workspace:
        """The calling thread's own."""
        if not hasattr(self._local, "workspace"):
            self._local.workspace = Workspace()
        return self._local.workspace

    def run(self, work: Callable[[Workspace, Block], Result], blocks: Sequence[Block]) -> list[Result]:
        """Do `work` on every block; results in block order. The first exception stops the others and is raised."""
        results: list[Any] = [None] * len(blocks)

        def each(workspace: Workspace, block: Block, _: None) -> None:
            results[block.index] = work(workspace, block)

        self.fold(each, blocks, lambda: None)
        return results

    def fold(
        self, work: Callable[[Workspace, Block, State], None], blocks: Sequence[Block], start: Callable[[], State]
    ) -> list[State]:
        """Like `run`, but every thread carries a state of its own through its blocks; returns the states, in no order."""
        counter = itertools.count()
        stop = threading.Event()

        def loop() -> State:
            workspace, state = self.workspace(), start()
            try:
                while not stop.is_set() and (i := next(counter)) < len(blocks):
                    work(workspace, blocks[i], state)
            except BaseException:
                stop.set()
                raise
            return state

        helpers = [self._pool.submit(loop) for _ in range(min(self.threads, len(blocks)) - 1)] if self._pool else []
        try:
            states = [loop()]
        finally:
            for helper in helpers:
                helper.exception()  # wait: nobody may still use the buffers
        return states + [helper.result() for helper in helpers]

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
