"""The command line: the same steps as the MCP tools, for people and scripts.

Results go to stdout as JSON with `--json`; people get tables and progress bars on stderr. Exit codes are a contract, see
`core.errors`.
"""

from __future__ import annotations

import json
import sys
import traceback

import typer

from mcp_server.cli import diagnosing, evidence, knowledge, merging, project, suites, validate
from mcp_server.cli.console import stderr
from mcp_server.errors import BadInput, MergingError

EXIT_BAD_INPUT = 2
EXIT_BUG = 70
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="model-merging",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Merge fine-tuned language models and LoRA adapters, with evidence.",
    epilog="Path: inspect → recommend → render → validate → estimate → merge → verify → evaluate → report",
)
for group in (knowledge, validate, merging, evidence, suites, diagnosing, project):
    group.register(app)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with the code that the contract gives for what happened."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """As `main`, but returns the exit code."""
    try:
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
    except Exception:  # noqa: BLE001 - the edge: a bug is shown whole and has its own exit code
        traceback.print_exc()
        stderr.print("This is a bug in model-merging; please report it with the lines above.")
        return EXIT_BUG
    return int(code or 0)


def show_error(error: MergingError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.as_dict()}, ensure_ascii=False))
    else:
        stderr.print(f"error: {error.message}", markup=False, soft_wrap=True, style="bold red")
        if error.next_step:
            stderr.print(f"→ {error.next_step}", markup=False, soft_wrap=True)
