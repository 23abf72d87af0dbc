"""Every file operation of every command and tool fails once: `python -m tests.faults.every_operation [--sample N] [WORD...]`.

Each attempt runs in a fork on a fresh copy of the scene. It must end in our words (no traceback, no exit 70, no signal, no hang,
never silently), leave everything of the user's as it was, and leave outputs whole or absent.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from mcp_server.system.paths import PACKAGE
from tests.faults import job_scenes
from tests.faults.injecting import Injector
from tests.faults.job_scenes import HUB, JOB_SCENES, REPOSITORY
from tests.faults.scenes import CALLS, LAST_JOB, WEIGHTS, Inline, Scene, build, fill, server
from tests.hub import Hub, serving

SCENES = (*CALLS, *JOB_SCENES)
SECONDS = 60
KNOWN_CODES = frozenset({0, 1, 2, 3, 4, 141})
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
MARKS = ("<!-- counts: python -m tests.faults.every_operation --write -->", "<!-- end of counts -->")


@dataclass
class Tried:
    """What came of one scene: its operations, and whatever was wrong, one line each."""

    name: str
    operations: int = 0
    distinct: int = 0
    """Of another kind or from another chain of calls than any before: what fails there is met by other code."""
    attempts: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Stage:
    """A scene's folders: built once, put back before every attempt, always at the same place."""

    def __init__(self, root: Path) -> None:
        self.root, self.place, self.kept = root, root / "place", root / "kept"
        self.said = root / "said"
        self.hub = Hub({})
        self.stack = ExitStack()

    def __enter__(self) -> Stage:
        for name in [name for name in os.environ if name.startswith(("MODEL_MERGING_", "HF_"))]:
            del os.environ[name]
        os.environ |= {"MODEL_MERGING_HOME": str(self.place / "home"), "HF_HOME": str(self.place / "hub"), "COLUMNS": "200"}
        self.place.mkdir()
        if self.forked(lambda: build(self.place) or 0) != 0:
            raise AssertionError(f"the scene could not be built:\n{self.said.read_text(encoding='utf-8')}")
        os.environ[HUB] = self.stack.enter_context(serving(self.hub)).url
        os.environ[LAST_JOB] = next(folder.name for folder in (self.place / "home" / "jobs").glob("merge-*"))
        self.place.rename(self.kept)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def forked(self, call, injector: Injector | None = None) -> int:
        """The exit code of `call` in a fork (negative: its signal); what it printed goes to `said`."""
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                signal.alarm(SECONDS)
                said = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(said, 1)
                os.dup2(said, 2)
                for number, name in ((1, "stdout"), (2, "stderr")):
                    setattr(
                        sys,
                        name,
                        io.TextIOWrapper(io.FileIO(number, "w", False), "utf-8", line_buffering=True, write_through=True),
                    )
                Inline(injector).install()
                if injector is not None:
                    injector.install()
                code = call()
            except BaseException:  # noqa: BLE001 - the child tells and leaves
                import traceback

                traceback.print_exc()
            finally:
                if injector is not None:
                    with injector.paused():
                        found = json.dumps({"seen": injector.points, "failed": injector.failed})
                        (self.root / "found").write_text(found, encoding="utf-8")
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def attempt(self, scene: Scene, at: int | None, variant: int = 0) -> tuple[int, list[str], list[str] | None]:
        """Exit code, the operations seen (when none is to fail), and what failed."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.kept, self.place, symlinks=True)
        self.hub.repositories, self.hub.large = {}, {}
        self.hub.add(REPOSITORY, self.kept / "user" / "base")
        injector = Injector((self.place, PACKAGE, Path("/proc"), Path("/sys")), at, variant)
        (self.root / "found").write_text('{"seen": [], "failed": null}', encoding="utf-8")

        def call() -> int:
            os.chdir(self.place / "user")
            return scene.run(self.place / "user")

        code = self.forked(call, injector)
        found = json.loads((self.root / "found").read_text(encoding="utf-8"))
        return code, found["seen"], found["failed"]

    def user(self) -> dict[str, str]:
        """File → digest, of everything in the user's folder."""
        folder = self.place / "user"
        found = {}
        for root, _, names in os.walk(folder):
            for name in names:
                path = Path(root) / name
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def explore(stage: Stage, scene: Scene, *, sample: int | None, variants: int = 1) -> Tried:
    """Run the scene undisturbed, then once for each distinct operation (or `sample` of them, spread evenly)."""
    tried = Tried(scene.name)
    code, seen, _ = stage.attempt(scene, None)
    said = stage.said.read_text(encoding="utf-8", errors="replace")
    if code not in scene.codes:
        tried.wrong.append(f"undisturbed it ends with {code}: {said[-600:]}")
        return tried
    before, whole = contents(stage.kept / "user"), stage.user()
    first = sorted({point: number for number, point in reversed(list(enumerate(seen)))}.values())
    tried.operations, tried.distinct = len(seen), len(first)
    count = len(first) if sample is None else min(sample, len(first))
    for variant in range(variants):
        for step in range(count):
            at = first[(step * len(first)) // count]
            code, _, failed = stage.attempt(scene, at, variant)
            if failed is None:
                continue  # this run took fewer steps, as where a wait was shorter
            tried.attempts += 1
            tried.ends[str(code)] += 1
            said = stage.said.read_text(encoding="utf-8", errors="replace")
            if problem := judge(scene, code, said, before, whole, stage.user(), failed):
                tried.wrong.append(f"{failed[0]} {failed[1]} at {short(stage, failed[2])}: {problem}")
    return tried


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def judge(
    scene: Scene, code: int, said: str, before: dict[str, str], whole: dict[str, str], after: dict[str, str], failed: list[str]
) -> str | None:
    """What is wrong with how it ended, or None."""
    if code not in KNOWN_CODES or ("Traceback" in said and not scene.log):
        frames = [re.sub(r".*mcp_server/", "", line) for line in said.splitlines() if "mcp_server" in line and "line" in line]
        return f"ended with {code}; {' < '.join(reversed(frames[-3:]))}: {said.strip()[-160:]}"
    if code == 1 and 1 not in scene.codes and "fit" not in said:
        return f"ended with 1, which says no: {said.strip()[:200]}"
    if code not in (0, 141) and not said.strip():
        return f"ended with {code} and said nothing"

    def belongs(name: str, output: str) -> bool:
        return name == output or name.startswith(
            (f"{output}/", f"{output}.partial-", f".{Path(output).name}.", f"{output}.replaced-")
        )

    for name, digest in before.items():
        if not any(belongs(name, output) for output in scene.outputs) and after.get(name) != digest:
            return f"{name} of the user's was {'lost' if name not in after else 'changed'}"
    for name in after:
        if name not in before and not any(
            belongs(name, o) or (o.rpartition("/")[0] and name.startswith(f"{o.rpartition('/')[0]}/.")) for o in scene.outputs
        ):
            return f"{name} was left behind"
    waits = re.search(r'"state": ?"queued"', said) is not None  # a job that is not begun has said so, and has no output yet
    for output in scene.outputs:
        if wrong := part_of(output, before, whole, after, code, kept=scene.log or waits):
            return wrong
    return None


def part_of(
    output: str, before: dict[str, str], whole: dict[str, str], after: dict[str, str], code: int, *, kept: bool
) -> str | None:
    """An output folder that has weights has all its files and the very weights; a file is not empty.

    `kept`: what goes into a file is in the job's result too, or the job waits still, so it need not be there.
    """
    files = {name for name in whole if name.startswith(f"{output}/")}
    there = {name for name in after if name.startswith(f"{output}/")}
    old = {name for name in before if name.startswith(f"{output}/")}
    if files:
        weights = [name for name in files if name.endswith(WEIGHTS)]
        if not there:
            return (
                f"{output} was lost" if old else ("said done, without an output" if code == 0 and weights and not kept else None)
            )
        if (
            weights
            and there not in (files, old)
            and not there >= files - {n for n in files if n.endswith((".json", ".html", ".md", "/plan.yaml"))}
        ):
            return f"{output} lacks {sorted(files - there)}"
        if changed := [n for n in weights if n in after and after[n] not in (whole[n], before.get(n))]:
            return f"{changed} differ from the undisturbed"
        return None
    if output in whole and output not in after:
        if output in before:
            return f"{output} was lost"
        return f"said done, without {output}" if code == 0 and not kept else None
    return f"{output} is empty" if after.get(output) == hashlib.sha256(b"").hexdigest() else None


def short(stage: Stage, place: str) -> str:
    return place.replace(str(stage.place), "").replace(str(PACKAGE), "PACKAGE")


def warm() -> None:
    """Import what commands and workers import, and compile what they compile, so that forks need not."""
    import gc

    import anyio._backends._asyncio  # noqa: F401

    import mcp_server.server.tools
    import mcp_server.steps.render
    import mcp_server.steps.sweep
    import mcp_server.workers.compare
    import mcp_server.workers.export
    import mcp_server.workers.fetch
    import mcp_server.workers.publish
    import mcp_server.workers.stream
    import mcp_server.workers.verify  # noqa: F401

    gc.enable()  # the streaming worker switches it off for its own process, and keeps a module of scipy away
    if sys.modules.get("scipy.linalg", gc) is None:
        del sys.modules["scipy.linalg"]
    compile_kernels()
    for found in [
        value for name, module in sys.modules.items() if name.startswith("mcp_server") for value in vars(module).values()
    ]:
        if hasattr(found, "cache_clear"):
            found.cache_clear()  # what a fresh process reads is read in each attempt
    server()


def compile_kernels() -> None:
    """What the workers of the scenes compile, in threads that have ended when forks are made."""
    from mcp_server.engine.adapter_space import merge_adapters
    from mcp_server.engine.compare import compare
    from mcp_server.engine.merge import merge
    from mcp_server.engine.request import Request

    with tempfile.TemporaryDirectory() as place:
        user = Path(place)
        fill(user)
        for ask, work in ((job_scenes.merge(user, "out"), merge), (job_scenes.adapters(user), merge_adapters)):
            request = Request(recipe=ask.recipe, folder=Path(ask.out), journal=user / "journal", seed=1, threads=1)
            Path(ask.out).mkdir()
            work(request, lambda *_: None)
            request.journal.unlink(missing_ok=True)
        compare(str(user / "base"), [str(user / "code"), str(user / "chat")], user / "comparison.json", lambda *_: None)


def run(words: list[str], sample: int | None, variants: int = 1, tell=None) -> list[Tried]:
    warm()
    found = []
    with tempfile.TemporaryDirectory(prefix="every-operation-") as root, Stage(Path(root).resolve()) as stage:
        for scene in SCENES:
            if not words or any(word in scene.name for word in words):
                found.append(explore(stage, scene, sample=sample, variants=variants))
                if tell:
                    tell(found[-1])
    return found


def table(found: list[Tried]) -> str:
    ends = [", ".join(f"{code}: {count}" for code, count in sorted(tried.ends.items())) for tried in found]
    rows = [f"| {t.name} | {t.operations} | {t.distinct} | {t.attempts} | {end} |" for t, end in zip(found, ends, strict=True)]
    return "\n".join(
        [
            "| call | file operations | distinct | made to fail | exit codes (0 done or answered, 2 refused, 4 failed) |",
            "|---|---|---|---|---|",
            *rows,
        ]
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("words", nargs="*")
    options.add_argument("--sample", type=int)
    options.add_argument("--variants", type=int, default=1)
    options.add_argument("--write", action="store_true", help="put the counts into docs/reliability.md")
    wanted = options.parse_args()
    began = time.monotonic()

    def tell(tried: Tried) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {tried.name}: {tried.operations} operations, {dict(tried.ends)}", flush=True)
        for line, times in Counter(
            re.sub(r"-\d{8}-\d{6}-\w+", "-JOB", re.sub(r"\d+-[0-9a-f]{8}", "N", w)) for w in tried.wrong
        ).items():
            print(f"      WRONG {times}x {line}", flush=True)

    found = run(wanted.words, wanted.sample, wanted.variants, tell)
    if wanted.write:
        text = DOCUMENT.read_text(encoding="utf-8")
        start, end = text.index(MARKS[0]) + len(MARKS[0]), text.index(MARKS[1])
        DOCUMENT.write_text(f"{text[:start]}\n{table(found)}\n{text[end:]}", encoding="utf-8")
    return 1 if any(tried.wrong for tried in found) else 0


if __name__ == "__main__":
    sys.exit(main())
