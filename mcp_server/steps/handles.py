"""Plans and recipes by id, so that nobody types one back: kept in the store under a name made of their content.

    HOME/plans/plan-<12 hex>.yaml       what `recommend` returned
    HOME/recipes/recipe-<12 hex>.yml    what `render` returned; its first line names the plan that it came from

The line `# plan: plan-…` survives copying, so a merge finds the reasons for its recipe whatever way the text went.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

import yaml

from mcp_server.errors import NotFound
from mcp_server.schemas.plan import Plan, Rendered
from mcp_server.steps.scenario import read_plan
from mcp_server.system import paths
from mcp_server.system.files import private_folder, write_text

PLAN_ID: Final = re.compile(r"plan-[0-9a-f]{12}")
RECIPE_ID: Final = re.compile(r"recipe-[0-9a-f]{12}")
_NAMED: Final = re.compile(r"^# plan: (plan-[0-9a-f]{12})$", re.MULTILINE)


def plan_text(plan: Plan) -> str:
    """The plan as YAML, without what is unknown."""
    return yaml.safe_dump(plan.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)


def keep_plan(plan: Plan) -> Plan:
    """The plan with its id, and a copy of it in the store."""
    plan_id = _id("plan", plan_text(plan.model_copy(update={"plan_id": None})))
    kept = plan.model_copy(update={"plan_id": plan_id})
    _write(plan_file(plan_id), plan_text(kept))
    return kept


def plan_file(plan_id: str) -> Path:
    return paths.home() / "plans" / f"{plan_id}.yaml"


def kept_plan(plan_id: str) -> Plan:
    """Raises `NotFound` for an id that this store does not have."""
    if not PLAN_ID.fullmatch(plan_id) or not plan_file(plan_id).is_file():
        raise NotFound(
            f"there is no plan {plan_id[:80]!r} in {paths.home() / 'plans'}", "recommend again, or give the plan's file"
        )
    return read_plan(plan_file(plan_id))


def keep_recipe(rendered: Rendered) -> Rendered:
    """The recipe with its id, and a copy of it in the store."""
    recipe_id = _id("recipe", rendered.recipe)
    _write(recipe_file(recipe_id), rendered.recipe)
    return rendered.model_copy(update={"recipe_id": recipe_id})


def recipe_file(recipe_id: str) -> Path:
    """The file of a recipe by id. Raises `NotFound` for an id that this store does not have."""
    file = paths.home() / "recipes" / f"{recipe_id}.yml"
    if not RECIPE_ID.fullmatch(recipe_id):
        raise NotFound(f"{recipe_id[:80]!r} is no id of a recipe", "an id looks like recipe-0123456789ab")
    return file


def kept_recipe(recipe_id: str) -> str:
    """Raises `NotFound` for an id that this store does not have."""
    file = recipe_file(recipe_id)
    if not file.is_file():
        raise NotFound(f"there is no recipe {recipe_id!r} in {file.parent}", "render the plan again, or give the recipe's file")
    return file.read_text(encoding="utf-8")


def plan_of(recipe: str) -> Plan | None:
    """The plan that a recipe's first line names, when it is in this store."""
    named = _NAMED.search(recipe)
    try:
        return kept_plan(named[1]) if named else None
    except NotFound:
        return None


def _id(what: str, text: str) -> str:
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _write(file: Path, text: str) -> None:
    if not file.is_file():
        private_folder(file.parent)
        write_text(file, text)
