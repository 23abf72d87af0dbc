"""A user's folder with every kind of file that a command reads, and every command and tool call on it.

Jobs have their own runner, in a fork of this warm process instead of a new one; what a worker finds is answered from a table.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server import cli, jobs
from mcp_server.jobs import queue, runner, store
from mcp_server.jobs.locks import try_lock
from mcp_server.jobs.watch import Watched
from mcp_server.schemas.job import CompareRequest, MergeRequest, VerifyRequest
from tests import tiny
from tests.faults.injecting import Injector

EVALUATION: dict[str, Any] = {
    "capabilities": {
        "tools": {
            "suite": "task_api_tools", "metric": "exact_match", "n": 24, "base": 0.0, "sources": {"code": 0.95, "chat": 0.0},
            "expert": "code", "merged": 0.6, "retention": 0.63, "gain_recovered": 0.63,
        }
    },
    "verdict": "adjust", "why": ["tools: 0.600 against 0.950"], "models": {}, "created": "2026-01-01T00:00:00Z",
}  # fmt: skip
SWEEP: dict[str, Any] = {"candidates": [], "winner": None}
VERIFIED: dict[str, Any] = {"verdict": "verified", "checks": [{"name": "structure", "passed": True, "detail": "12 tensors"}]}
COMPARED: dict[str, Any] = {
    "base": "base",
    "sources": {"code": "code", "chat": "chat"},
    "sample": False,
    "layers": {},
    "tensors": {},
}
COMPARISON: dict[str, Any] = {"sources": [], "pairs": [], "layers": [], "sample": False, "tensors": 0}
FETCHED: dict[str, Any] = {
    "ref": "owner/name", "revision": "0" * 40, "folder": "/cache", "kind": "model", "files": 1, "bytes": 1, "downloaded_bytes": 1,
}  # fmt: skip
REPLIES: dict[str, Any] = {
    "replies": [
        {
            "suite": "task_api_tools", "split": "dev", "prompt": "hello", "expected": "a", "outcome": "loss",
            "replies": {"base": "b", "code": "a", "merged": "c"}, "scores": {"code": 1.0, "merged": 0.0},
        }
    ]
}  # fmt: skip
EXPORTED: dict[str, Any] = {"target": "vllm", "source": "merged", "kind": "model", "files": {}, "command": "vllm serve merged"}
PUBLISHED: dict[str, Any] = {
    "repo": "me/merged", "url": "http://hub/me/merged", "commit": "0" * 40, "private": True, "files": [], "bytes": 1,
    "licence": None, "base_models": [],
}  # fmt: skip
ANSWERS: dict[str, Any] = {"prompt": "hello", "replies": {"base": "b", "merged": "c"}}
LAST_JOB = "EVERY_OPERATION_JOB"
"""The variable that names the scene's merge."""
WEIGHTS = ("model.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True)
class Scene:
    """One call. `outputs` are what it may write in the user's folder: nothing else there may change."""

    name: str
    run: Callable[[Path], int]
    outputs: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)
    """How it ends when nothing fails."""
    log: bool = False
    """What it prints is a job's log, where a traceback may stand."""


disturbing: list[Injector] = []
"""What makes this process's operations fail, if anything does."""


def undisturbed() -> AbstractContextManager[None]:
    """What other processes do in here does not fail and does not count."""
    return disturbing[0].paused() if disturbing else nullcontext()


def command(*words: str, outputs: tuple[str, ...] = (), codes: tuple[int, ...] = (0,)) -> Scene:
    def run(_: Path) -> int:
        return ended(lambda: cli.main([word.replace("JOB", last_job()) for word in words]))

    return Scene(" ".join(words), run, outputs, codes)


def ended(call: Callable[[], None]) -> int:
    try:
        call()
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    return 0


def last_job() -> str:
    return os.environ[LAST_JOB]


def tool(name: str, outputs: tuple[str, ...] = (), **arguments: Any) -> Scene:
    def run(_: Path) -> int:
        given = {k: v.replace("JOB", last_job()) if isinstance(v, str) else v for k, v in arguments.items()}
        return called(name, given)

    return Scene(f"tool {name}", run, outputs, (0, 2) if name in REFUSED_HERE else (0,))


@functools.cache
def server() -> Any:
    """One server, which lives longer than its calls."""
    from mcp_server.server import build_server

    return build_server()


REFUSED_HERE = frozenset({"resume_merge", "merge_adapters", "fetch_model"})
"""What the scene leaves nothing to do for, or has open questions about."""


