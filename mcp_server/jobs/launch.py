"""Starting work: everything that can be known before is checked before, then the job is a folder and the queue has it."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any, Final

from mcp_server.errors import BadInput, NotAllowed, NotFound, OutputExists
from mcp_server.formats.provenance import PROVENANCE_FILE
from mcp_server.formats.recipe import ModelRef, Recipe, read_recipe
from mcp_server.formats.recipe.refs import rewrite_refs
from mcp_server.formats.refs import cached_snapshot, is_hub_id, resolve_ref
from mcp_server.jobs import engines, queue, store
from mcp_server.jobs import locks as claims
from mcp_server.jobs.control import status
from mcp_server.jobs.store import Record
from mcp_server.schemas.job import JobRequest, JobStatus, MergeRequest
from mcp_server.steps.validate import require_valid
from mcp_server.system import files, policy, settings
from mcp_server.system.machine import GIB
from mcp_server.system.policy import Policy

_CHECKPOINT_FILES: Final = ("config.json", "adapter_config.json", PROVENANCE_FILE)
WORKERS: Final = {
    "compare": "mcp_server.workers.compare",
    "verify": "mcp_server.workers.verify",
    "evaluate": "mcp_server.workers.evaluate",
    "sweep": "mcp_server.workers.sweep",
    "prepare": "mcp_server.workers.demo_base",
}


def start(request: JobRequest, *, policy: Policy | None = None, worker: str | None = None) -> JobStatus:
    """Start a job of any kind but a merge (those go through `start_merge`) and return at once.

    Every absolute path among the parameters must lie under the policy's roots. `worker` names another worker module, for
    work that is not ours; faces never pass it on. Raises `BadInput`, `NotAllowed`, `DiskFull`.
    """
    if request.kind == "merge":
        return start_merge(MergeRequest.model_validate(request.parameters), policy=policy)
    rules = policy or _default_policy()
    refs = list(_strings(request.parameters))
    for text in refs:
        for part in (text, *re.split(r"[+=]", text)):  # base+adapter, NAME=REF
            if part.startswith("/"):
                rules.check_read(part)
    check_suites(request.parameters, rules)
    writes = request.kind in store.WRITING and request.parameters.get("out")
    out = Path(request.parameters["out"]).resolve() if writes else None
    with store.creating(request.kind) as new:
        online = not rules.offline and any(_must_be_fetched(text) for text in refs)
        _write_request(new, request.kind, request.parameters, worker or WORKERS[request.kind], rules, online=online)
        record = Record(job_id=new.name, kind=request.kind, state="queued", created=store.now(), output=out and str(out))
        store.write(new, record)
        folder = store.settle(new)
        if out is not None:
            claims.claim(out, folder.name)
        store.mark_active(folder, True)
    queue.dispatch()
    return status(folder.name)


def start_merge(request: MergeRequest, *, policy: Policy | None = None, worker: str | None = None) -> JobStatus:
    """Start a merge and return at once. The recipe's paths become absolute, `auto` becomes an engine, a missing seed a number.

    Raises `BadInput` and its kin before anything is written, `OutputExists` when the output is there or another job writes it,
    `DoesNotFit` when no engine fits the memory or the disk.
    """
    rules = policy or _default_policy()
    out = rules.check_write(request.out)
    check_output(out, overwrite=request.overwrite)
    recipe, online = resolve(request.recipe, Path(request.recipe_folder or Path.cwd()), rules)
    keep_off_sources(out, recipe)
    require_valid(recipe.text)
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
        _write_request(new, "merge", parameters, worker or choice.worker, rules, online=online)
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


def check_suites(parameters: dict[str, Any], rules: Policy) -> None:
    """A suite in a folder may bring Python code. Under roots only the operator lets code run that is not shipped with us.

    Raises `NotAllowed`. Suites by name are ours or lm-eval's.
    """
    if rules.roots is None or rules.trust_remote_code:
        return
    for text in _strings([parameters.get("suites"), parameters.get("suite_folders")]):
        if "/" in text or "\\" in text or text.startswith((".", "~")):
            raise NotAllowed(
                f"the suite {text!r} is a folder, which may hold Python code that an evaluation runs",
                "name a shipped suite, or ask the operator to run it from the command line",
            )


def check_output(out: Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` unless `out` may be written: absent, empty, or a model that the user gave up.

    Only what looks like a checkpoint is ever replaced: a mistyped path must not cost somebody a home folder.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise OutputExists(f"{out} is a file", "name a folder as the output")
    if not overwrite:
        raise OutputExists(f"{out} exists", "name another output folder, or ask for it to be overwritten")
    if not any((out / name).is_file() for name in _CHECKPOINT_FILES) and not any(out.glob("*.safetensors")):
        raise OutputExists(f"{out} holds no model, so it is not replaced", "name another output folder, or remove it yourself")


def keep_off_sources(out: Path, recipe: Recipe) -> None:
    """Raise `BadInput` when the output is a source, lies inside one, or holds one: replacing it would destroy what is read."""
    for ref in recipe.references():
        for text in filter(None, (ref.base, ref.adapter)):
            source = Path(text)
            if source.is_absolute() and (out.is_relative_to(source.resolve()) or source.resolve().is_relative_to(out)):
                raise BadInput(f"the output {out} and the source {source} are one inside the other", "name another output folder")


def resolve(text: str, folder: Path, rules: Policy) -> tuple[Recipe, bool]:
    """The recipe with absolute paths, and whether its merge must go online for hub ids that are not in the local cache."""
    online = False

    def absolute(ref: ModelRef) -> ModelRef:
        nonlocal online
        found: dict[str, str | None] = {}
        for name, path, pinned in (("base", ref.base, "revision"), ("adapter", ref.adapter, "adapter_revision")):
            if path is None:
                continue
            resolved = resolve_ref(path, folder, getattr(ref, pinned))
            if is_hub_id(resolved) and not Path(resolved).is_absolute():
                if rules.offline:
                    raise NotFound(
                        f"{resolved} is not in the local cache, and the network is switched off",
                        "fetch it first, or name a folder",
                    )
                online = True
            else:
                rules.check_read(resolved)
                if not Path(resolved).exists():
                    raise NotFound(
                        f"{resolved} does not exist", "correct the path in the recipe (relative paths start at its folder)"
                    )
                found[pinned] = None  # the folder is that revision's
            found[name] = resolved
        return ref.model_copy(update=found)

    read_recipe(text)
    return read_recipe(rewrite_refs(text, absolute)), online


def _must_be_fetched(text: str) -> bool:
    """Is this parameter a hub id of the form owner/name that is not in the local cache? (A bare word may be anything.)"""
    return "/" in text and is_hub_id(text) and not Path(text).exists() and cached_snapshot(text) is None


def _write_request(folder: Path, kind: str, parameters: dict[str, Any], worker: str, rules: Policy, *, online: bool) -> None:
    files.write_json(
        folder / "request.json",
        {
            "kind": kind,
            "parameters": parameters,
            "worker": worker,
            "online": online,
            "trust_remote_code": rules.trust_remote_code,
        },
    )


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _strings(item)]
    return []


def _default_policy() -> Policy:
    return policy.for_person(settings.load())
