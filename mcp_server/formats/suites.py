"""What can be measured: one folder per suite under `mcp_server/suites/`, or under a folder that the user names.

A suite is one or more lm-eval tasks (YAML + JSONL) and, beside them, `suite.yaml`, which says what lm-eval does not: which
capability the suite stands for, which of its metrics decides, and which function recognises the behaviour it trains.

    title: Task API tool calls
    capability: tools              # the name in every result; default: the suite's own
    tasks: {test: [task_api_tools], dev: [task_api_tools_dev]}
    metric: exact_match            # primary; the others are reported beside it
    higher_is_better: true
    chat_template: true            # prompts go through the model's chat template
    behaviour: utils.py:is_call    # reply text → bool, for the cross-context check (optional)
    demo_limit: 24                 # prompts that a quick look uses (optional)
    target: 0.8                    # where no source alone can be the measure: what the merge itself must reach (optional)
    likelihoods: optional          # its `process_results` leaves metrics out where log-likelihoods are NaN (default: required)

A text file (`.txt`, `.md`) is a suite too: the perplexity of its passages. So is a file of prompts and answers (`.jsonl`, see
`own_data`). Any other name is a task of lm-eval: its files are searched, nothing is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, ValidationError

from mcp_server.errors import Malformed, NotFound, did_you_mean
from mcp_server.formats.own_data import DATA, Split, read_data
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.faults import first_fault
from mcp_server.system import paths
from mcp_server.system.yaml_io import load_yaml

SIDECAR = "suite.yaml"
TEXTS = (".txt", ".md")
DEFAULT_SPLIT: Final[Split] = "dev"
"""Choices are made on dev; test is for the figure that is reported once they are made."""


class Suite(Frozen):
    """One suite, as its `suite.yaml` describes it."""

    name: str
    title: str = ""
    capability: str = ""
    tasks: dict[Split, list[str]] = Field(default_factory=dict)
    metric: str | None = Field(default=None, description="primary metric; null: the task's first one")
    higher_is_better: bool | None = None
    chat_template: bool = False
    behaviour: str | None = Field(default=None, description="FILE.py:FUNCTION in the suite's folder: reply → bool")
    target: float | None = Field(default=None, description="primary figure that the merge itself must reach")
    likelihoods: Literal["required", "optional"] = "required"
    demo_limit: int | None = Field(default=None, ge=1)
    folder: str | None = Field(default=None, description="null: a task that lm-eval ships")
    text: str | None = Field(default=None, description="text file whose passages replace the suite's own; never in suite.yaml")
    data: str | None = Field(default=None, description="file of prompts and expected answers; never in suite.yaml")
    note: str = ""

    def task_names(self, split: Split) -> list[str]:
        """lm-eval task names of a split. Raises `NotFound` when the suite has none for it."""
        if names := self.tasks.get(split):
            return names
        raise NotFound(
            f"the suite {self.name!r} has no {split} split; it has {', '.join(sorted(self.tasks)) or 'none'}",
            "choose another split, or add one to its suite.yaml",
        )


def roots(extra: Iterable[str | Path] = ()) -> list[Path]:
    """Folders that are searched for suites: the user's first, then the shipped one."""
    return [paths.expanded(folder).resolve() for folder in extra] + [paths.SUITES]


def list_suites(extra: Iterable[str | Path] = ()) -> dict[str, Suite]:
    """Every suite by name. A user's suite may not take a shipped suite's name (two meanings of one number)."""
    found: dict[str, Suite] = {}
    for folder in _folders(extra):
        suite = read_suite(folder)
        if suite.name in found:
            raise Malformed(
                f"two suites are called {suite.name!r}: {found[suite.name].folder} and {folder}", "rename one of the folders"
            )
        found[suite.name] = suite
    return found


