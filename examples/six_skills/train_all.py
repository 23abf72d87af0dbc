"""Trains the six adapters one after the other; those that are there stay.

    python examples/six_skills/train_all.py BASE [OUT] [--only NAME]

OUT (default: this folder) gets a folder an adapter, with its curve (loss.csv) and settings (training.json). `home` is fine-tuned
in full in OUT/home-full, which is 0.5 GB, and written as an adapter of rank 20 by `model-merging extract`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAMES = ("terse", "verbose", "lights", "refuse", "notes", "home")
FULL = "home"
RANK = 20
"""Of the adapter that the full fine-tune is written as."""


def run(*command: object) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def train(base: Path, name: str, out: Path) -> None:
    if (out / name / "training.json").is_file():
        return
    settings = HERE / "settings" / f"{name}.json"
    if name != FULL:
        run(sys.executable, HERE.parent / "train_adapter" / "train_adapter.py", base, settings, out / name)
        return
    whole = out / f"{name}-full"
    if not (whole / "training.json").is_file():
        run(sys.executable, HERE / "train_full.py", base, settings, whole)
    tool = Path(sys.executable).with_name("model-merging")
    run(tool, "extract", base, whole, out / name, "--rank", RANK, "--overwrite")
    config = out / name / "adapter_config.json"
    written = json.loads(config.read_text(encoding="utf-8"))
    written["base_model_name_or_path"] = json.loads(settings.read_text(encoding="utf-8"))["base"]
    config.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in ("loss.csv", "training.json"):
        shutil.copyfile(whole / file, out / name / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=HERE)
    parser.add_argument("--only", action="append", choices=NAMES)
    given = parser.parse_args()
    for name in given.only or NAMES:
        train(given.base.resolve(), name, given.out.resolve())


if __name__ == "__main__":
    main()
