"""Work that the garbage collector need not look at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No cycle is looked for meanwhile: for short work that makes many objects and no cycles, such as reading large headers.

    The collector passes over all that is alive each time the number of objects has grown by a quarter, which was half
    of the time. Where calls overlap, the first that ends switches it on again.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