def called(name: str, arguments: dict[str, Any]) -> int:
    """0 when the tool answers, 2 when it refuses in our words, 70 for anything else."""
    import anyio
    from mcp import Client
    from mcp.types import ElicitResult

    async def agree(*_: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"publish": True})

    async def call() -> tuple[bool, str]:
        async with Client(server(), elicitation_callback=agree if name == "publish_merge" else None) as client:
            result = await client.call_tool(name, arguments)
            return result.is_error, "\n".join(getattr(block, "text", "") for block in result.content)

    refused, said = anyio.run(call)
    print(said, file=sys.stderr)
    return 0 if not refused else 70 if said == f"Error executing tool {name}" else 2


CALLS: tuple[Scene, ...] = (
    command("go", "code", "chat", "--base", "base", "--out", "gone", "--yes", "--seed", "1", outputs=("gone",), codes=(0, 1, 3)),
    command("init", ".", "-o", "new.yaml", outputs=("new.yaml",), codes=(0, 2)),
    command("inspect", "persona", "tools", "--base", "base", codes=(0, 1)),
    command("strategies"),
    command("recommend", "scenario.yaml", "-o", "new-plan.yaml", outputs=("new-plan.yaml",)),
    command("render", "plan.yaml", "-o", "new-recipe.yml", outputs=("new-recipe.yml",)),
    command("validate", "recipe.yml", codes=(0, 1)),
    command("validate", "fixable.yml", "--fix", outputs=("fixable.yml", "fixable.yml.orig"), codes=(0, 1)),
    command("estimate", "recipe.yml", "--out", "out"),
    command("merge", "recipe.yml", "out", "--seed", "1", outputs=("out",)),
    command("merge", "recipe.yml", "merged", "--seed", "1", "--overwrite", outputs=("merged",)),
    command("extract", "base", "code", "adapter", "--rank", "2", outputs=("adapter",)),
    command("jobs"),
    command("jobs", "--prune"),
    command("status", "JOB"),
    command("logs", "JOB"),
    command("wait", "JOB"),
    command("cancel", "JOB"),
    command("resume", "JOB", codes=(2,)),
    command("compare", "base", "code", "chat", "-o", "comparison.json", outputs=("comparison.json",)),
    command("verify", "merged", outputs=("merged/verification.json",), codes=(0, 1, 3)),
    command("evaluate", "merged", "--suite", "task_api_tools", "-o", "scores.json", outputs=("scores.json",), codes=(0, 1, 3)),
    command("sweep", "plan.yaml", "swept", "--suite", "task_api_tools", outputs=("swept",), codes=(0, 1)),
    command("report", "merged", outputs=("merged/report.html", "merged/README.md", "merged/report.md")),
    command("suites"),
    command("evaluations", "merged"),
    command("show", "merged"),
    command("ask", "merged", "hello"),
    command("diagnose", "merged", codes=(0, 1)),
    command("fetch", "owner/name"),
    command("export", "merged", "served", "--to", "vllm", outputs=("served",)),
    command("publish", "merged", "me/merged", codes=(2,)),
    command("publish", "merged", "me/merged", "--yes"),
    command("check", codes=(0, 1)),
    tool("inspect_models", refs=["persona", "tools"], base="base"),
    tool("recommend_strategy", scenario={"sources": [{"name": "code", "ref": "./code"}, {"name": "chat", "ref": "./chat"}]}),
    tool("list_strategies"),
    tool("render_config", plan_file="plan.yaml"),
    tool("validate_config", recipe="recipe.yml"),
    tool("estimate_ram", recipe="recipe.yml"),
    tool("compare_models", base="base", refs=["code", "chat"]),
    tool("launch_merge", recipe="recipe.yml", out="out", seed=1, outputs=("out",)),
    tool("merge_status", job_id="JOB"),
    tool("merge_logs", job_id="JOB"),
    tool("list_merges"),
    tool("cancel_merge", job_id="JOB"),
    tool("resume_merge", job_id="JOB"),
    tool("merge_adapters", refs=["code", "chat"], base="base", out="gone", outputs=("gone",)),
    tool("sweep_merges", plan_file="plan.yaml", out="swept", suites=["task_api_tools"], outputs=("swept",)),
    tool("fetch_model", ref="owner/name"),
    tool("verify_merge", out="merged", outputs=("merged/verification.json",)),
    tool("evaluate_merge", out="merged", suites=["task_api_tools"]),
    tool("write_report", out="merged", outputs=("merged/report.html", "merged/README.md", "merged/report.md")),
    tool("diagnose_merge", out="merged"),
    tool("list_evaluations", out="merged"),
    tool("list_suites"),
    tool("show_replies", out="merged"),
    tool("ask_models", out="merged", text="hello"),
    tool("extract_adapter", base="base", finetune="code", out="adapter", rank=2, outputs=("adapter",)),
    tool("export_merge", out="merged", dest="served", to="vllm", outputs=("served",)),
    tool("publish_merge", out="merged", repo="me/merged"),
)


