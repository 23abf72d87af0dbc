#!/usr/bin/env python3
"""The demo's merge, by engine: wall time and peak memory of the same recipe, and the steps around it.

usage: demo.py [--quick]        --quick: the streaming engine alone
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def run(engine: str, out: Path) -> dict:
    command = [sys.executable, "-m", "mcp_server.cli", "demo", str(out), "--engine", engine, "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    print("| engine | merge | peak memory | verify | evaluate | whole demo |\n|---|---|---|---|---|---|")
    for engine in ["stream"] if args.quick else ["stream", "mergekit"]:
        with tempfile.TemporaryDirectory() as folder:
            demo = run(engine, Path(folder) / "out")
        seconds = {step["name"]: step["seconds"] for step in demo["steps"]}
        peak = (demo["merge"]["peak_anon_bytes"] or 0) / 1e6
        steps = " | ".join(f"{seconds[name]:.1f} s" for name in ("verify", "evaluate"))
        print(f"| {engine} | {seconds['merge']:.1f} s | {peak:.0f} MB | {steps} | {demo['seconds']:.0f} s |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
