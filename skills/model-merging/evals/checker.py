#!/usr/bin/env python3
"""Judge a whole task by what was produced.

usage: checker.py --prepare TASK WORKSPACE     make the files that the task starts from
       checker.py TASK WORKSPACE               check the result; exit 0 when everything holds, 1 when not, 2 for an unknown task

It reads recipes, weights and the written answer. What an agent says about its work counts for nothing.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from fixtures import LAYERS, deltas, prepare, read_tensors

TOLERANCE = 0.02
"""Relative error of a delta; one rounding to bf16 costs less than 0.01 of the weights' size here."""

Check = tuple[str, bool, str]


def answer(workspace: Path) -> str:
    path = workspace / "answer.md"
    return path.read_text(encoding="utf-8").lower() if path.is_file() else ""


def says(workspace: Path, *groups: tuple[str, ...]) -> bool:
    """answer.md has at least one word of every group."""
    text = answer(workspace)
    return all(any(word in text for word in group) for group in groups)


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / max(float(np.linalg.norm(wanted)), 1e-12))


def complete_model(workspace: Path, name: str = "merged") -> list[Check]:
    """The output has the base's tensors, finite, and changed."""
    folder = workspace / name
    if not (folder / "config.json").is_file():
        return [(f"{name}/ is a model", False, "no config.json")]
    base, merged = read_tensors(workspace / "base"), read_tensors(folder)
    same = {n: v.shape for n, v in base.items()} == {n: v.shape for n, v in merged.items()}
    finite = all(bool(np.isfinite(v).all()) for v in merged.values())
    changed = same and any(error(merged[n], base[n]) > 1e-3 for n in base if "q_proj" in n)
    return [
        (f"{name}/ has the base's tensors and shapes", same, f"{len(merged)} of {len(base)} tensors"),
        (f"{name}/ is finite", finite, ""),
        (f"{name}/ differs from the base", changed, ""),
        (f"{name}/ has a tokenizer", (folder / "tokenizer.json").is_file(), ""),
    ]


def recipe(workspace: Path) -> dict:
    path = workspace / "recipe.yml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return content if isinstance(content, dict) else {}


def sources(content: dict) -> list[dict]:
    """Every source of the recipe, slices' included."""
    listed = list(content.get("models") or [])
    for part in content.get("slices") or []:
        listed += part.get("sources") or []
    return listed


def model_name(source: dict) -> str:
    model = source.get("model")
    if isinstance(model, dict):
        return f"{model.get('model')}+{model.get('lora')}"
    return str(model)


def two_adapters(workspace: Path) -> list[Check]:
    content = recipe(workspace)
    weights = {}
    for source in sources(content):
        name = model_name(source)
        for wanted in ("persona", "tools"):
            if name.rstrip("/").endswith(wanted) and "+" in name:
                weights[wanted] = (source.get("parameters") or {}).get("weight", 0)
    moved = _moved_along(workspace, ("persona", "tools"))
    return [
        *complete_model(workspace),
        ("recipe.yml names both adapters as base+adapter", set(weights) == {"persona", "tools"}, f"{weights}"),
        ("the source with more examples weighs no less", weights.get("tools", 0) >= weights.get("persona", 1), f"{weights}"),
        ("both deltas are in the merge", all(share > 0.05 for share in moved.values()), f"{moved}"),
        (
            "answer.md names sources and reasons",
            says(workspace, ("persona",), ("tools",), ("because", "why", "reason", "rationale")),
            "",
        ),
    ]


def _moved_along(workspace: Path, adapters: tuple[str, ...]) -> dict[str, float]:
    """How far the merge moved along each adapter's delta: 0 not at all, 1 all of it."""
    if not (workspace / "merged" / "config.json").is_file():
        return dict.fromkeys(adapters, 0.0)
    base, merged = read_tensors(workspace / "base"), read_tensors(workspace / "merged")
    shares = {}
    for name in adapters:
        delta = deltas(workspace / name)
        dot = sum(float(np.sum((merged[n] - base[n]) * d)) for n, d in delta.items() if n in merged)
        shares[name] = dot / sum(float(np.sum(d * d)) for d in delta.values())
    return shares


def retrain_instead(workspace: Path) -> list[Check]:
    reasons = (
        ("retrain", "train one", "combined training", "train a single"),
        ("overlap", "70", "conflict", "contradict", "opposite"),
    )
    return [
        ("nothing was merged", not (workspace / "merged").exists(), ""),
        ("answer.md says retrain, and why", says(workspace, *reasons), ""),
    ]


