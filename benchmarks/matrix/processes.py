"""Rows of a matrix in several processes: each is made by itself, and they come in the order in which they were asked for."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import torch
import transformers

from mcp_server.engine.limits import usable_cores

Asked, Made = TypeVar("Asked"), TypeVar("Made")


def add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs", type=int, default=usable_cores(), metavar="N", help="processes (default: one a core, %(default)s)"
    )


def quiet() -> None:
    """One thread a process, and no word but the rows."""
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.disable(logging.WARNING)  # mergekit tells of each class what it infers


def each(make: Callable[[Asked], Made], asked: Iterable[Asked], jobs: int) -> Iterator[Made]:
    """`make` of each, in order. A function of a module; deadlines by signals work, as each runs in its process's main thread."""
    asked = list(asked)
    if jobs < 2 or len(asked) < 2:
        quiet()
        yield from map(make, asked)
        return
    with ProcessPoolExecutor(min(jobs, len(asked)), multiprocessing.get_context("spawn"), quiet) as pool:
        yield from pool.map(make, asked)
