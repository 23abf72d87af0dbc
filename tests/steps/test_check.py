"""`model-merging check`: the shipped knowledge is sound, every kind of mistake is found, and a student needs no Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcp_server import catalog
from mcp_server.schemas.validation import CheckFinding
from mcp_server.steps.check import check_catalogue, differences
from mcp_server.system import paths

ROOT = paths.PACKAGE.parent
SKILL = (ROOT / ".claude/skills/extend-model-merging/SKILL.md").read_text(encoding="utf-8")


def block(language: str, heading: str) -> str:
    """The first code block after a heading of the student's guide: what the guide shows is what is tested."""
    found = re.search(rf"```{language}\n(.*?)```", SKILL[SKILL.index(heading) :], flags=re.DOTALL)
    assert found, heading
    return found.group(1)


STRATEGY = block("yaml", "### 1. The rules file")
TEMPLATE = block("jinja", "### 2. The template")
RULE = block("yaml", "## Change a decision")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a student edits, with the golden files beside it."""
    shutil.copytree(paths.RULES, tmp_path / "rules")
    shutil.copytree(paths.templates_dir(), tmp_path / "templates")
    shutil.copytree(ROOT / "tests" / "golden", tmp_path / "tests" / "golden")
    return tmp_path


def findings(tree: Path) -> list[CheckFinding]:
    return check_catalogue(rules=tree / "rules", templates=tree / "templates").findings


def only(tree: Path) -> CheckFinding:
    found = findings(tree)
    assert len(found) == 1, found
    return found[0]


def test_the_shipped_catalogue_is_sound() -> None:
    result = check_catalogue()
    assert (result.ok, result.findings, result.strategies) == (True, [], 23)


def test_a_student_is_led_from_a_rules_file_to_a_strategy_step_by_step(tree: Path) -> None:
    (tree / "rules/strategies/gentle_ties.yaml").write_text(STRATEGY, encoding="utf-8")
    steps = findings(tree)
    assert [(f.where, f.message) for f in steps] == [
        ("rules/strategies/gentle_ties.yaml", "it has no template"),
        ("rules/strategies/gentle_ties.yaml", "it has no golden file"),
    ]
    assert "write templates/gentle_ties.yaml.j2" in steps[0].fix
    (tree / "templates/gentle_ties.yaml.j2").write_text(TEMPLATE, encoding="utf-8")
    assert "docgen golden gentle_ties > tests/golden/gentle_ties.yml" in only(tree).fix


def test_the_rule_of_the_students_guide_is_a_sound_rule(tree: Path) -> None:
    (tree / "rules/strategies/gentle_ties.yaml").write_text(STRATEGY, encoding="utf-8")
    path = tree / "rules/decision.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("- id: asked_for\n", f"{RULE}- id: asked_for\n"), encoding="utf-8")
    assert [f.message for f in findings(tree)] == ["it has no template", "it has no golden file"]


def test_a_strategy_added_to_a_copy_of_the_tree_works_without_a_line_of_python(tmp_path: Path) -> None:
    for name in ("mcp_server", "templates"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests/golden", tmp_path / "tests/golden")
    (tmp_path / "mcp_server/rules/strategies/gentle_ties.yaml").write_text(STRATEGY, encoding="utf-8")
    (tmp_path / "templates/gentle_ties.yaml.j2").write_text(TEMPLATE, encoding="utf-8")

    code = """
