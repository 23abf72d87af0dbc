"""Trains one adapter on all the examples of several skills: what a merge of their adapters is measured against.

    python examples/six_skills/train_joint.py BASE OUT --group "terse notes"

OUT/terse-notes gets the adapter. Rank 16, 40 steps a skill, no replay: the skills' own examples are all that it learns.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train_adapter"))
from train_adapter import train

HERE = Path(__file__).resolve().parent
STEPS = 40
SETTINGS = {"base": "HuggingFaceTB/SmolLM2-135M-Instruct", "rank": 16, "alpha": 32, "lr": 8e-4, "batch": 8, "replay_batch": 0,
            "scale_jitter": [1.0, 1.0], "held_out": 16, "check_every": 1000, "seed": 1}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", action="append", required=True, help="skills with spaces between; repeat it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    for group in given.group:
        names = group.split()
        folder = given.out / "-".join(names)
        if (folder / "training.json").is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        data = [str((HERE / "data" / f"{name}.jsonl").resolve()) for name in names]
        file = folder / "settings.json"
        file.write_text(json.dumps(SETTINGS | {"data": data, "steps": STEPS * len(names)}), encoding="utf-8")
        train(given.base, file, folder, given.threads, given.device)


if __name__ == "__main__":
    main()
