#!/usr/bin/env python3
"""Merge two fine-tunes of every class of transformers that can be made tiny, and hold the output against float64 and a loader.

usage: run.py [--only WORD...] [--rows FILE]

For each class and stored form: the linter's verdict, the streaming engine's merge, every output tensor beside float64 task
arithmetic on the stored tensors (read by the safetensors package), and what transformers reports when it loads the output beside
what it reports for the base. Nothing of this shares code with the engine. The float32 form is merged by mergekit too, and what
transformers loads of its output is held against the same sums. `--rows` keeps the results as JSON lines, and a second run with
the same file goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before transformers is imported; not where a test imports this
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import yaml
from safetensors.torch import load_file

from benchmarks.matrix.processes import add_jobs, each
from benchmarks.matrix.tiny import classes, tiny
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import MergingError
from mcp_server.steps.validate import validate

FORMS = {"float32": (torch.float32, "5GB"), "bfloat16, shards": (torch.bfloat16, "100KB")}
MERGEKIT = "mergekit"
"""The form of the rows that tell what mergekit makes of the float32 form."""
WEIGHTS = (0.5, 0.3)
SECONDS = 90
"""A class that takes longer is left out, and counted."""
ULP = {"float32": 2.0**-22, "bfloat16": 2.0**-8}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="WORD", default=[""], help="model types that hold one of these words")
    parser.add_argument("--rows", type=Path)
    add_jobs(parser)
    args = parser.parse_args()
    lines = args.rows.read_text("utf-8").splitlines() if args.rows and args.rows.exists() else []
    rows = [json.loads(line) for line in lines]
    known, started = {row["type"] for row in rows}, time.monotonic()
    wanted = [(kind, name) for kind, name in classes() if kind not in known and any(word in kind for word in args.only)]
    for found in each(with_mergekit, wanted, args.jobs):
        rows += found
        for row in found:
            print(f"{row['type']:28} {row['form']:18} {row['result']:8} {row['says'][:150]}", flush=True)
        if args.rows:
            with args.rows.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
    counts = Counter(row["result"] for row in rows)
    print(f"{dict(counts)} in {time.monotonic() - started:.0f} s")
    return int(any(row["result"] in ("wrong", "misled", "broke") for row in rows))


def with_mergekit(wanted: tuple[str, str]) -> list[dict[str, Any]]:
    return one_class(*wanted, mergekit=True)


def one_class(kind: str, name: str, *, mergekit: bool = False) -> list[dict[str, Any]]:
    """A row a form, and mergekit's if asked; one row with the result `skipped` for a class that cannot be made tiny here."""
    try:
        with deadline(SECONDS):
            model = tiny(kind, name)
    except TimeoutError:
        model = None
    if model is None:
        return [{"type": kind, "class": name, "form": "", "result": "skipped", "says": "not made tiny"}]
    rows = []
    for form, (dtype, shard) in FORMS.items():
        with tempfile.TemporaryDirectory(prefix="matrix-", ignore_cleanup_errors=True) as place:
            try:
                with deadline(SECONDS):
                    result, says = one_merge(model, Path(place), dtype, shard)
            except TimeoutError:
                result, says = "skipped", f"took more than {SECONDS} s"
            except Exception as error:  # noqa: BLE001 - the matrix is for finding whatever goes wrong
                result, says = "broke", f"{type(error).__name__}: {error}"
            rows.append({"type": kind, "class": name, "form": form, "result": result, "says": says.replace(place, "")})
            if mergekit and form == "float32" and (Path(place) / "two").exists():
                result, says = by_mergekit(type(model), Path(place))
                rows.append({"type": kind, "class": name, "form": MERGEKIT, "result": result, "says": says.replace(place, "")})
    del model
    gc.collect()
    return rows


def one_merge(model: Any, place: Path, dtype: torch.dtype, shard: str) -> tuple[str, str]:
    """(right | refused | misled | wrong | unsaved, what was said)."""
    cls, state = type(model), {key: value.clone() for key, value in model.state_dict().items()}
    for number, name in enumerate(("base", "one", "two")):
        torch.manual_seed(number)
        model.load_state_dict(state)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value) * 0.02)
        try:
            model.to(dtype).save_pretrained(place / name, max_shard_size=shard)
        except Exception as error:  # noqa: BLE001
            return "skipped", f"transformers does not save it: {error}"
        finally:
            model.float()
    word = str(dtype).removeprefix("torch.")
    recipe = recipe_of(place, word)
    checked = validate(recipe)
    errors = [finding.message for finding in checked.findings if finding.severity == "error"]
    try:
        merge(Request(recipe, place / "out", place / "journal", threads=1), lambda *_: None)
    except MergingError as error:
        late = "" if errors else " (validate found nothing)"
        return ("refused" if errors else "misled"), error.message + late
    if unlike := difference(place, word):
        return "wrong", unlike
    if errors:
        return "misled", f"validate refuses what merges right: {errors[0]}"
    return load(cls, place)


