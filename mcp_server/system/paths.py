"""Where things live: the store of jobs and caches, and the data that ships with the product.

The store is `MODEL_MERGING_HOME`, else the platform's state folder. Shipped data (templates, skills, the example) sits at the
top of a clone and under `mcp_server/_data/` in an installed wheel; callers never need to know which.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mcp_server.errors import BadInput, NotFound

PACKAGE = Path(__file__).resolve().parent.parent
RULES = PACKAGE / "rules"
SUITES = PACKAGE / "suites"


def home() -> Path:
    """The store's folder (not created here)."""
    if configured := os.environ.get("MODEL_MERGING_HOME"):
        return Path(configured).expanduser().resolve()
    if sys.platform == "darwin":
        return users_home() / "Library" / "Application Support" / "model-merging"
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else users_home() / ".local" / "state") / "model-merging"


def users_home() -> Path:
    """The user's home folder. Raises `BadInput` where there is none (a container that runs as a bare number, without HOME)."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise BadInput(
            "this user has no home folder, so there is no place for jobs and caches", "set MODEL_MERGING_HOME (and HF_HOME)"
        ) from error


def expanded(text: str | Path) -> Path:
    """The path with `~` and `~user` replaced. Raises `BadInput` for a user that does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise BadInput(f"{str(text)[:200]!r} names no home folder: {error}", "write the whole path") from error


def jobs_dir() -> Path:
    return home() / "jobs"


def cache_dir() -> Path:
    return home() / "cache"


def huggingface_cache() -> Path:
    """The local hub cache: `HF_HUB_CACHE`, else `HF_HOME/hub`, else ~/.cache/huggingface/hub."""
    if hub := os.environ.get("HF_HUB_CACHE"):
        return Path(hub)
    if hf_home := os.environ.get("HF_HOME"):
        return Path(hf_home) / "hub"
    try:
        return users_home() / ".cache" / "huggingface" / "hub"
    except BadInput:
        return home() / "cache" / "hub"  # nobody's home: there is none to read, and no reason to stop


def shipped(name: str) -> Path:
    """A folder of shipped data: 'templates', 'skills' or 'examples/one_prompt'."""
    for root in (PACKAGE.parent, PACKAGE / "_data"):
        if (root / name).is_dir():
            return root / name
    raise NotFound(
        f"the installation has no folder {name!r} beside {PACKAGE.name}", "reinstall model-merging, or work in a clone"
    )


def templates_dir() -> Path:
    return shipped("templates")


def demo_base_dir() -> Path:
    """Where the demo's dequantised base model is kept once it is made."""
    return cache_dir() / "base" / "smollm2-135m-instruct"
