"""Every rendered recipe is accepted by mergekit's own planner and runs, on tiny models, in one process for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcp_server import catalog
from mcp_server.steps.recommend import read_scenario, recommend
from mcp_server.steps.render import render

pytestmark = pytest.mark.slow

STRATEGIES = sorted(catalog.load().strategies)
SCRIPT = Path(__file__).parent / "run_recipes.py"
EXTRA = {
    "gradient": ("ties", ["full"], {"sources.persona.density": "[0.2, 0.9]"}),
    "filters": ("task_arithmetic", ["full"], {"sources.tools.weight": "[{filter: self_attn, value: 0.3}, {value: 0.8}]"}),
    "tokenizer_union": ("linear", ["full"], {"tokenizer": "union"}),
    "float32": ("linear", ["full"], {"dtype": "float32"}),
    "adapters": ("ties", ["lora"], {}),
    "adapters_slerp": ("slerp", ["lora"], {}),
    "adapters_stacked": ("passthrough", ["lora"], {}),
    "no_base": ("linear", ["full", "none"], {}),
    "nuslerp_no_base": ("nuslerp", ["full", "none"], {}),
    "three_sources": ("model_stock", ["full", "three"], {}),
    "fold_one": ("task_arithmetic", ["one"], {}),
    "base_and_one": ("slerp", ["one"], {}),
}


def rendered(models: Path, strategy: str, options: list[str], overrides: dict[str, str]) -> str:
    names = ["persona", "tools", "third"][: 1 if "one" in options else 3 if "three" in options else 2]
    lora = "lora" in options or "one" in options
    sources = [
        {
            "name": name,
            "ref": str(models / (name if lora else f"{name}_full")),
            "kind": "lora" if lora else "full",
            "capability": {"persona": "casual voice", "tools": "strict JSON", "third": "list task"}[name],
            "training_examples": 100 * number,
        }
        for number, name in enumerate(names, 1)
    ]
    base = "none" if "none" in options else str(models / "base")
    plan = recommend(read_scenario({"sources": sources, "base_model": base, "layers": 4}))
    ends = {"parameters.ends": "1"} if strategy == "keep_ends" else {}
    return render(plan, {"strategy": strategy, **ends, **overrides}).recipe


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("recipes")
    models = folder / "models"
    cases = {name: (name, ["full"], {}) for name in STRATEGIES} | EXTRA
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # The models first: rendering looks at what is on disk.
    subprocess.run([sys.executable, str(SCRIPT), str(folder), "--models-only"], env=environment, check=True, capture_output=True)
    recipes = {
        name: {"runner": catalog.strategy(strategy).runner, "text": rendered(models, strategy, options, overrides)}
        for name, (strategy, options, overrides) in cases.items()
    }
    (folder / "recipes.json").write_text(json.dumps(recipes), encoding="utf-8")
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], env=environment, check=True, capture_output=True)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", [*STRATEGIES, *EXTRA])
def test_a_rendered_recipe_plans_runs_and_loads(report: dict[str, Any], name: str) -> None:
    expected = {"layers": 4, "tensors": 4 * 9 + 3, "finite": True, "loads": "LlamaForCausalLM"}
    if name in ("passthrough", "adapters_stacked"):
        expected |= {"layers": 6, "tensors": 6 * 9 + 3}
    if name == "moe":
        # The same number by chance: in place of three feed-forward matrices a router and the experts' two stacked ones.
        expected |= {"loads": "MixtralForCausalLM"}
    assert report[name] == expected
