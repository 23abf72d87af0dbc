"""Measure what mergekit holds per element of its largest tensor, method by method: the numbers in rules/costs.yaml.

usage: python benchmarks/estimate/coefficients.py WORKDIR [METHOD...]

One model with one large tensor (an embedding of 24,576 × 1,024) and hardly anything else: the peak less the peak of a tiny
merge, divided by the elements, is the method's working set in bytes per element. Run for one, two and three models beside the
base, in bfloat16 and float32 arithmetic; prints one JSON line a run.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from synthetic import Shape, write_model

sys.path.append(str(Path(__file__).resolve().parents[1]))
from measure import run as measure

LARGE = Shape(hidden=1024, layers=1, intermediate=64, vocabulary=24576, tied=True)
TINY = Shape(hidden=64, layers=1, intermediate=64, vocabulary=512, tied=True)
METHODS = {
    "linear": {"weight": 0.5}, "slerp": {"t": 0.5}, "nuslerp": {"weight": 0.5}, "multislerp": {"weight": 0.5}, "karcher": {},
    "task_arithmetic": {"weight": 0.5}, "ties": {"weight": 0.5, "density": 0.5}, "dare_linear": {"weight": 0.5, "density": 0.5},
    "dare_ties": {"weight": 0.5, "density": 0.5}, "breadcrumbs": {"weight": 0.5, "density": 0.5},
    "breadcrumbs_ties": {"weight": 0.5, "density": 0.5}, "della": {"weight": 0.5, "density": 0.5},
    "della_linear": {"weight": 0.5, "density": 0.5}, "sce": {"select_topk": 0.5}, "ram": {}, "ramplus_tl": {}, "model_stock": {},
    "nearswap": {"t": 0.5}, "arcee_fusion": {}, "passthrough": {},
}  # fmt: skip
BASELESS = ("linear", "karcher", "multislerp", "nuslerp", "passthrough")
PAIRS = ("slerp", "nuslerp", "nearswap", "arcee_fusion")


def recipe(method: str, models: list[Path], dtype: str) -> str:
    base = None if method in BASELESS else models[0]
    listed = models[:1] if method == "passthrough" else models[:2] if method in PAIRS else models
    lines = [f"merge_method: {method}", f"dtype: {dtype}"] + ([f"base_model: {base}"] if base else []) + ["models:"]
    lines += [f"  - model: {model}" for model in listed if model != base or method in PAIRS]
    if METHODS[method]:
        lines += ["parameters:"] + [f"  {name}: {value}" for name, value in METHODS[method].items()]
    return "\n".join(lines) + "\n"


def run(work: Path, method: str, models: list[Path], dtype: str) -> tuple[int, float]:
    config, out = work / "recipe.yml", work / "out"
    config.write_text(recipe(method, models, dtype), encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    program = str(Path(sys.executable).parent / "mergekit-yaml")
    command = [program, str(config), str(out), "--no-write-model-card", "--quiet", "--no-copy-tokenizer"]
    found = measure(command, work / "log", {"HF_HUB_OFFLINE": "1", "TMPDIR": str(work)})
    shutil.rmtree(out, ignore_errors=True)
    if found.exit_code:
        raise SystemExit(f"{method}: {found.tail}")
    return found.anon, found.wall


def main() -> None:
    work = Path(sys.argv[1]).resolve()
    chosen = sys.argv[2:] or list(METHODS)
    large = [write_model(work / f"large{n}", LARGE, n) for n in range(4)]
    tiny = [write_model(work / f"tiny{n}", TINY, n) for n in range(4)]
    elements = LARGE.vocabulary * LARGE.hidden
    for method in chosen:
        floor, started = run(work, method, tiny[:3], "bfloat16")
        counts = (2,) if method in PAIRS or method == "passthrough" else (3,) if method == "model_stock" else (2, 3, 4)
        for count in counts:
            for dtype in ("bfloat16", "float32") if count == 3 or len(counts) == 1 else ("bfloat16",):
                peak, seconds = run(work, method, large[:count], dtype)
                row = {
                    "method": method,
                    "models": count,
                    "dtype": dtype,
                    "process_mb": round(floor / 1e6, 1),
                    "bytes_per_element": round((peak - floor) / elements, 2),
                    "ns_per_element": round((seconds - started) / elements * 1e9, 1),
                    "start_seconds": round(started, 1),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
