"""What every check stands on: the clients' folder, the environment they run in, the sources they merge, the form of an
outcome.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CLIENTS = ROOT / ".clients"
SCRATCH = CLIENTS / "scratch"
MADE = SCRATCH / "made"
"""Where clients let merges be written: in reach of the server, which starts in the clone, and outside its store."""
LAUNCHER = ROOT / "scripts" / "launch-server"
DEMO_BASE = "demo:smollm2-135m-instruct"
EXAMPLE = ROOT / "examples" / "taskmaster"


class Failed(Exception):
    """A check that does not hold; the text says what was seen."""


@dataclass(frozen=True)
class Outcome:
    client: str
    check: str
    passed: bool
    detail: str
    seconds: float


Check = tuple[str, str, Callable[[], str]]
"""Client, what is checked, and the function that returns a short detail or raises `Failed`."""


def require(holds: bool, seen: object) -> None:
    if not holds:
        raise Failed(str(seen)[-1500:])


def environment(**more: str) -> dict[str, str]:
    """A user's environment with its own home and store, and the pinned clients first on PATH."""
    home = SCRATCH / "home"
    home.mkdir(parents=True, exist_ok=True)
    path = f"{CLIENTS / 'node_modules' / '.bin'}{os.pathsep}{os.environ['PATH']}"
    quiet = {
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "NO_COLOR": "1",
        "MCP_TIMEOUT": "120000",
    }
    return {"HOME": str(home), "PATH": path, "MODEL_MERGING_HOME": str(SCRATCH / "store"), "LANG": "C.UTF-8", **quiet, **more}


def run(*command: str | Path, cwd: Path = ROOT, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def parsed(output: str) -> Any:
    """The JSON in a client's output, whatever it prints around it."""
    for line in [output, *reversed(output.splitlines())]:
        try:
            return json.loads(line)
        except ValueError:
            continue
    raise Failed(f"no JSON in: {output}")


def install() -> None:
    """Pinned clients under .clients/; does nothing when they are there already."""
    wanted = (HERE / "package.json").read_text(encoding="utf-8") + (HERE / "requirements.txt").read_text(encoding="utf-8")
    stamp = CLIENTS / "installed"
    if not (stamp.is_file() and stamp.read_text(encoding="utf-8") == wanted):
        if shutil.which("npm") is None:
            raise SystemExit("npm is needed to install the clients; install Node.js 20 or newer")
        CLIENTS.mkdir(exist_ok=True)
        print("installing the clients (once; about two minutes) ...", flush=True)
        shutil.copy(HERE / "package.json", CLIENTS / "package.json")
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error"], cwd=CLIENTS, check=True)
        venv.create(CLIENTS / "py", with_pip=True, clear=True)
        pip = [CLIENTS / "py" / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", HERE / "requirements.txt"], check=True)
        stamp.write_text(wanted, encoding="utf-8")
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, CLIENTS / script.name)
    shutil.rmtree(SCRATCH, ignore_errors=True)
    MADE.mkdir(parents=True)
    link_demo_base()


def link_demo_base() -> None:
    """The demo's base model in the scratch store: hard links to the one that the demo made, else made now."""
    from mcp_server.system.paths import demo_base_dir

    target = SCRATCH / "store" / "cache" / "base" / demo_base_dir().name
    target.parent.mkdir(parents=True)
    if not (demo_base_dir() / "config.json").is_file():
        print("making the demo's base model ...", flush=True)
        subprocess.run([sys.executable, "-m", "mcp_server.cli", "fetch", DEMO_BASE, "-q"], cwd=ROOT, check=True)
    try:
        shutil.copytree(demo_base_dir(), target, copy_function=os.link)
    except OSError:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(demo_base_dir(), target)


def recipe() -> str:
    """A quick recipe of the demo's two adapters."""
    parts = [
        f"  - model: {DEMO_BASE}+{EXAMPLE / name}\n    parameters: {{weight: {w}}}\n"
        for name, w in (("persona", 0.5), ("tools", 0.5))
    ]
    return f"merge_method: task_arithmetic\nbase_model: {DEMO_BASE}\nmodels:\n{''.join(parts)}dtype: bfloat16\n"
