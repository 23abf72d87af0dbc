"""What a merge is asked to do, whatever it makes: a model or an adapter."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mcp_server.engine.journal import recorded_seed
from mcp_server.engine.plan import MergePlan
from mcp_server.errors import Unsupported
from mcp_server.formats.chat_template import AUTO, is_name
from mcp_server.formats.recipe import Recipe
from mcp_server.formats.safetensors import Header
from mcp_server.schemas.base import OutputFormat, Space

Report = Callable[[str, float, float, str], None]
"""(stage, done, total, unit): called often; the receiver thins it out."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to merge and how. `folder` is filled and becomes the output; `journal` lies outside it."""

    recipe: str
    folder: Path
    journal: Path
    seed: int | None = None
    threads: int | None = None
    shard_bytes: int = 5_000_000_000
    allow_nonfinite: bool = False
    hashing: Literal["headers", "full"] = "headers"
    name: str = ""
    job_id: str = ""
    rank: int | None = None
    space: Space = "weights"
    """Where the methods of an adapter output that is no exact sum decide: `engine.core_space`."""
    whole: tuple[str, ...] = ()
    output_format: OutputFormat | None = None
    """How the weights are stored; None: in the recipe's dtype."""
    chat_template: str | None = None
    """The text of the template that the recipe names, where it names one of mergekit's (`workers.chat_templates`)."""


def require_template(request: Request, recipe: Recipe) -> None:
    """Raise `Unsupported` where the recipe names one of mergekit's templates and its text was not handed over."""
    if (name := recipe.chat_template) and is_name(name) and name != AUTO and request.chat_template is None:
        raise Unsupported(
            f"the text of the chat template {name!r} is mergekit's, and was not given", "give the text in the recipe"
        )


def choose_seed(request: Request) -> int:
    """The seed asked for, else the one an interrupted run used, else a new one."""
    if request.seed is not None:
        return request.seed
    recorded = recorded_seed(request.journal)
    return recorded if recorded is not None else secrets.randbits(32)


def all_headers(plan: MergePlan) -> dict[Path, Header]:
    """Every input file and its header, once."""
    found: dict[Path, Header] = {}
    for source in plan.sources.values():
        found |= source.checkpoint.headers
        if source.adapter:
            found |= source.adapter.headers
    return found
