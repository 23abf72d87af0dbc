"""Real clients against the server: `make test-clients`. Exit 0 when every check passes.

usage: python -m tests.clients.run [--record] [WORD…]     WORD: only checks whose client or name contains one of the words

`--record` writes the outcome, with versions, into docs/clients.md. The clients are installed under .clients/ (git-ignored) on the
first run; everything they write stays there.
"""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version

from tests.clients import claude, conformance, inspector, sdks, wheel
from tests.clients.ground import CLIENTS, HERE, ROOT, Check, Failed, Outcome, install

PAGE = ROOT / "docs" / "clients.md"
KEPT = CLIENTS / "outcomes.json"
BEGIN, END = "<!-- outcome: written by scripts/test-clients --record -->", "<!-- end of outcome -->"


def main(arguments: list[str]) -> int:
    words = [word.lower() for word in arguments if not word.startswith("--")]
    install()
    everything = [*sdks.checks(), *inspector.checks(), *conformance.checks(), *wheel.checks(), *claude.checks()]
    wanted = [check for check in everything if not words or any(word in f"{check[0]} {check[1]}".lower() for word in words)]
    outcomes = [judged(check) for check in wanted]
    failed = [outcome for outcome in outcomes if not outcome.passed]
    print(f"\n{len(outcomes) - len(failed)} of {len(outcomes)} checks passed")
    if "--record" in arguments:
        record(outcomes, [(client, name) for client, name, _function in everything])
    return 1 if failed or not outcomes else 0


def judged(check: Check) -> Outcome:
    client, name, function = check
    begin = time.monotonic()
    try:
        passed, detail = True, function()
    except (Failed, subprocess.TimeoutExpired, KeyError, TypeError) as error:
        passed, detail = False, f"{type(error).__name__}: {error}"
    outcome = Outcome(client, name, passed, detail, time.monotonic() - begin)
    print(f"{'ok  ' if passed else 'FAIL'} {client}: {name} ({outcome.seconds:.0f} s)  {detail}", flush=True)
    return outcome


def versions() -> dict[str, str]:
    """Of every client that took part."""
    packages = json.loads((HERE / "package.json").read_text(encoding="utf-8"))["dependencies"]
    pinned = dict(line.split("==") for line in (HERE / "requirements.txt").read_text(encoding="utf-8").split())
    node = subprocess.run([CLIENTS / "node_modules" / ".bin" / "node", "--version"], capture_output=True, text=True, check=True)
    own = {"mcp (server SDK)": version("mcp"), "Python": platform.python_version(), "node": node.stdout.strip().lstrip("v")}
    return {**packages, **pinned, **own}


def record(outcomes: list[Outcome], order: list[tuple[str, str]]) -> None:
    """Replace the outcome block of the page. Rows of checks that were not run this time keep what they last showed."""
    known = {(o["client"], o["check"]): o for o in json.loads(KEPT.read_text(encoding="utf-8"))} if KEPT.is_file() else {}
    known |= {(o.client, o.check): {**vars(o), "day": datetime.date.today().isoformat()} for o in outcomes}
    rows = [known[key] for key in order if key in known]
    KEPT.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    lines = [
        BEGIN,
        "",
        "| client | version |",
        "| --- | --- |",
        *(f"| {name} | {number} |" for name, number in sorted(versions().items())),
    ]
    lines += ["", f"On {platform.system()}:", "", "| client | check | outcome | seen | day |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        detail = row["detail"].splitlines()[0].replace("|", "\\|")[:160] if row["detail"] else ""
        word = "passed" if row["passed"] else "FAILED"
        lines.append(f"| {row['client']} | {row['check']} | {word} | {detail} | {row['day']} |")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(before + "\n".join([*lines, "", END]) + after, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