def find_suite(name: str, extra: Iterable[str | Path] = ()) -> Suite:
    """The suite of that name or capability, a folder, a file of text or data, or a task of lm-eval.

    Raises `NotFound` for a name that is none of these, with the nearest of our own; `Malformed` with the place in a file.
    """
    if name.endswith(TEXTS):
        return _of_text(paths.expanded(name))
    if name.endswith(DATA):
        return _of_data(paths.expanded(name))
    if (folder := paths.expanded(name)).joinpath(SIDECAR).is_file():
        return read_suite(folder.resolve())
    known = list_suites(extra)
    if name in known:
        return known[name]
    for suite in known.values():
        if name == suite.capability:
            return suite
    if _is_foreign_task(name):
        return Suite(name=name, capability=name, tasks={"test": [name], "dev": [name]})
    capabilities = {suite.capability for suite in known.values()}
    raise NotFound(
        f"{name!r} is neither a suite nor a task of lm-eval.{did_you_mean(name.replace('-', '_'), [*known, *capabilities])}",
        f"the suites are {', '.join(sorted(known))} (see `model-merging suites`); a file of your own ends in .jsonl or .txt",
    )


def _is_foreign_task(name: str) -> bool:
    """Does some task file of the installed lm-eval define a task, a group or a tag of this name? True where lm-eval is not here:
    then the worker says that it is missing."""
    if not re.fullmatch(r"[\w.,:|+-]+", name):
        return False
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        return True
    word = re.compile(rf"^\s*(?:(?:task|group|tag)\s*:.*|-\s*)(?<![\w.-]){re.escape(name)}(?![\w.-])", re.MULTILINE)
    tasks = Path(next(iter(spec.submodule_search_locations))) / "tasks"
    wanted = name.encode()
    for folder, _, files in os.walk(tasks):
        for file in files:
            if not file.endswith((".yaml", ".yml")):
                continue
            raw = Path(folder, file).read_bytes()
            if wanted in raw and word.search(raw.decode("utf-8", "replace")):
                return True
    return False


def _of_data(file: Path) -> Suite:
    """Somebody's own prompts and expected answers; every line is read here, so that a wrong one is refused before any work."""
    read_data(file)
    return Suite(
        name=f"data_{file.stem}", title=file.name, capability=file.name, metric="match", higher_is_better=True,
        chat_template=True, data=str(file.resolve()),
    )  # fmt: skip


def _of_text(file: Path) -> Suite:
    """The perplexity of somebody's own text, by the shipped task."""
    if not file.is_file():
        raise NotFound(f"the text {file} does not exist", "give the path of a text file in UTF-8")
    try:
        if not file.read_text(encoding="utf-8").strip():
            raise Malformed(f"{file} holds no text", "give a file with at least one passage")
    except UnicodeDecodeError as error:
        raise Malformed(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}", "convert it to UTF-8") from error
    shipped = read_suite(paths.SUITES / "perplexity")
    given = {"name": f"text_{file.stem}", "title": f"Perplexity of {file.name}", "capability": file.name}
    return shipped.model_copy(update={**given, "text": str(file.resolve()), "note": ""})


def read_suite(folder: Path) -> Suite:
    """Read one folder's `suite.yaml`. Raises `Malformed` with the file and the field that is wrong."""
    file = folder / SIDECAR
    raw = load_yaml(file.read_text(encoding="utf-8"), str(file))
    if not isinstance(raw, dict):
        raise Malformed(f"{file} holds no table but {type(raw).__name__}", "see mcp_server/formats/suites.py for its fields")
    try:
        suite = Suite.model_validate({"name": folder.name, **raw, "folder": str(folder)})
    except ValidationError as error:
        raise Malformed(f"{file}: {first_fault(error, Suite)}", "see mcp_server/formats/suites.py for its fields") from error
    return suite.model_copy(
        update={
            "capability": suite.capability or suite.name,
            "title": suite.title or suite.name,
            "tasks": suite.tasks or {"test": [suite.name]},
        }
    )


def content_hash(suite: Suite) -> str:
    """SHA-256 over names and bytes of the suite's files, so that a changed prompt or metric is a different suite."""
    digest = hashlib.sha256(suite.name.encode())
    for file in filter(None, (suite.text, suite.data)):
        digest.update(hashlib.sha256(Path(file).read_bytes()).digest())
    if suite.folder is not None:
        root = Path(suite.folder)
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(path.relative_to(root).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _folders(extra: Iterable[str | Path]) -> Iterator[Path]:
    for root in roots(extra):
        if root.joinpath(SIDECAR).is_file():
            yield root
        elif root.is_dir():
            yield from sorted(path.parent for path in root.glob(f"*/{SIDECAR}"))
