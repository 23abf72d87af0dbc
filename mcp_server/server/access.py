"""What an agent names, turned into what may be opened: every path passes the operator's policy before anything below sees it.

Relative paths start from the folder in which the client started the server, or from the recipe's own folder inside a recipe file.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server.errors import BadInput, Malformed, NotAllowed, NotFound
from mcp_server.formats.own_data import DATA
from mcp_server.formats.recipe import Recipe as ParsedRecipe
from mcp_server.formats.recipe import parse_recipe
from mcp_server.formats.refs import resolve_ref, split_revision
from mcp_server.formats.suites import SIDECAR, TEXTS
from mcp_server.jobs import output_of
from mcp_server.schemas.plan import Plan
from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.handles import PLAN_ID, RECIPE_ID, kept_plan, kept_recipe
from mcp_server.steps.scenario import read_plan
from mcp_server.system import settings as operator
from mcp_server.system.paths import expanded
from mcp_server.system.policy import Policy, for_agent
from mcp_server.system.yaml_io import MAX_BYTES

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
TOKENIZER_WORDS = frozenset({"union", "base"})


@dataclass(frozen=True, slots=True)
class Access:
    """One call's view of the file system."""

    policy: Policy
    folder: Path

    @classmethod
    def now(cls) -> Access:
        """The operator's settings as they are at this moment: a changed file applies to the next call."""
        return cls(for_agent(operator.load()), Path.cwd())

    def ref(self, text: str, folder: Path | None = None) -> str:
        """A model reference, resolved; `base+adapter` is checked part by part."""
        parts = [self._one(part, folder or self.folder) for part in text.split("+")]
        return "+".join(parts)

    def refs(self, named: Mapping[str, str] | None) -> dict[str, str]:
        """References by name, each resolved and checked."""
        return {name: self.ref(ref) for name, ref in (named or {}).items()}

    def _one(self, text: str, folder: Path) -> str:
        name, revision = split_revision(text, folder)
        resolved = resolve_ref(name, folder, revision)
        return str(self.policy.check_read(resolved)) if Path(resolved).is_absolute() else text

    def file(self, text: str, what: str) -> Path:
        """A file to read."""
        path = self.policy.check_read(self.folder / expanded(text))
        if not path.is_file():
            raise NotFound(f"there is no {what} at {path}", f"give the path of a {what} file, or its text")
        if path.stat().st_size > MAX_BYTES:
            raise BadInput(f"{path} has {path.stat().st_size:,} bytes, more than any {what}", "is it the right file?")
        return path

    def suites(self, names: list[str] | None) -> list[str]:
        """Names of suites and tasks as they are; files of text and data, and folders, absolute and allowed."""
        return [self._suite(name) for name in names or []]

    def data(self, files: list[str] | None) -> list[str]:
        """Files of prompts and expected answers, or exports: absolute and allowed."""
        return [str(self.policy.check_read(self.folder / expanded(file))) for file in files or []]

    def _suite(self, name: str) -> str:
        path = self.folder / expanded(name)
        if name.endswith((*TEXTS, *DATA)) or path.joinpath(SIDECAR).is_file():
            return str(self.policy.check_read(path))
        return name

    def existing_folder(self, text: str) -> Path:
        """A merged model's folder, by path or by the id of a job about it."""
        path = self.policy.check_read(output_of(text) or self.folder / expanded(text))
        if not path.is_dir():
            raise NotFound(f"there is no folder {path}", "give the folder that launch_merge wrote; list_merges shows them")
        return path

    def endpoint(self, url: str) -> str:
        """The address of a model server. An agent may name this machine only: prompts, and the key of a hosted one, stay here."""
        host = urllib.parse.urlsplit(url).hostname or ""
        if host not in LOOPBACK:
            raise NotAllowed(
                f"the endpoint {url[:200]} is on another machine ({host or 'no host'})",
                "serve the models on this machine; the user can measure others from the command line (evaluate --endpoint)",
            )
        return url

    def output(self, text: str) -> Path:
        """A folder or file to write."""
        return self.policy.check_write(self.folder / expanded(text))

    def recipe(self, text_or_path: str) -> tuple[str, Path]:
        """The recipe's text and the folder that its relative paths start from; every model in it passes the policy."""
        if RECIPE_ID.fullmatch(text_or_path):
            text, folder = kept_recipe(text_or_path), self.folder
        elif PLAN_ID.fullmatch(text_or_path):
            from mcp_server.steps.render import render  # Jinja costs a fifth of the server's start

            text, folder = render(self.plan(text_or_path, None)).recipe, self.folder
        elif is_text(text_or_path):
            text, folder = text_or_path, self.folder
        else:
            path = self.file(text_or_path, "recipe")
            text, folder = path.read_text(encoding="utf-8"), path.parent
        for name in _models_in(text):
            self._one(name, folder)
        return text, folder

    def grid_value(self, name: str, value: float | str) -> str:
        """A value of a sweep's grid: where it names a model, it becomes absolute and passes the policy."""
        names_model = name in ("base_model", "tokenizer") or (name.startswith("sources.") and name.endswith((".ref", ".base")))
        text = str(value)
        return self.ref(text) if names_model and text not in TOKENIZER_WORDS else text

    def plan(self, table: dict[str, Any] | str | None, file: str | None) -> Plan:
        """The plan of a call that gives it by id, as a table (whose id stands for the whole) or as a file: one of them."""
        if (table is None) == (file is None):
            found = "neither" if table is None else "both"
            raise BadInput(
                f"one of plan and plan_file is needed, found {found}", "give the plan that recommend_strategy returned"
            )
        if isinstance(table, str):
            table, file = (None, table) if not PLAN_ID.fullmatch(table) else ({"plan_id": table}, None)
        if file is None:
            named = (table or {}).get("plan_id")
            plan, folder = kept_plan(str(named)) if named else read_plan(table or {}), self.folder
        else:
            path = self.file(file, "plan")
            plan, folder = read_plan(path), path.parent
        tokenizer = plan.tokenizer
        if tokenizer is not None and tokenizer not in TOKENIZER_WORDS:
            tokenizer = self.ref(tokenizer, folder)
        return plan.model_copy(update={"scenario": self.scenario(plan.scenario, folder), "tokenizer": tokenizer})

    def scenario(self, scenario: Scenario, folder: Path | None = None) -> Scenario:
        """The same scenario with every local path absolute and allowed."""
        where = folder or self.folder
        sources = [
            source.model_copy(
                update={
                    "ref": source.ref and self.ref(source.ref, where),
                    "base": source.base and self.ref(source.base, where),
                }
            )
            for source in scenario.sources or []
        ]
        base = scenario.base_model and self.ref(scenario.base_model, where)
        return scenario.model_copy(update={"sources": sources if scenario.sources is not None else None, "base_model": base})


def _models_in(text: str) -> list[str]:
    """Every model, adapter and tokenizer that the recipe names. Text that cannot be parsed names none: the linter says why."""
    try:
        recipe, _problems = parse_recipe(text)
    except Malformed:
        return []
    models = [part for ref in recipe.references() for part in (ref.base, ref.adapter) if part is not None]
    return models + _tokenizers_in(recipe)


def _tokenizers_in(recipe: ParsedRecipe) -> list[str]:
    sources = [recipe.tokenizer_source, (recipe.tokenizer or {}).get("source")]
    sources += [name for stage in recipe.stages for name in _tokenizers_in(stage)]
    return [name.removeprefix("model:") for name in sources if isinstance(name, str) and name not in TOKENIZER_WORDS]


def is_text(recipe: str) -> bool:
    """Text has lines or a `key: value`; anything else is a path."""
    return "\n" in recipe.strip() or ": " in recipe
