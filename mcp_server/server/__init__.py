"""The MCP server: every step of the path as a tool, with nothing heavy loaded into this process.

`model-merging-mcp` (or `python -m mcp_server.server`) serves stdio; `--http PORT` serves streamable HTTP on loopback.
"""

from __future__ import annotations

import argparse
import logging
import sys

from mcp_server.core import settings as operator
from mcp_server.core.errors import MergingError
from mcp_server.server.build import build_server

__all__ = ["build_server", "main"]


def main(arguments: list[str] | None = None) -> None:
    """Serve until the client leaves (stdio) or the process is stopped (HTTP)."""
    parser = argparse.ArgumentParser(prog="model-merging-mcp", description="The model-merging MCP server.")
    parser.add_argument("--http", type=int, metavar="PORT", help="serve streamable HTTP on this port instead of stdio")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = operator.load()
        if options.http is None:
            build_server().run("stdio")
        else:
            from mcp_server.server.http import serve_http

            serve_http(build_server(), settings, options.http)
    except MergingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
