"""The wheel, installed on its own: templates, rules, suites, skill and example come with it, and the path runs from another
folder.

The dependencies are lent by this clone's environment (they are gigabytes); a quick test elsewhere checks that every import
is declared.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.clients.ground import ROOT, SCRATCH, Check, parsed, require, run

IMPORTS = """
import json, sys
import mcp_server
from mcp_server import catalog
from mcp_server.system import paths
from mcp_server.steps.render import render_strategy
print(json.dumps({
    "package": mcp_server.__file__,
    "strategies": len(catalog.load().strategies),
    "recipe": render_strategy("ties").recipe.count("model:"),
    "skill": (paths.shipped("skills") / "model-merging" / "SKILL.md").is_file(),
    "example": (paths.shipped("examples/one_prompt") / "scenario.yaml").is_file(),
    "suites": sorted(p.name for p in paths.SUITES.iterdir() if p.is_dir())[:20],
}))
"""


def checks() -> list[Check]:
    return [("wheel", "built, installed on its own, used from another folder", smoke)]


def smoke() -> str:
    folder = SCRATCH / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--disable-pip-version-check", "-w", folder, ROOT]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    require(built.returncode == 0, built.stderr)
    wheel = next(folder.glob("*.whl"))
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    installed = run(python, "-m", "pip", "install", "--no-deps", "--quiet", wheel, cwd=folder)
    require(installed.returncode == 0, installed.stderr)
    lent = next((ROOT / ".venv" / "lib").glob("python3*/site-packages"))
    own = next((folder / "env" / "lib").glob("python3*/site-packages"))
    (own / "lent.pth").write_text(f"{lent}\n", encoding="utf-8")
    seen = parsed(run(python, "-c", IMPORTS, cwd=folder).stdout)
    require(str(own) in seen["package"], seen)
    require(seen["strategies"] >= 8 and seen["recipe"] >= 2 and seen["skill"] and seen["example"], seen)
    command = folder / "env" / "bin" / "model-merging"
    example = Path(seen["package"]).parent / "_data" / "examples" / "one_prompt"
    plan = folder / "plan.yaml"
    for arguments in (
        ("inspect", example / "persona", example / "tools", "--base", "demo:smollm2-135m-instruct", "--json"),
        ("recommend", example / "scenario.yaml", "-o", plan, "--json"),
        ("render", plan, "-o", folder / "recipe.yml", "--json"),
        ("validate", folder / "recipe.yml", "--json"),
        ("estimate", folder / "recipe.yml", "--json"),
        ("merge", folder / "recipe.yml", folder / "merged", "--ram-gib", "4", "--json"),
    ):
        ended = run(command, *arguments, cwd=folder, timeout=300)
        require(ended.returncode == 0, f"{arguments[0]}: {ended.stdout[-800:]}{ended.stderr[-800:]}")
    require((folder / "merged" / "config.json").is_file(), "no merged model")
    listed = run(folder / "env" / "bin" / "model-merging-mcp", "--help", cwd=folder)
    require(listed.returncode == 0, listed.stderr)
    return f"{wheel.stat().st_size / 1e6:.1f} MB, demo adapters merged from the wheel's own example"
