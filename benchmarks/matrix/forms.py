"""What both lists of forms share: tiny sizes, a form's verdict before its values are compared, and the command line."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.matrix.processes import add_jobs, each
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import MergingError
from mcp_server.steps.validate import validate

LOADS, SAME = "loads", "same"
SIZE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
Verdict = tuple[str, str]
"""(right | runs | merges | refused | misled | wrong | broke, what was said)."""


def tried(recipe: str, place: Path, expect: str, taken: str, *, early: bool) -> Verdict | None:
    """Merge into place/out. None where that was right to do, so that the values decide.

    `taken`: what a refusal would contradict; `early`: validate has to refuse as well, but for values that only reading shows.
    """
    errors = [finding.message for finding in validate(recipe).findings if finding.severity == "error"]
    try:
        merge(Request(recipe, place / "out", place / "journal", threads=1), lambda *_: None)
    except MergingError as error:
        if expect in (LOADS, SAME):
            return "misled", f"refused though {taken}: {error.message}"
        if not re.search(expect, error.message):
            return "misled", f"not for the reason ({expect}): {error.message}"
        if early and not errors and "finite" not in error.message:
            return "misled", f"{error.message} (validate found nothing)"
        return "refused", error.message
    if errors:
        return "misled", f"validate refuses what merges: {errors[0]}"
    if expect not in (LOADS, SAME):
        return "wrong", f"merged though it is to be refused ({expect})"
    return None


def row(name: str, judge: Callable[[Path], Verdict]) -> dict[str, str]:
    """A form's row; `judge` gets an empty folder."""
    with tempfile.TemporaryDirectory(prefix="form-", ignore_cleanup_errors=True) as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result, says = judge(Path(place))
        except Exception as error:  # noqa: BLE001 - the list is for finding whatever goes wrong
            result, says = "broke", f"{type(error).__name__}: {error}"
    return {"form": name, "result": result, "says": says.replace(place, "")}


def run(usage: str | None, names: Iterable[str], row_of: Callable[[str], dict[str, str]]) -> int:
    """The command line of a list; 1 when a form is answered wrongly."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="WORD", default=[""], help="forms whose name holds one of these words")
    parser.add_argument("--rows", type=Path)
    add_jobs(parser)
    args = parser.parse_args()
    rows = []
    for one in each(row_of, [name for name in names if any(word in name for word in args.only)], args.jobs):
        rows.append(one)
        print(f"{one['form']:46} {one['result']:8} {one['says'][:200]}", flush=True)
    if args.rows:
        args.rows.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    print(dict(Counter(one["result"] for one in rows)))
    return int(any(one["result"] in ("wrong", "misled", "broke") for one in rows))
