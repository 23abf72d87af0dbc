"""The MCP server: every step of the path as a tool, with nothing heavy loaded into this process.

`model-merging-mcp` (or `python -m mcp_server.server`) serves stdio; `--http PORT` serves streamable HTTP on loopback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from mcp_server.jobs import dispatch
from mcp_server.server.build import build_server
from mcp_server.system import settings as operator
from mcp_server.system.os_errors import refusal
from mcp_server.system.plain_text import printable

__all__ = ["build_server", "main"]


def serve_stdio() -> None:
    """Serve until the client leaves. A client that closes the pipe without notice is not an error."""
    try:
        build_server().run("stdio")
    except BaseExceptionGroup as group:
        _gone, rest = group.split(BrokenPipeError)
        if rest is not None:
            raise rest from None
        # The interpreter would try to flush what nobody reads any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: list[str] | None = None) -> None:
    """Serve until the client leaves (stdio) or the process is stopped (HTTP)."""
    parser = argparse.ArgumentParser(prog="model-merging-mcp", description="The model-merging MCP server.")
    parser.add_argument("--http", type=int, metavar="PORT", help="serve streamable HTTP on this port instead of stdio")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = operator.load()
        dispatch()  # a queue whose runner was killed moves on with the next server; its read-only calls start nothing
        if options.http is None:
            serve_stdio()
        else:
            from mcp_server.server.http import serve_http

            serve_http(build_server(), settings, options.http)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if (refused := refusal(error)) is None:
            raise
        print(printable(f"error: {refused}"), file=sys.stderr)
        sys.exit(refused.exit_code)
