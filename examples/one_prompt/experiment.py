"""What each part of the training is worth: variants and seeds, each trained, merged by the recommended recipe alone, and scored.

    python examples/one_prompt/experiment.py BASE OUT             every variant, seeds 1 to 3, dev split
    python examples/one_prompt/experiment.py BASE OUT --variant full --seed 1 --split test
    python examples/one_prompt/experiment.py BASE OUT --table     what is there so far, as a table

Resumable: what OUT already holds is not made again. A variant leaves one part out; `joint` is the yardstick, one adapter trained
on both sets of examples. Each pair goes through `model-merging recommend`, `render`, `merge`; nothing is tuned.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from make_rows import HERE, earlier
from score_modes import load, measure

sys.path.insert(0, str(HERE.parent / "train_adapter"))
from packing import Texts
from transformers import AutoTokenizer

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
PARTS = {"tools": ["tools", "mode", "text"], "persona": ["persona", "mode", "text"]}
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


def trained(base: Path, name: str, folder: Path, wanted: dict[str, Any], threads: int) -> None:
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
    run(sys.executable, script, base, file, folder / name, "--threads", threads)


def merged(base: Path, folder: Path) -> Path:
    """The pair in `folder`, merged by what `recommend` says first."""
    out = folder / "merged"
    if (out / "config.json").is_file():
        return out
    scenario = yaml.safe_load((HERE / "scenario.yaml").read_text(encoding="utf-8"))
    scenario["base_model"] = str(base)
    for source in scenario["sources"]:
        source["ref"] = str(folder / source["name"])
        config = folder / source["name"] / "adapter_config.json"
        written = json.loads(config.read_text(encoding="utf-8")) | {"base_model_name_or_path": str(base)}
        config.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "scenario.yaml").write_text(yaml.safe_dump(scenario, sort_keys=False), encoding="utf-8")
    tool = Path(sys.executable).with_name("model-merging")
    run(tool, "recommend", folder / "scenario.yaml", "-o", folder / "plan.yaml")
    run(tool, "render", folder / "plan.yaml", "-o", folder / "recipe.yml")
    run(tool, "merge", folder / "recipe.yml", out)
    return out


def scored(base: Path, models: Iterable[tuple[str, str, list[str]]], file: Path, split: str, limit: int | None) -> None:
    """Add each model's scores to `file`, one after the other; those that are there stay."""
    found: Scores = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    texts = Texts(AutoTokenizer.from_pretrained(base))
    for name, path, parts in models:
        if name not in found:
            found[name] = measure(load(base, path), texts, parts, split, limit, 0)
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
    given = parser.parse_args()
    base, out = given.base.resolve(), given.out.resolve()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    if not given.table:
        scored(base, [("base", "base", ALL)], out / f"base-{given.split}.json", given.split, given.limit)
        for seed in given.seed or (1, 2, 3):
            for variant in given.variant or VARIANTS:
                folder = out / f"{variant.replace(' ', '-')}-{seed}"
                names = ("joint",) if variant == "joint" else NAMES
                for name in names:
                    trained(base, name, folder, settings(name, variant, seed, given.steps), given.threads)
                models = [(name, str(folder / name), PARTS[name]) for name in names if name in PARTS]
                whole = folder / "joint" if variant == "joint" else merged(base, folder)
                models.append(("merged", str(whole), ALL))
                scored(base, models, folder / f"scores-{given.split}.json", given.split, given.limit)
    print(table(out, given.split))


if __name__ == "__main__":
    main()
