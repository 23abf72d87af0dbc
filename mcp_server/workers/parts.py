"""A merge split by output file: each file is a task, run by processes of this machine or by a Ray cluster.

A task is the streaming worker with the number of one file. Its journal lies under `.parts` in the folder that is being filled, so
a task that runs again, there or on another node, goes on where it was; when all files are whole, `.parts` goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

from mcp_server.engine.limits import usable_cores
from mcp_server.engine.memory import peak_anon, shape_of
from mcp_server.engine.merge import Filled, Work, merge_in_parts
from mcp_server.engine.request import Report, Request
from mcp_server.errors import from_dict
from mcp_server.system.repeating import repeating
from mcp_server.workers.protocol import Job
from mcp_server.workers.tasks.executors import Executor, executor_for
from mcp_server.workers.tasks.task import Step, Task
from mcp_server.workers.tasks.watching import EVERY_S, newest_word

FOLDER: Final = ".parts"


def merge_by_tasks(request: Request, job: Job, report: Report) -> dict[str, Any]:
    """What `merge` returns, and the same bytes."""
    ray, workers = job.parameters.get("ray"), int(job.parameters.get("workers") or 1)
    threads = request.threads or (1 if ray else max(1, usable_cores() // workers))
    with closing(executor_for(ray, workers)) as executor:
        return merge_in_parts(request, lambda work: _run(executor, work, request, job, threads), report)


def _tasks(work: Work, request: Request, job: Job, threads: int) -> list[Task]:
    fixed = {**job.parameters, "recipe": request.recipe, "fingerprint": work.fingerprint(), "seed": work.seed, "threads": threads}
    memory = sum(peak_anon(shape_of(work.plan, threads)).values())
    tasks = []
    for number, shard in enumerate(work.layout.shards):
        folder = request.folder / FOLDER / f"{number:05d}"
        file = request.folder / shard.file
        if not (file.is_file() and file.stat().st_size == shard.file_bytes):
            shutil.rmtree(folder, ignore_errors=True)  # what it says of the file is about another
        steps = [Step("mcp_server.workers.stream", {**fixed, "shard": number})]
        tasks.append(Task(shard.file, str(folder), steps, cpus=threads, memory_bytes=memory, roots=job.roots))
    return tasks


def _run(executor: Executor, work: Work, request: Request, job: Job, threads: int) -> Iterator[Filled]:
    tasks = _tasks(work, request, job, threads)
    sizes = {shard.file: shard.file_bytes for shard in work.layout.shards}
    done = 0

    def tell() -> None:
        job.progress("merge", done, work.layout.file_bytes, unit="bytes", message=newest_word(tasks), every_seconds=0.0)

    with repeating(tell, EVERY_S):
        for task, answer in executor.run(tasks):
            if "error" in answer:
                raise from_dict(answer["error"])
            done += sizes[task.name]
            found = answer["result"]
            yield Filled({int(n): e for n, e in found["evidence"].items()}, found["skipped"], found["peak_anon_bytes"])
    shutil.rmtree(request.folder / FOLDER)
