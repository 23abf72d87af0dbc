"""What a merge does about hub ids in its recipe: it fetches those that are not here, and goes on with folders."""

from __future__ import annotations

from pathlib import Path

from mcp_server.formats.recipe.rewrite import rewrite_refs
from mcp_server.formats.recipe.whereabouts import absent_from, placed, places_of
from mcp_server.formats.refs import demo_aliases
from mcp_server.schemas.job import FetchRequest
from mcp_server.workers.protocol import Job


def with_sources(job: Job, recipe: str, *, bases: bool = True) -> str:
    """The recipe with the folders of its hub ids, fetched where they are not in the local cache: from here on commits are fixed.

    Without `bases` only adapters are fetched: what an adapter as output needs.
    """
    absent = [ref for ref in absent_from(recipe, bases=bases) if ref not in demo_aliases()]
    if absent:
        from mcp_server.workers.fetch import fetch  # the hub's client costs 13 MB and more time than the rest of the start

        for ref in absent:
            fetch(FetchRequest(ref=ref, with_base=False), job)
    return rewrite_refs(recipe, lambda ref: placed(ref, places_of(ref, Path.cwd())))
