"""The command line: the same steps as the MCP tools, for people and scripts.

Results go to stdout as JSON with `--json`; people get tables and progress bars on stderr. Exit codes are a contract, see
`core.errors`.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from mcp_server.cli import diagnosing, evidence, going, hub, knowledge, merging, project, replies, suites, validate, waiting
from mcp_server.cli.console import say_json, stderr
from mcp_server.cli.manners import Commands
from mcp_server.errors import BadInput, MergingError
from mcp_server.system.files import keep_standard_descriptors
from mcp_server.system.os_errors import refusal

EXIT_BAD_INPUT = 2
EXIT_FAILED = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
"""As a program that the closed pipe had ended: nothing failed, nobody reads on."""

app = Commands(
    name="model-merging",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Merge fine-tuned language models and LoRA adapters, with evidence.",
    epilog="Path: inspect → recommend → render → validate → estimate → merge → verify → evaluate → report",
)
for group in (going, knowledge, validate, merging, evidence, suites, replies, diagnosing, hub, waiting, project):
    group.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"model-merging {installed_version('model-merging')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="print the version and leave", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Options before any command; each acts by itself."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that the contract gives for what happened."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_standard_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that this system's encoding lacks is shown, not a reason to stop
            stream.reconfigure(errors="backslashreplace")
    try:
        code = run(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = EXIT_PIPE_CLOSED
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered has no reader
    except OSError as error:
        code = EXIT_FAILED
        stderr.print(f"error: cannot write the result: {error.strerror or error}", markup=False)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """As `main`, but returns the exit code. A closed pipe is `main`'s to end."""
    try:
        if unreadable := next((text for text in arguments if not _is_text(text)), None):
            raise BadInput(f"{unreadable!r} is not UTF-8", "rename the file or folder so that its name is text")
        code = app(args=arguments, standalone_mode=False)
    except MergingError as error:
        show_error(error, as_json="--json" in arguments)
        return error.exit_code
    except typer.Exit as leaving:
        return leaving.exit_code
    except typer.TyperException as error:
        show_error(BadInput(error.format_message(), "see model-merging --help"), as_json="--json" in arguments)
        return EXIT_BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        stderr.print("stopped")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the edge: a bug is shown whole and has its own exit code
        if (refused := refusal(error)) is not None:
            show_error(refused, as_json="--json" in arguments)
            return refused.exit_code
        traceback.print_exc()
        stderr.print("This is a bug in model-merging; please report it with the lines above.")
        return EXIT_BUG
    return int(code or 0)


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def show_error(error: MergingError, *, as_json: bool) -> None:
    if as_json:
        say_json(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
    else:
        stderr.print(f"error: {error.message}", markup=False, soft_wrap=True, style="bold red")
        if error.next_step:
            stderr.print(f"→ {error.next_step}", markup=False, soft_wrap=True)
