#!/usr/bin/env python3
"""Run every benchmark, one after the other, and print their tables.

usage: run.py [--quick] [NAME...]        names: server, engine, estimate, demo

Numbers hold for this machine and this hour; compare ratios within one run. `--quick` leaves out the large checkpoints.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = {
    "server": HERE / "server" / "run.py",
    "demo": HERE / "demo.py",
    "engine": HERE / "engine" / "run.py",
    "estimate": HERE / "estimate" / "run.py",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.names) - SCRIPTS.keys():
        parser.error(f"unknown benchmark {sorted(unknown)}; there are {', '.join(SCRIPTS)}")
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"{today}, {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    failed = []
    for name in args.names or SCRIPTS:
        print(f"\n## {name}\n", flush=True)
        command = [sys.executable, str(SCRIPTS[name]), *(["--quick"] if args.quick else [])]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed or below target: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
