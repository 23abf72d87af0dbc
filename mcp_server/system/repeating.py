"""A call that is repeated beside the work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(call: Callable[[], object], every_seconds: float) -> Iterator[None]:
    """Call `call` from a thread every so many seconds while the block runs. It has ended when the block has."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_seconds):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
