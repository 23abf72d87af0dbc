"""Which task vectors can be compared: the plan of one pass over a base and what was trained from it. Headers only."""

from __future__ import annotations

import json

from mcp_server.engine.plan import MergePlan, make_plan
from mcp_server.formats.checkpoint import locate
from mcp_server.formats.recipe import merge_recipe


def comparable(base: str, refs: list[str]) -> tuple[list[str], MergePlan]:
    """(each of `refs` as a model: adapters of `base` as base+adapter, the plan that reads them beside the base).

    Raises `NotFound`, `NotAModel`, `Incompatible` and `Unsupported` for what cannot stand beside the base.
    """
    models = [_with_base(base, ref) for ref in refs]
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    recipe = {"merge_method": "task_arithmetic", "base_model": base, "models": entries}
    return models, make_plan(merge_recipe(json.dumps(recipe, ensure_ascii=False)))  # YAML reads no pairs of \\u escapes


def _with_base(base: str, ref: str) -> str:
    if "+" not in ref:
        folder = locate(ref)
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            return f"{base}+{ref}"
    return ref
