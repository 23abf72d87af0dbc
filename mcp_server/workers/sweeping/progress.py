"""What a sweep says while its tasks run: its own count, and the newest word of the process that works just now."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mcp_server.system.repeating import repeating
from mcp_server.workers.protocol import Job
from mcp_server.workers.tasks.task import Task
from mcp_server.workers.tasks.watching import EVERY_S, newest_word


class Progress:
    """`tell` is the sweep's own word; `following` repeats it with what the tasks say until the block ends."""

    def __init__(self, job: Job, every_s: float = EVERY_S) -> None:
        self._job, self._every_s = job, every_s
        self._now: tuple[str, int, int | None] = ("starting", 0, 1)
        self._ends: float | None = None
        self._leaders: Sequence[str] = ()

    def tell(
        self,
        stage: str,
        done: int,
        total: int | None,
        message: str = "",
        *,
        left: float | None = None,
        leaders: Sequence[str] = (),
    ) -> None:
        """`left`: seconds until the sweep ends; `leaders`: the best so far, one a line."""
        self._now, self._leaders = (stage, done, total or None), leaders
        self._ends = None if left is None else time.monotonic() + left
        self._say(message)

    def _say(self, message: str) -> None:
        left = None if self._ends is None else max(self._ends - time.monotonic(), 0.0)
        self._job.progress(
            *self._now, unit="candidates", message=message, every_seconds=0.0, left_seconds=left, leaders=self._leaders
        )

    @contextmanager
    def following(self, tasks: Sequence[Task]) -> Iterator[None]:
        """Read along on a thread of its own; a file that is not there yet, or is half written, says nothing."""
        last = ""

        def follow() -> None:
            nonlocal last
            if (word := newest_word(tasks)) and word != last:
                last = word
                self._say(word)

        with repeating(follow, self._every_s):
            yield