def broken_recipe(workspace: Path) -> list[Check]:
    content = recipe(workspace)
    listed = [s for s in sources(content) if not model_name(s).rstrip("/").endswith("base")]
    names = sorted({model_name(s).rstrip("/").split("/")[-1] for s in listed})
    parameters = [s.get("parameters") or {} for s in listed]
    shared = content.get("parameters") or {}
    density = [p.get("density", shared.get("density", 1)) for p in parameters]
    ranges = [s["layer_range"] for s in listed if "layer_range" in s]
    bases = [any(model_name(s).rstrip("/").endswith("base") for s in part["sources"]) for part in content.get("slices") or []]
    legal = all(isinstance(d, int | float) and 0 < d <= 1 for d in density)
    weighted = [p.get("weight") for p in parameters]
    inside = all(0 <= low < high <= LAYERS for low, high in ranges)
    return [
        ("still TIES of code and chat", content.get("merge_method") == "ties" and names == ["chat", "code"], f"{names}"),
        ("base_model is named", str(content.get("base_model", "")).rstrip("/").endswith("base"), f"{content.get('base_model')}"),
        ("the base is in every slice", all(bases), f"{len(bases)} slices"),
        ("weights kept at 0.6 and 0.4", sorted(w for w in weighted if w is not None) == [0.4, 0.6], f"{weighted}"),
        ("densities are legal", bool(listed) and legal, f"{density}"),
        ("density is a parameter, not a stray key", all("density" not in s for s in listed), ""),
        ("layer ranges lie within the models", inside, f"{ranges}"),
        ("answer.md lists the faults", says(workspace, ("base",), ("density",), ("layer",)), ""),
    ]


def does_not_match(workspace: Path) -> list[Check]:
    groups = (("hidden_size", "hidden size", "hidden"), ("64",), ("128",), ("vocab",), ("96",), ("160",))
    return [
        ("nothing was merged", not (workspace / "merged").exists(), ""),
        ("answer.md names the fields with both values", says(workspace, *groups), ""),
    ]


def adapter_space(workspace: Path) -> list[Check]:
    folder = workspace / "combined"
    if not (folder / "adapter_config.json").is_file():
        return [("combined/ is an adapter", False, "no adapter_config.json")]
    wanted = {n: 0.7 * d for n, d in deltas(workspace / "persona").items()}
    for name, delta in deltas(workspace / "tools").items():
        wanted[name] = wanted.get(name, 0) + 0.7 * delta
    found = deltas(folder)
    worst = max((error(found[n], d) for n, d in wanted.items()), default=1.0) if set(found) == set(wanted) else 1.0
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = {t.shape[0] for n, t in read_tensors(folder).items() if "lora_A" in n}
    base = str(config.get("base_model_name_or_path", "")).rstrip("/")
    return [
        ("no merged base was written", not any((workspace / n).exists() for n in ("merged", "combined/config.json")), ""),
        ("the rank is 8 + 16", ranks == {24}, f"{ranks}"),
        ("it is on the same base", base.endswith("base"), base),
        ("its delta is 0.7 times the sum", worst < TOLERANCE, f"relative error {worst:.4f}"),
    ]


def pick_up_the_job(workspace: Path) -> list[Check]:
    checks = complete_model(workspace)
    if not all(ok for _, ok, _ in checks):
        return checks
    base, code, chat, merged = (read_tensors(workspace / n) for n in ("base", "code", "chat", "merged"))
    half = {n: 0.5 * ((code[n] - v) + (chat[n] - v)) for n, v in base.items() if "norm" not in n}
    size = {n: float(np.linalg.norm(base[n])) for n in half}
    off = max(float(np.linalg.norm(merged[n] - base[n] - d)) / size[n] for n, d in half.items())
    finished = bool(re.search(r"\b(is|are) (production[- ]ready|ready to (ship|use))", answer(workspace)))
    missing = (("evaluat", "measur"), ("base",), ("code",), ("chat",))
    return [
        *checks,
        ("merged is base + 0.5 × the sum of the deltas", off < 0.005, f"off by {off:.5f} of the weights"),
        ("answer.md says what must still be measured", says(workspace, *missing), ""),
        ("answer.md does not call it finished", not finished, ""),
    ]


def another_base(workspace: Path) -> list[Check]:
    return [
        ("nothing was merged", not (workspace / "merged").exists(), ""),
        ("answer.md names the adapter and its other base", says(workspace, ("tools",), ("other",), ("base",)), ""),
    ]


def blog_recipe(workspace: Path) -> list[Check]:
    content = recipe(workspace)
    parameters = [source.get("parameters") or {} for source in sources(content)]
    names = sorted(model_name(source).rstrip("/").split("/")[-1] for source in sources(content))
    shared = content.get("parameters") or {}
    faults = (("merge_method",), ("base_model",), ("parameters",), ("lambda",))
    return [
        (
            "task arithmetic of code and chat",
            (content.get("merge_method"), names) == ("task_arithmetic", ["chat", "code"]),
            f"{names}",
        ),
        ("base_model is named", str(content.get("base_model", "")).rstrip("/").endswith("base"), f"{content.get('base_model')}"),
        ("both at full weight", [p.get("weight") for p in parameters] == [1, 1], f"{parameters}"),
        ("scaled by 0.5", shared.get("lambda") == 0.5 and "scaling" not in shared, f"{shared}"),
        (
            "the dtype is one that mergekit knows",
            content.get("dtype") in ("bfloat16", "float32", "float16"),
            f"{content.get('dtype')}",
        ),
        ("no key of the post is left over", not {"method", "base"} & set(content), ""),
        ("answer.md lists the faults", says(workspace, *faults), ""),
    ]


def _shares(workspace: Path, name: str) -> dict[str, float]:
    """How far `name` moved from base/ along the changes of code/ and chat/; `rest` is what lies off that plane."""
    base, code, chat, found = (read_tensors(workspace / part) for part in ("base", "code", "chat", name))
    keys = [key for key in base if "norm" not in key]
    one, two, moved = (np.concatenate([(model[k] - base[k]).ravel() for k in keys]) for model in (code, chat, found))
    (a, b), *_ = np.linalg.lstsq(np.stack([one, two], axis=1), moved, rcond=None)
    return {"code": float(a), "chat": float(b), "rest": error(a * one + b * two, moved)}


def gibberish(workspace: Path) -> list[Check]:
    checks = complete_model(workspace, "fixed")
    told = says(workspace, ("base",), ("other",), ("wrong", "not theirs", "another", "not the"))
    if not all(holds for _, holds, _ in checks):
        return [*checks, ("answer.md names the wrong base", told, "")]
    shares = _shares(workspace, "fixed")
    both = all(0.2 < shares[name] < 1.1 for name in ("code", "chat"))
    return [
        *checks,
        ("fixed/ is base/ with both changes", both and shares["rest"] < 0.05, f"{shares}"),
        ("answer.md names the wrong base", told, ""),
    ]


def own_data(workspace: Path) -> list[Check]:
    file = workspace / "prompts.jsonl"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError):
        return [("prompts.jsonl holds one JSON object a line", False, "")]
    wanted = {row.split(",")[0]: row.split(",")[1:] for row in (workspace / "tickets.csv").read_text().splitlines()[1:]}
    found = {str(line.get("prompt")): line for line in lines if isinstance(line, dict)}
    right = all(str(found.get(question, {}).get("expected")) == answered for question, (answered, _) in wanted.items())
    kinds = all(found.get(question, {}).get("match", "exact") == kind for question, (_, kind) in wanted.items())
    few = (("prompts.jsonl",), ("evaluate",), ("12", "twelve"), ("interval", "too few", "cannot tell", "not enough", "undecided"))
    return [
        (
            "every question is there once, and nothing else",
            set(found) == set(wanted) and len(lines) == len(wanted),
            f"{len(lines)}",
        ),
        ("with the answer that is expected", right, ""),
        ("compared as the table says", kinds, ""),
        ("answer.md measures with it, and says what twelve prompts cannot decide", says(workspace, *few), ""),
    ]


def favour_one(workspace: Path) -> list[Check]:
    checks = complete_model(workspace)
    if not all(holds for _, holds, _ in checks):
        return checks
    shares = _shares(workspace, "merged")
    return [
        *checks,
        ("code stays whole", 0.95 < shares["code"] < 1.1, f"{shares}"),
        ("chat is reduced and still there", 0.2 < shares["chat"] < 0.9, f"{shares}"),
        ("answer.md says what chat pays", says(workspace, ("code",), ("chat",), ("less", "lose", "reduced", "part")), ""),
    ]


def frankenmerge(workspace: Path) -> list[Check]:
    folder = workspace / "deep"
    if not (folder / "config.json").is_file():
        return [("deep/ is a model", False, "no config.json")]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors, base = read_tensors(folder), read_tensors(workspace / "base")
    layers = sorted({int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")})
    key = "model.layers.{}.mlp.up_proj.weight"
    known = [base[key.format(i)] for i in range(LAYERS)]
    whole = layers == list(range(6)) and all(any(error(tensors[key.format(i)], k) < 0.01 for k in known) for i in layers)
    honest = (("train", "heal"), ("not", "worse", "no gain", "unmeasured"), ("measure", "evaluat", "perplexity"))
    return [
        (
            "deep/ has six layers, config and weights alike",
            config.get("num_hidden_layers") == 6 and layers == list(range(6)),
            f"{layers}",
        ),
        ("each layer is one of base/", whole, ""),
        ("answer.md says what it is worth: nothing before more training and a measurement", says(workspace, *honest), ""),
    ]


TASKS: dict[str, Callable[[Path], list[Check]]] = {
    "two-adapters": two_adapters,
    "retrain-instead": retrain_instead,
    "broken-recipe": broken_recipe,
    "does-not-match": does_not_match,
    "adapter-space": adapter_space,
    "pick-up-the-job": pick_up_the_job,
    "another-base": another_base,
    "blog-recipe": blog_recipe,
    "gibberish": gibberish,
    "own-data": own_data,
    "favour-one": favour_one,
    "frankenmerge": frankenmerge,
}


def main(arguments: list[str]) -> int:
    making = "--prepare" in arguments
    words = [word for word in arguments if not word.startswith("--")]
    if len(words) != 2 or words[0] not in TASKS:
        print(f"{__doc__}\ntasks: {', '.join(TASKS)}", file=sys.stderr)
        return 2
    task, workspace = words[0], Path(words[1])
    if making:
        prepare(task, workspace)
        return 0
    checks = TASKS[task](workspace)
    for name, holds, detail in checks:
        print(f"{'ok  ' if holds else 'FAIL'} {name}{f'  ({detail})' if detail else ''}")
    return 0 if all(holds for _, holds, _ in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
