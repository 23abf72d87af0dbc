#!/usr/bin/env python3
"""How far each engine's bf16 output is from the exact result: mean absolute error against the methods' definitions in float64.

usage: accuracy.py [-o RESULTS.md]        seconds; a tiny Llama, two bf16 fine-tunes
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from synthetic import Shape, write_model

from tests.engine import definitions as exact
from tests.engine.synthetic import load, run

SHAPE = Shape(hidden=256, layers=4, intermediate=704, vocabulary=4000, heads=4, kv_heads=2)
WEIGHTS, DENSITY, T = (0.6, 0.5), 0.4, 0.3
Merge = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _ties(base: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    masks = [exact.magnitude_mask(value - base, DENSITY) for value in (one, two)]
    return exact.task_vectors(base, [one, two], WEIGHTS, masks, elect=True, normalize=True)


def _arithmetic(base: np.ndarray, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    whole = [np.ones(base.shape, bool)] * 2
    return exact.task_vectors(base, [one, two], WEIGHTS, whole, elect=False, normalize=False)


METHODS: dict[str, Merge] = {
    "linear": lambda _, one, two: exact.linear([one, two], WEIGHTS),
    "slerp": lambda base, one, _: exact.slerp(base, one, T),
    "task_arithmetic": _arithmetic,
    "ties": _ties,
    "nuslerp": lambda base, one, two: exact.nuslerp(one, two, WEIGHTS, base),
    "model_stock": lambda base, one, two: exact.model_stock(base, [one, two]),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    lines = ["| method | stock mergekit | ours | rounding alone | stock ÷ ours |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        refs = [write_model(root / name, SHAPE, n) for n, name in enumerate(("base", "one", "two"))]
        base, one, two = (load(ref) for ref in refs)
        for method, merge in METHODS.items():
            recipe = _recipe(method, refs)
            (root / "recipe.yml").write_text(recipe, encoding="utf-8")
            command = [
                str(Path(sys.executable).with_name("mergekit-yaml")),
                str(root / "recipe.yml"),
                str(root / f"stock-{method}"),
            ]
            subprocess.run([*command, "--no-copy-tokenizer"], check=True, capture_output=True)
            run(recipe, root / f"ours-{method}")
            outputs = [load(root / f"{side}-{method}") for side in ("stock", "ours")]
            want = {name: merge(base[name], one[name], two[name]) for name in base}
            stock, ours = (_error({name: out[name] for name in want}, want) for out in outputs)
            floor = _error({name: _bf16(values) for name, values in want.items()}, want)
            lines.append(f"| {method} | {stock:.2e} | {ours:.2e} | {floor:.2e} | {stock / ours:.2f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = "Mean absolute error at bf16 against float64.\n\n" + "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    return 0


def _recipe(method: str, refs: list[Path]) -> str:
    base, one, two = map(str, refs)
    body: dict[str, object] = {"merge_method": method, "dtype": "bfloat16"}
    settings = {"linear": {}, "ties": {"density": DENSITY}}.get(method, {})
    body["models"] = [{"model": m, "parameters": {"weight": w} | settings} for m, w in zip((one, two), WEIGHTS, strict=True)]
    if method == "slerp":
        body |= {"models": [{"model": base}, {"model": one}], "parameters": {"t": T}}
    elif method == "model_stock":
        body["models"] = [{"model": one}, {"model": two}]
    return json.dumps(body | ({} if method == "linear" else {"base_model": base}))


def _error(found: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    total = math.fsum(float(np.abs(found[name] - want[name]).sum()) for name in want)
    return total / sum(values.size for values in want.values())


def _bf16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32)
    return (((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16).view(np.float32).astype(np.float64)


if __name__ == "__main__":
    sys.exit(main())
