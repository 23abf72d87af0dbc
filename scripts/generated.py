#!/usr/bin/env python3
"""Rewrite the generated blocks of the Markdown files from the rules, or check that they still match.

usage: generated.py [--check]

A generated block stands between cog markers in an HTML comment and says which rules file to edit. Prose around it is free.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("docs", "skills", "examples", ".claude/skills/extend-model-merging")
MARKER = "[[[" + "cog"


def files_with_blocks() -> list[str]:
    found = list(ROOT.glob("*.md")) + [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md")]
    return [str(path.relative_to(ROOT)) for path in sorted(found) if MARKER in path.read_text(encoding="utf-8")]


def main() -> int:
    mode = ["-P", *(["--check", "--diff"] if "--check" in sys.argv[1:] else ["-r"])]
    code = subprocess.run([sys.executable, "-m", "cogapp", *mode, *files_with_blocks()], cwd=ROOT, check=False).returncode
    if code and "--check" in mode:
        print("generated blocks differ from the rules; run: python scripts/generated.py", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
