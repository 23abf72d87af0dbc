"""Where tasks run: processes of this machine, or a Ray cluster. Both take tasks and give (task, answer) as each one ends.

On Ray a task is `run_task` with declared CPUs, memory and GPUs; when its worker or its node dies it is retried elsewhere.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

from mcp_server.errors import BadInput, RunFailed
from mcp_server.workers.tasks.resident import Resident
from mcp_server.workers.tasks.task import Task, run_task

RETRIES = 3
Answer = tuple[Task, dict[str, Any]]


class Executor(Protocol):
    """`name` and `workers` are for the record."""

    name: str
    workers: int

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        """Run all tasks; yields in the order in which they end."""
        ...

    def close(self) -> None: ...


class LocalExecutor:
    """`workers` tasks at once, the processors shared between them. Each keeps one process for the steps of the module `resident`,
    if one is named."""

    name = "local"

    def __init__(self, workers: int = 1, resident: str | None = None) -> None:
        self.workers, self._resident = workers, resident
        self._threads = str(max(1, (os.cpu_count() or 1) // workers))
        self._residents: list[Resident] = []
        self._idle: queue.SimpleQueue[Resident | None] = queue.SimpleQueue()

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        environment = {"OMP_NUM_THREADS": self._threads, "NUMBA_NUM_THREADS": self._threads}

        def run(task: Task) -> dict[str, Any]:
            resident = self._idle.get()
            try:
                return run_task(task.as_dict(), environment, resident)
            finally:
                self._idle.put(resident)

        if self._resident is not None and not self._residents:
            self._residents = [Resident(self._resident, environment) for _ in range(self.workers)]
        while self._idle.qsize() < self.workers:
            self._idle.put(self._residents[self._idle.qsize()] if self._residents else None)
        if any(step.module == self._resident for task in tasks for step in task.steps):
            for resident in self._residents:
                resident.start()
        pool = ThreadPoolExecutor(self.workers)
        try:
            futures = {pool.submit(run, task): task for task in tasks}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # whoever stops asking, at a failure, wants no more begun

    def close(self) -> None:
        """End the residents."""
        for resident in self._residents:
            resident.close()


class RayExecutor:
    """Tasks on a cluster at `address` (`auto`, `HOST:PORT`, `ray://…`), whose nodes share a file system and this installation."""

    name = "ray"

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ModuleNotFoundError as missing:
            raise BadInput("work on Ray needs the package ray", 'pip install "model-merging[ray]"') from missing
        self._ray = ray
        try:
            ray.init(address=address, ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BadInput(f"no Ray cluster answers at {address!r}: {error}", "start one with `ray start --head`") from error
        self.workers = int(ray.cluster_resources().get("CPU", 1))

    def run(self, tasks: Sequence[Task]) -> Iterator[Answer]:
        ray = self._ray
        remote = ray.remote(run_task)
        waiting: dict[Any, Task] = {}
        for task in tasks:
            declared = {"num_cpus": task.cpus, "num_gpus": task.gpus, "memory": task.memory_bytes or None}
            call = remote.options(max_retries=RETRIES, **declared)
            waiting[call.remote(task.as_dict(), {"OMP_NUM_THREADS": str(max(1, int(task.cpus)))})] = task
        while waiting:
            (ended, *_), _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(ended)
            try:
                yield task, ray.get(ended)
            except ray.exceptions.RayError as error:
                failed = RunFailed(f"{task.name}: the cluster gave up: {type(error).__name__}", "see the cluster's dashboard")
                yield task, {"error": failed.as_dict(), "attempts": RETRIES + 1}

    def close(self) -> None:
        self._ray.shutdown()


def executor_for(ray: str | None, workers: int, resident: str | None = None) -> Executor:
    """The cluster at an address if there is one, else this machine. Whoever asks closes it."""
    return RayExecutor(ray) if ray else LocalExecutor(workers, resident)
