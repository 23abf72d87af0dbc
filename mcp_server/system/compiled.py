"""Where compiled code is kept: beside the engine's source where that may be written, else in the store.

numba gives up when it finds no place at all (a read-only installation and no home folder), in the middle of an import.
"""

from __future__ import annotations

import contextlib
import os

from mcp_server.errors import MergingError
from mcp_server.system import paths
from mcp_server.system.files import private_folder


def choose_cache() -> None:
    """Set NUMBA_CACHE_DIR to a folder of the store unless it is set, or unless the place beside the source is good."""
    beside = paths.PACKAGE / "engine" / "__pycache__"
    if os.environ.get("NUMBA_CACHE_DIR") or os.access(beside if beside.is_dir() else beside.parent, os.W_OK | os.X_OK):
        return
    with contextlib.suppress(OSError, MergingError):  # a store that cannot be written refuses jobs in its own words
        os.environ["NUMBA_CACHE_DIR"] = str(private_folder(paths.cache_dir() / "compiled"))
