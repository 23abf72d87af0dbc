"""demo, check, serve."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mcp_server.cli.console import Json, emit, stderr, table
from mcp_server.cli.demo import run_demo, show_demo
from mcp_server.cli.merging import output_path
from mcp_server.jobs.ask import ask
from mcp_server.steps.check import check_catalogue


def register(app: typer.Typer) -> None:
    for command in (demo, check, serve):
        app.command()(command)


def demo(
    out: Annotated[Path, typer.Argument(help="folder to write; earlier demo output in it is replaced")] = Path("demo-output"),
    engine: Annotated[str, typer.Option(help="auto, stream or mergekit")] = "auto",
    json: Json = False,
) -> int:
    """Merge two real LoRA adapters of a real language model and see the evidence."""
    result = run_demo(output_path(out), engine, quiet=json)
    emit(result, json, lambda: show_demo(result))
    return 0


def check(
    engine: Annotated[bool, typer.Option("--engine", help="also compare with the installed mergekit's own registry")] = False,
    json: Json = False,
) -> int:
    """Check rules, templates, suites and documents; say what is wrong and where."""
    found = check_catalogue(registry=ask("mergekit_registry", {}) if engine else None)
    rows = [(f.where, f.message, f.fix) for f in found.findings]
    emit(found, json, lambda: table("Catalogue", ("where", "what", "fix"), rows) if rows else stderr.print("all good"))
    return 0 if found.ok else 1


def serve(
    http: Annotated[int | None, typer.Option(help="serve streamable HTTP on this loopback port instead of stdio")] = None,
) -> None:
    """Start the MCP server."""
    arguments = ["--http", str(http)] if http is not None else []
    os.execv(sys.executable, [sys.executable, "-P", "-m", "mcp_server.server", *arguments])