def by_mergekit(cls: Any, place: Path) -> tuple[str, str]:
    """(right | drops | wrong | fails, what was said): mergekit's output of the same recipe, as it is loaded."""
    from mergekit.config import MergeConfiguration  # here, because it warns on import and tests turn warnings into errors
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    try:
        with deadline(SECONDS):
            config = MergeConfiguration.model_validate(yaml.safe_load(recipe_of(place, "float32")))
            run_merge(config, str(place / "theirs"), MergeOptions(copy_tokenizer=False, quiet=True, lora_merge_cache=str(place)))
    except TimeoutError:
        return "fails", f"took more than {SECONDS} s"
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is mergekit's answer
        return "fails", f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    return loaded_sum(cls, place)


def loaded_sum(cls: Any, place: Path) -> tuple[str, str]:
    """mergekit may store other names than transformers does, so its output is judged as transformers loads it."""
    try:
        (base, known), (one, _), (two, _), (out, report) = (
            cls.from_pretrained(place / name, output_loading_info=True) for name in ("base", "one", "two", "theirs")
        )
    except Exception as error:  # noqa: BLE001
        return "wrong", f"it does not load: {type(error).__name__}: {str(error)[:100]}"
    if lost := sorted(map(str, set(report["missing_keys"]) - set(known["missing_keys"]))):
        return "drops", f"{len(lost)} of {len(base.state_dict())} tensors are missing, such as {lost[0]}"
    ones, twos, outs = one.state_dict(), two.state_dict(), out.state_dict()
    for key, value in base.state_dict().items():
        if value.is_floating_point():
            b, first, second = (part[key].double() for part in ({key: value}, ones, twos))
            wanted = b + WEIGHTS[0] * (first - b) + WEIGHTS[1] * (second - b)
            if ((outs[key].double() - wanted).abs() > wanted.abs() * ULP["float32"] + 1e-6).any():
                return "wrong", f"{key} is not the sum of its deltas"
    return "right", ""


def recipe_of(place: Path, dtype: str) -> str:
    models = "".join(
        f"  - model: {place / name}\n    parameters: {{weight: {weight}}}\n"
        for name, weight in zip(("one", "two"), WEIGHTS, strict=True)
    )
    return f"merge_method: task_arithmetic\nbase_model: {place / 'base'}\nmodels:\n{models}dtype: {dtype}\n"


def difference(place: Path, dtype: str) -> str:
    """How the output differs from float64 task arithmetic on the stored tensors; empty when it does not."""
    base, one, two, out = (tensors(place / name) for name in ("base", "one", "two", "out"))
    if lost := sorted(set(base) ^ set(out)):
        return f"{len(lost)} names differ from the base's, such as {lost[0]}"
    for key, found in out.items():
        if not base[key].is_floating_point():
            if not torch.equal(found, base[key]):
                return f"{key} is not the base's"
            continue
        b, first, second = (part[key].double() for part in (base, one, two))
        wanted = b + WEIGHTS[0] * (first - b) + WEIGHTS[1] * (second - b)
        if found.dtype != base[key].dtype or ((found.double() - wanted).abs() > wanted.abs() * ULP[dtype] + 1e-6).any():
            return f"{key} is not the sum of its deltas"
    return ""


def load(cls: Any, place: Path) -> tuple[str, str]:
    """The output loads as the base does: no other keys are missing, unexpected or of another shape."""
    reports = []
    for name in ("base", "out"):
        try:
            info = cls.from_pretrained(place / name, output_loading_info=True)[1]
        except Exception as error:  # noqa: BLE001
            reports.append(f"{type(error).__name__}: {str(error)[:100]}")
            continue
        reports.append({key: sorted(map(str, info[key])) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")})
    if reports[0] != reports[1]:
        return "wrong", f"a loader reports {str(reports[1])[:200]} and for the base {str(reports[0])[:200]}"
    return "right", ""


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()}


@contextlib.contextmanager
def deadline(seconds: int) -> Any:
    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    sys.exit(main())
