"""What was read of a file, kept while the file is as it was: a process reads one header once."""

from __future__ import annotations

import os
import time
from typing import Final, Generic, TypeVar

T = TypeVar("T")
MOST: Final = 64
SETTLED_NS: Final = 100_000_000
"""A file that changed less than a tenth of a second ago is read again: file systems count in ticks of up to 10 ms."""


class Remembered(Generic[T]):
    """By device, inode, size and both times; of more than `most` files the oldest are forgotten."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: dict[tuple[int, ...], T] = {}

    def of(self, about: os.stat_result) -> T | None:
        return self._known.get(_key(about))

    def keep(self, about: os.stat_result, found: T) -> None:
        if time.time_ns() - about.st_ctime_ns > SETTLED_NS:
            self._known[_key(about)] = found
            while len(self._known) > self._most:
                del self._known[next(iter(self._known))]

    def clear(self) -> None:
        self._known.clear()


def _key(about: os.stat_result) -> tuple[int, ...]:
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns
