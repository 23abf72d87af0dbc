"""What each part of the training is worth: variants and seeds, each trained, merged by the recommended recipe alone, and scored.

    python examples/one_prompt/experiment.py BASE OUT             every variant, seeds 1 to 3, dev split
    python examples/one_prompt/experiment.py BASE OUT --variant full --seed 1 --split test
    python examples/one_prompt/experiment.py BASE OUT --table     what is there so far, as a table

Resumable: what OUT already holds is not made again. A variant leaves one part out; `joint` is the yardstick, one adapter trained
on both sets of examples. Each pair is merged by the recipe that `recommend` begins with and `render` writes; nothing is tuned.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from make_rows import HERE, earlier
from score_modes import load, measure

sys.path += [str(HERE.parent / "train_adapter"), str(HERE.parents[1])]
import torch
from merging import merge_into
from packing import Texts
from transformers import AutoTokenizer

from mcp_server.schemas.scenario import Scenario
from mcp_server.steps.recommend import plan_for
from mcp_server.steps.recommend.look import look
from mcp_server.steps.render import render

NAMES = ("tools", "persona")
OWN_PROMPT = {"tools": "tools", "persona": "persona"}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "without replay": {"replay_batch": 0},
    "without KL": {"kl": False},
    "without the shared prompt": {"own_prompt": True},
    "without scale jitter": {"scale_jitter": [1.0, 1.0]},
    "joint": {},
}
PARTS = {"tools": ["tools", "text"], "persona": ["persona", "text"]}
ALL = ["tools", "persona", "mode", "text"]

Scores = dict[str, dict[str, Any]]


def settings(name: str, variant: str, seed: int, steps: int | None) -> dict[str, Any]:
    """A variant's settings for one adapter, with paths that hold from anywhere."""
    home = HERE / "settings"
    found: dict[str, Any] = json.loads((home / f"{name}.json").read_text(encoding="utf-8"))
    change = dict(VARIANTS[variant])
    if change.pop("own_prompt", False):
        found |= {"replay_system": found["system"], "system": earlier(OWN_PROMPT[name])["system"]}
    found |= change | {"seed": seed} | ({"steps": steps} if steps else {})
    for key in ("data", "replay"):
        found[key] = [str((home / file).resolve()) for file in found[key]]
    if found["start_from"]:
        found["start_from"] = str((home / found["start_from"]).resolve())
    return found


def run(*command: object) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def trained(given: argparse.Namespace, name: str, folder: Path, wanted: dict[str, Any]) -> None:
    """Train into folder/name unless it has been; other settings than those it was trained with are an error, not a second run."""
    record = folder / name / "training.json"
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        if any(before.get(key) != value for key, value in wanted.items()):
            raise SystemExit(f"{folder / name} was trained with other settings; give another OUT, or remove it")
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
    script = HERE.parent / "train_adapter" / "train_adapter.py"
    run(sys.executable, script, given.base, file, folder / name, "--threads", given.threads, "--device", given.device)


def recommended(base: Path, folder: Path) -> str:
    """The recipe that `recommend` begins with for the pair in `folder`, as `render` writes it."""
    scenario = yaml.safe_load((HERE / "scenario.yaml").read_text(encoding="utf-8"))
    scenario["base_model"] = str(base)
    for source in scenario["sources"]:
        source["ref"] = str(folder / source["name"])
    recipe = render(plan_for(look(Scenario(**scenario)))).recipe
    (folder / "recipe.yml").write_text(recipe, encoding="utf-8")
    return recipe


def merged(base: Path, folder: Path, device: str, dtype: str) -> Any:
    """The pair in `folder`, merged in memory by what `recommend` says first."""
    model = load(base, "base")
    merge_into(model, recommended(base, folder))
    return model.to(device, getattr(torch, dtype))


def scored(given: argparse.Namespace, models: Iterable[tuple[str, Callable[[], Any], list[str]]], file: Path) -> None:
    """Add each model's scores to `file`, one after the other; those that are there stay."""
    found: Scores = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    texts = Texts(AutoTokenizer.from_pretrained(given.base), given.device)
    for name, made, parts in models:
        if name not in found:
            found[name] = measure(made(), texts, parts, given.split, given.limit, 0)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def line(scores: Scores, base: dict[str, Any]) -> list[float]:
    """Tools expert, persona expert, then of the merge (or the joint adapter): tools, share of the persona's gain, right mode,
    perplexity over the best source's (over the base's where there are none)."""
    whole = scores["merged"]
    tools, persona = (scores.get(name, whole) for name in NAMES)
    gain = (whole["persona"] - base["persona"]) / max(persona["persona"] - base["persona"], 1e-9)
    best = min((scores[name]["perplexity"] for name in NAMES if name in scores), default=base["perplexity"])
    ratio = whole["perplexity"] / best
    return [tools["tools"], persona["persona"], whole["tools"], gain, whole["right_mode"], ratio]


def table(out: Path, split: str) -> str:
    """Mean over the seeds and, behind it, the worst of them; variants that are not measured are left out."""
    base: Scores = json.loads((out / f"base-{split}.json").read_text(encoding="utf-8"))
    rows = [
        "| variant (seeds) | tools | persona | merged: tools | persona's gain | right mode | perplexity ÷ best source |",
        "|---|" + "---|" * 6,
    ]
    for variant in VARIANTS:
        files = sorted(out.glob(f"{variant.replace(' ', '-')}-*/scores-{split}.json"))
        every = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        lines = [line(scores, base["base"]) for scores in every if "merged" in scores]
        if lines:
            columns = list(zip(*lines, strict=True))
            worst = [min(column) for column in columns[:-1]] + [max(columns[-1])]
            cells = [f"{sum(column) / len(column):.3f} ({bad:.3f})" for column, bad in zip(columns, worst, strict=True)]
            rows.append(f"| {variant} ({len(lines)}) | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", action="append", choices=list(VARIANTS))
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--split", default="dev", choices=("dev", "test"))
    parser.add_argument("--steps", type=int, help="fewer steps than the settings say, for a first look")
    parser.add_argument("--limit", type=int, help="at most so many documents of each suite")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="run nothing; print what is there")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="in which to score: bfloat16 where the processor multiplies it")
    given = parser.parse_args()
    given.base, out = given.base.resolve(), given.out.resolve()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    torch.set_num_threads(given.threads)
    if not given.table:
        base = partial(load, given.base, "base", given.device, given.dtype)
        scored(given, [("base", base, ALL)], out / f"base-{given.split}.json")
        for seed in given.seed or (1, 2, 3):
            for variant in given.variant or VARIANTS:
                folder = out / f"{variant.replace(' ', '-')}-{seed}"
                names = ("joint",) if variant == "joint" else NAMES
                for name in names:
                    trained(given, name, folder, settings(name, variant, seed, given.steps))
                models: list[tuple[str, Callable[[], Any], list[str]]] = [
                    (name, partial(load, given.base, str(folder / name), given.device, given.dtype), PARTS[name])
                    for name in names
                    if name in PARTS
                ]
                if variant == "joint":
                    whole = partial(load, given.base, str(folder / "joint"), given.device, given.dtype)
                else:
                    whole = partial(merged, given.base, folder, given.device, given.dtype)
                scored(given, [*models, ("merged", whole, ALL)], folder / f"scores-{given.split}.json")
    print(table(out, given.split))


if __name__ == "__main__":
    main()
