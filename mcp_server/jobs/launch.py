"""Starting work: everything that can be known before is checked before, then the job is a folder and the queue has it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import MergingError, NotAllowed, NotFound
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.own_data import DATA
from mcp_server.formats.provenance import not_ours
from mcp_server.formats.recipe import ModelRef, Recipe, read_recipe
from mcp_server.formats.recipe.rewrite import rewrite_refs
from mcp_server.formats.recipe.whereabouts import placed, places_of
from mcp_server.formats.refs import demo_aliases, is_hub_id, once, resolve_ref, resolved_once, split_revision
from mcp_server.formats.suites import TEXTS, find_suite
from mcp_server.jobs import engines, publish, queue, store
from mcp_server.jobs import locks as claims
from mcp_server.jobs.before import require_startable
from mcp_server.jobs.control import status
from mcp_server.jobs.store import Record
from mcp_server.schemas.estimate import Seconds
from mcp_server.schemas.job import (
    EvaluateRequest,
    ExportRequest,
    FetchRequest,
    JobRequest,
    JobStatus,
    MergeRequest,
    Names,
    PrepareRequest,
    PublishRequest,
    SweepRequest,
)
from mcp_server.steps.estimate.of_job import takes
from mcp_server.steps.evaluate.held import few_bits
from mcp_server.steps.evaluate.line_up import distinct, require_measurable
from mcp_server.steps.export import require_exportable
from mcp_server.steps.handles import plan_of, plan_text
from mcp_server.steps.validate import require_valid
from mcp_server.system import files, policy, settings
from mcp_server.system.machine import GIB
from mcp_server.system.outputs import require_apart, require_folder, require_place
from mcp_server.system.policy import Policy

WORKERS: Final = {
    "compare": "mcp_server.workers.compare",
    "verify": "mcp_server.workers.verify",
    "evaluate": "mcp_server.workers.evaluate",
    "sweep": "mcp_server.workers.sweep",
    "ask": "mcp_server.workers.ask",
    "prepare": "mcp_server.workers.demo_base",
    "fetch": "mcp_server.workers.fetch",
    "export": "mcp_server.workers.export",
    "publish": "mcp_server.workers.publish",
}


def start(request: JobRequest, *, policy: Policy | None = None, worker: str | None = None) -> JobStatus:
    """Start a job of any kind but a merge (those go through `start_merge`) and return at once.

    Everything that the request names must lie under the policy's roots. `worker` names another worker module, for work that is
    not ours; faces never pass it on. Raises `BadInput`, `NotAllowed`, `OutputExists`, `DiskFull`.
    """
    if isinstance(request, MergeRequest):
        return start_merge(request, policy=policy, worker=worker)
    if isinstance(request, FetchRequest) and request.ref in demo_aliases():
        request = PrepareRequest()  # made of an installed package: no hub is asked
    rules = policy or _default_policy()
    reads, online = check_names(request, rules)
    require_startable(request, rules)
    online |= isinstance(request, (FetchRequest, PublishRequest))
    outputs = [rules.check_write(text) for role, text in request.named() if role is Names.OUTPUT]
    out = outputs[0] if outputs else None
    seconds: Seconds | None = None
    held = known = ""
    if isinstance(request, EvaluateRequest):
        refs, suites = require_measurable(request)
        (seconds, known), held = takes(request, refs, suites), few_bits(request, refs)
    if isinstance(request, SweepRequest):
        distinct(find_suite(name, request.suite_folders) for name in (*request.suites, *request.data))
        request, seconds, held = check_sweep(request, rules, reads)
    if out is not None:
        keep_off(out, reads)
        require_place(out)
    if isinstance(request, ExportRequest) and out is not None:
        require_folder(out, overwrite=request.overwrite, not_ours=publish.NOT_OURS["export"])
        require_exportable(request, out)
    parameters = request.model_dump(mode="json")
    with store.creating(request.kind) as new:
        partial = None
        if isinstance(request, ExportRequest) and out is not None:
            partial = str(out.with_name(f"{out.name}.partial-{new.name}"))
            parameters |= {"dest": str(out), "partial": partial}
        _write_request(new, request.kind, parameters, worker or WORKERS[request.kind], rules, online=online, reads=reads)
        record = Record(
            job_id=new.name,
            kind=request.kind,
            state="queued",
            created=store.now(),
            output=out and str(out),
            partial=partial,
            takes=seconds,
            known=known,
            held=held,
        )
        store.write(new, record)
        folder = store.settle(new)
        if out is not None:
            claims.claim(out, folder.name)
        store.mark_active(folder, True)
    queue.dispatch()
    return status(folder.name)


def check_names(request: JobRequest, rules: Policy) -> tuple[set[str], bool]:
    """What the job reads on this machine, and whether it must go online for hub ids that are not in the local cache.

    Raises `NotAllowed` for what lies outside the roots, by the kind of each field.
    """
    reads: set[str] = set()
    online = False
    for role, text in request.named():
        if role is Names.MODEL:
            for part in [text] if Path(text).exists() else text.split("+"):
                folder = resolve_model(part, Path.cwd())
                if Path(folder).is_absolute():
                    reads.add(str(rules.check_read(folder)))
                else:
                    online |= not rules.offline and is_hub_id(folder) and "/" in folder
        elif role in (Names.FILE, Names.FOLDER):
            reads.add(str(rules.check_read(text)))
        elif role in (Names.SUITE, Names.SUITES):
            check_suite(text, rules)
    return reads, online


def resolve_model(text: str, folder: Path) -> str:
    """`NAME@REVISION` as the folder that it names here, or the hub id when it is not in the local cache."""
    name, revision = split_revision(text, folder)
    return resolve_ref(name, folder, revision)


def check_suite(text: str, rules: Policy) -> None:
    """A suite in a folder may bring Python code. Under roots only the operator lets code run that is not shipped with us;
    files of text and of prompts are data.

    Raises `NotAllowed`. Suites by name are ours or lm-eval's.
    """
    if text.endswith((*TEXTS, *DATA)):
        rules.check_read(text)
        return
    if rules.roots is None or rules.trust_remote_code:
        return
    if "/" in text or "\\" in text or text.startswith((".", "~")):
        raise NotAllowed(
            f"the suite {text!r} is a folder, which may hold Python code that an evaluation runs",
            "name a shipped suite or a .jsonl file, or ask the operator to run it from the command line",
        )


@resolved_once()
def check_sweep(request: SweepRequest, rules: Policy, reads: set[str]) -> tuple[SweepRequest, Seconds | None, str]:
    """Every model of every candidate, whether the plan or the grid names it, and the folder that the sweep is written to.

    Returns the request with the prompts that its minutes allow, how long it takes, and what is to say of how its candidates are
    made. Adds what the candidates read to `reads`.
    """
    from mcp_server.steps.sweep import from_grid, opened_plan, require_sweep_place  # only sweeps pay for rendering
    from mcp_server.steps.sweep.cost import on_disk, within
    from mcp_server.steps.sweep.cost import takes as sweep_takes
    from mcp_server.steps.sweep.place import lineage_of_plan

    plan, near = opened_plan(request)
    candidates = from_grid(plan, request.grid, near, request.tries)
    named = {folder for candidate in candidates for folder in local_sources(resolve(candidate.recipe, near, rules)[0])}
    reads.update(map(os.path.realpath, named))
    require_sweep_place(Path(request.out).resolve())
    lineage = lineage_of_plan(plan, near, candidates[0].recipe)
    try:
        request = within(request, lineage)
        return request, sweep_takes(request, lineage, len(candidates)), on_disk(request, lineage)
    except NotFound:
        return request, None, ""  # what is on a hub has no headers here


def start_merge(request: MergeRequest, *, policy: Policy | None = None, worker: str | None = None) -> JobStatus:
    """Start a merge and return at once. The recipe's paths become absolute, `auto` becomes an engine, a missing seed a number.

    Raises `BadInput` and its kin before anything is written, `OutputExists` when the output is there or another job writes it,
    `DoesNotFit` when no engine fits the memory or the disk.
    """
    rules = policy or _default_policy()
    out = rules.check_write(request.out)
    adapter = request.output == "adapter"
    recipe, online = resolve(request.recipe, Path(request.recipe_folder or Path.cwd()), rules, base_may_be_absent=adapter)
    sources = [os.path.realpath(folder) for folder in local_sources(recipe)]
    keep_off(out, sources)
    require_folder(out, overwrite=request.overwrite, not_ours=not_ours)
    require_place(out)
    require_valid(recipe.text, base_may_be_absent=adapter)
    reasons = plan_of(request.recipe)
    seed = request.seed if request.seed is not None else secrets.randbelow(1 << 31)
    request = request.model_copy(update={"recipe": recipe.text, "recipe_folder": None, "out": str(out), "seed": seed})
    choice = engines.choose(request)
    with store.creating("merge") as new:
        partial = out.with_name(f"{out.name}.partial-{new.name}")
        parameters = {
            **request.model_dump(mode="json"),
            "engine": choice.engine,
            "partial": str(partial),
            "job_id": new.name,
            "shard_size": choice.shard_size,
        }
        _write_request(new, "merge", parameters, worker or choice.worker, rules, online=online, reads=sources)
        if reasons is not None:
            files.write_text(new / publish.PLAN_FILE, plan_text(reasons))
        record = Record(
            job_id=new.name,
            kind="merge",
            state="queued",
            created=store.now(),
            output=str(out),
            partial=str(partial),
            engine=choice.engine,
            seed=seed,
            estimate_bytes=choice.estimate_bytes,
            budget_bytes=int(request.ram_gib * GIB) if request.ram_gib else None,
        )
        store.write(new, record)
        folder = store.settle(new)
        claims.claim(out, folder.name)
        store.mark_active(folder, True)
    queue.dispatch()
    return status(folder.name)


def keep_off(out: Path, sources: Iterable[str]) -> None:
    """Raise `BadInput` where an output would meet what is read: the sources of this job, and whatever active jobs read or write.

    Two jobs for the very same output are told apart by its claim, which knows other stores as well.
    """
    require_apart(out, map(Path, sources), "the source")
    for folder in store.active():
        try:
            record, request = store.read(folder), store.read_request(folder)
        except (MergingError, OSError):
            continue  # a job whose files are damaged is in nobody's way
        if record.state in store.TERMINAL:
            continue
        require_apart(out, map(Path, request.get("reads", [])), f"what job {record.job_id} reads,")
        if record.output is not None and Path(record.output) != out:
            require_apart(out, [Path(record.output)], f"the output of job {record.job_id},")


def local_sources(recipe: Recipe) -> list[str]:
    """The folders that a recipe with absolute paths reads."""
    return [p for ref in recipe.references() for p in (ref.base, ref.adapter) if p is not None and Path(p).is_absolute()]


def resolve(text: str, folder: Path, rules: Policy, *, base_may_be_absent: bool = False) -> tuple[Recipe, bool]:
    """The recipe with absolute paths, and whether its merge must go online for hub ids that are not in the local cache.

    With `base_may_be_absent` a base need not be here (an adapter as output is made without it), so nothing is fetched for it.
    """
    online = False

    def absolute(ref: ModelRef) -> ModelRef:
        nonlocal online
        places = places_of(ref, folder)
        for part, place in places.items():
            needed = part == "adapter" or not base_may_be_absent
            if is_hub_id(place):
                if needed and rules.offline:
                    raise NotFound(
                        f"{place} is not in the local cache, and the network is switched off",
                        "fetch it first, or name a folder",
                    )
                online = online or needed
            else:
                once(rules.check_read, place)
                if needed and not Path(place).exists():
                    locate(place)
        return placed(ref, places)

    read_recipe(text)
    return read_recipe(rewrite_refs(text, absolute)), online


def _write_request(
    folder: Path, kind: str, parameters: dict[str, Any], worker: str, rules: Policy, *, online: bool, reads: Iterable[str]
) -> None:
    files.write_json(
        folder / "request.json",
        {
            "kind": kind,
            "parameters": parameters,
            "worker": worker,
            "online": online,
            "reads": sorted(reads),
            "trust_remote_code": rules.trust_remote_code,
            "roots": None if rules.roots is None else list(map(str, rules.roots)),
        },
    )


def _default_policy() -> Policy:
    return policy.for_person(settings.load())