def fill(user: Path) -> None:
    """A base, two fine-tunes and two adapters of it."""
    for seed, name in enumerate(("base", "code", "chat")):
        tiny.write_tokenizer(tiny.write_model(user / name, seed))
    tiny.write_adapter(user / "persona", user / "base", seed=1)
    tiny.write_adapter(user / "tools", user / "base", rank=4, seed=2)


def build(place: Path) -> None:
    """Fill `place`: the user's folder and the store, with a merge, its evidence and the jobs that made them."""
    user = place / "user"
    fill(user)
    recipe = tiny.linear_recipe(user / "code", user / "chat")
    (user / "recipe.yml").write_text(recipe, encoding="utf-8")
    (user / "fixable.yml").write_text(recipe.replace("linear", "linaer"), encoding="utf-8")
    (user / "notes.txt").write_text("a year of work\n", encoding="utf-8")
    sources = [
        {"name": n, "ref": f"./{n}", "kind": "full", "status": "works", "training_examples": 300} for n in ("code", "chat")
    ]
    relation = {"data_overlap": 0.1, "capabilities": "complementary", "similarity": "distinct", "same_base": True}
    scenario = {"sources": sources, "base_model": "./base", "relation": relation}
    (user / "scenario.yaml").write_text(json.dumps(scenario), encoding="utf-8")
    os.chdir(user)
    assert ended(lambda: cli.main(["recommend", "scenario.yaml", "-o", "plan.yaml"])) == 0
    jobs.start_merge(MergeRequest(recipe=recipe, out=str(user / "merged"), seed=1))
    jobs.start(VerifyRequest(out=str(user / "merged")))
    jobs.start(CompareRequest(base=str(user / "base"), refs=[str(user / "code"), str(user / "chat")]))
    (user / "merged" / "evaluation.json").write_text(json.dumps(EVALUATION), encoding="utf-8")
    (user / "merged" / "replies.json").write_text(json.dumps(REPLIES), encoding="utf-8")
    assert [job.state for job in jobs.list_jobs().jobs] == ["succeeded"] * 3


@dataclass
class Inline:
    """Jobs in forks of this process, undisturbed by what fails in it."""

    injector: Injector | None = None

    def install(self) -> None:
        disturbing[:] = [self.injector] if self.injector else []
        queue.spawn = self.spawn
        runner.watch = self.watch  # type: ignore[assignment]

    def spawn(self, folder: Path, record: store.Record) -> None:
        with undisturbed():
            handle = try_lock(folder / "runner.lock", wait_seconds=2.0)
            assert handle is not None
            store.write(
                folder, record.model_copy(update={"state": "running", "attempt": record.attempt + 1, "started": store.now()})
            )
            if (child := os.fork()) == 0:
                queue.dispatch = lambda: None  # whoever waits for it here holds the queue's lock
                os._exit(runner.main(folder, handle))
            os.close(handle)
            assert os.waitpid(child, 0)[1] == 0

    def watch(self, folder: Path, request: dict[str, Any], *_: Any) -> Watched:
        with undisturbed():
            return Watched(work(folder, request), 1)


def work(folder: Path, request: dict[str, Any]) -> int:
    """What the job's worker would leave: a result, and for a merge its folder."""
    if request["kind"] == "merge":
        wanted = request["parameters"]
        partial = Path(wanted["partial"])
        shutil.copytree(Path(wanted["recipe"].split("model: ")[1].split()[0]), partial, dirs_exist_ok=True)
        sources = [{"name": Path(ref).name, "ref": ref, "role": "model", "licence": "mit"} for ref in request.get("reads", [])]
        named = {"recipe": wanted["recipe"], "job_id": wanted["job_id"], "sources": sources}
        record = json.loads(tiny.MERGE["merge_provenance.json"]) | named
        (partial / "merge_provenance.json").write_text(json.dumps(record), encoding="utf-8")
        (partial / "README.md").write_text("# Merged\n", encoding="utf-8")
        answer: dict[str, Any] = {"seed": wanted["seed"], "tensors": 12, "bytes": 5}
    elif request["kind"] == "export":
        partial = Path(request["parameters"]["partial"])
        partial.mkdir(parents=True, exist_ok=True)
        answer = {**EXPORTED, "folder": request["parameters"]["dest"]}
        (partial / "export.json").write_text(json.dumps(answer), encoding="utf-8")
    elif request["kind"] == "compare":
        answer = {**COMPARISON, "path": str(folder / "comparison.json")}
        (folder / "comparison.json").write_text(json.dumps(COMPARED), encoding="utf-8")
    else:
        answer = {"evaluate": EVALUATION, "sweep": SWEEP, "fetch": FETCHED, "verify": VERIFIED, "ask": ANSWERS,
                  "publish": PUBLISHED}[request["kind"]]  # fmt: skip
    (folder / "result.json").write_text(json.dumps(answer), encoding="utf-8")
    return 0