import json
from pathlib import Path
from mcp_server import docgen
from mcp_server.steps.check import check_catalogue
from mcp_server.steps.recommend import read_scenario, recommend
from mcp_server.steps.render import render
Path("tests/golden/gentle_ties.yml").write_text(docgen.golden("gentle_ties"), encoding="utf-8")
sources = [{"name": "a", "ref": "/a", "kind": "full"}, {"name": "b", "ref": "/b", "kind": "full"}]
plan = recommend(read_scenario({"sources": sources, "base_model": "/m", "strategy": "gentle_ties"}))
print(json.dumps([check_catalogue().model_dump(), plan.strategy.model_dump(), render(plan).recipe]))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "MODEL_MERGING_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    check, strategy, recipe = json.loads(done.stdout)
    assert (check["ok"], check["findings"], check["strategies"]) == (True, [], 24)
    assert strategy == {"id": "gentle_ties", "parameters": {"density": 0.8, "lambda": 0.5}}
    assert yaml.safe_load(recipe) == {
        "merge_method": "ties",
        "base_model": "/m",
        "models": [{"model": ref, "parameters": {"weight": 0.5, "density": 0.8}} for ref in ("/a", "/b")],
        "parameters": {"lambda": 0.5},
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize(
    ("file", "old", "new", "where", "message"),
    [
        ("rules/strategies/ties.yaml", "idea:", "ideea:", "rules/strategies/ties.yaml", "unknown field 'ideea'"),
        ("templates/ties.yaml.j2", "merge_method: ties", "merge_method: tise", "templates/ties.yaml.j2", "the plan means 'ties'"),
        ("templates/ties.yaml.j2", "{{ base | yaml }}", "{{ base }}", "templates/ties.yaml.j2", "is printed raw"),
        (
            "templates/ties.yaml.j2",
            "{{ base | yaml }}",
            "{{ bsae | yaml }}",
            "templates/ties.yaml.j2",
            "(line 3): 'bsae' is undefined",
        ),
        ("templates/ties.yaml.j2", "models:", "model:", "templates/ties.yaml.j2", "the plan means"),
        ("templates/ties.yaml.j2", "# TIES", "# Ties", "tests/golden/ties.yml", "the template renders something else now"),
        ("tests/golden/ties.yml", "0.39", "0.4", "tests/golden/ties.yml", "the template renders something else now"),
        ("rules/decision.yaml", "suite: refusals", "suite: refusal", "rules/decision.yaml", "Did you mean 'refusals'"),
        (
            "rules/decision.yaml",
            "- {signal: worst_pair, op: known}",
            "- {signal: base_names, op: known}",
            "rules/decision.yaml",
            "{worst_pair}",
        ),
    ],
)
def test_a_mistake_is_found_where_it_is(tree: Path, file: str, old: str, new: str, where: str, message: str) -> None:
    path = tree / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert any(f.where == where and message in f.message and f.fix for f in findings(tree)), findings(tree)


def test_a_template_without_a_strategy_is_named_with_what_was_probably_meant(tree: Path) -> None:
    (tree / "templates/ties.yaml.j2").rename(tree / "templates/tise.yaml.j2")
    messages = [f.message for f in findings(tree)]
    assert "there is no strategy 'tise' for this template. Did you mean 'ties'?" in messages
    assert "it has no template" in messages


def test_a_table_that_may_not_decide_is_refused(tree: Path) -> None:
    path = tree / "rules/decision.yaml"
    text = path.read_text(encoding="utf-8")
    always = "- id: default_ties\n  stage: strategy\n"
    path.write_text(text.replace(always, always + "  when: [{signal: kind, op: known}]\n"), encoding="utf-8")
    assert "the table may not decide" in only(tree).message


def test_a_signal_that_nobody_reads_is_a_finding(tree: Path) -> None:
    path = tree / "rules/decision.yaml"
    text = path.read_text(encoding="utf-8")
    begin = text.index("- id: pairs_not_described")
    path.write_text(text[:begin] + text[text.index("- id: gains_shrink") :], encoding="utf-8")
    assert only(tree).message == "no rule and no question reads the signal 'unlisted_pairs'"


def registry() -> dict[str, Any]:
    """What mergekit 0.1.5 says, as the catalogue tells it; the slow test below holds that against mergekit itself."""
    methods = {}
    for strategy in catalog.load().strategies.values():
        if strategy.runner != "mergekit-yaml" or strategy.method:
            continue
        kind, accepts, beside = strategy.inputs.base, strategy.inputs.accepts, strategy.inputs.accepts_beside_base
        methods[strategy.id] = {
            "base": {"one_of_the_sources": "required"}.get(kind, kind),
            "min_inputs": accepts[0],
            "max_inputs": accepts[1],
            "min_non_base": beside[0] or None,
            "max_non_base": beside[1],
            "parameters": [p.model_dump(include={"name", "scope", "type", "required", "default"}) for p in strategy.parameters],
        }
    moe = [p.model_dump(include={"name", "scope", "type", "required", "default"}) for p in catalog.strategy("moe").parameters]
    return {"mergekit": "0.1.5", "methods": methods, "moe": moe}


def test_a_registry_that_agrees_gives_no_finding() -> None:
    assert differences(catalog.load().strategies, registry()) == []


def _new_method(r: dict[str, Any]) -> None:
    r["methods"]["brand_new"] = r["methods"]["linear"]


def _method_gone(r: dict[str, Any]) -> None:
    del r["methods"]["sce"]


def _parameter_renamed(r: dict[str, Any]) -> None:
    r["methods"]["ties"]["parameters"][1]["name"] = "keep"


def _default_changed(r: dict[str, Any]) -> None:
    parameters = r["methods"]["ties"]["parameters"]
    next(p for p in parameters if p["name"] == "normalize")["default"] = False


def _base_changed(r: dict[str, Any]) -> None:
    r["methods"]["linear"]["base"] = "forbidden"


def _more_inputs(r: dict[str, Any]) -> None:
    r["methods"]["model_stock"]["min_inputs"] = 4


def _fewer_inputs(r: dict[str, Any]) -> None:
    r["methods"]["karcher"]["max_inputs"] = 2


def _moe_changed(r: dict[str, Any]) -> None:
    r["moe"][0]["default"] = "random"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (_new_method, ["mergekit 0.1.5 has the method 'brand_new', the catalogue does not"]),
        (_method_gone, ["mergekit 0.1.5 has no method 'sce'."]),
        (
            _parameter_renamed,
            ["mergekit has no parameter 'density'", "mergekit has the parameter 'keep', the catalogue does not"],
        ),
        (_default_changed, ["normalize.default is True here, False in mergekit"]),
        (_base_changed, ["inputs.base is ignored here, forbidden in mergekit"]),
        (
            _more_inputs,
            ["inputs.accepts is [3, None] here, [4, None] in mergekit", "inputs.min is 2 here, mergekit wants 3"],
        ),
        (
            _fewer_inputs,
            ["inputs.accepts is [1, None] here, [1, 2] in mergekit", "inputs.max is None here, 2 in mergekit"],
        ),
        (_moe_changed, ["gate_mode.default is 'hidden' here, 'random' in mergekit"]),
    ],
)
def test_each_difference_from_the_engine_is_one_finding(change: Any, messages: list[str]) -> None:
    told = registry()
    change(told)
    assert [finding.message for finding in differences(catalog.load().strategies, told)] == messages


def test_a_new_release_asks_for_every_strategy_to_be_checked_again() -> None:
    found = differences(catalog.load().strategies, {**registry(), "mergekit": "0.2.0"})
    assert len(found) == len(catalog.load().strategies)
    assert "mergekit 0.2.0 is installed" in found[0].message


@pytest.mark.slow
def test_the_catalogue_agrees_with_the_installed_mergekit() -> None:
    from mcp_server.jobs.ask import ask

    result = check_catalogue(registry=ask("mergekit_registry", {}))
    assert (result.findings, result.mergekit) == ([], "0.1.5")
