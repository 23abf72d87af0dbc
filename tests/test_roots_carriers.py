"""Whatever carries a name (references, recipes, plans, grids, records, adapters' configs, data, links) leads nowhere outside.

What is opened and listed during a call is traced by an audit hook of its own, not inferred from the answer.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client

from mcp_server.server import build_server
from tests import tiny
from tests.server.conftest import text_of, workspace

__all__ = ["workspace"]

traced: list[str] = []
tracing = [False]
sys.addaudithook(
    lambda event, found: (
        traced.append(os.path.realpath(found[0]))
        if tracing[0] and event in ("open", "os.listdir", "os.scandir") and isinstance(found[0], str | bytes)
        else None
    )
)
SECRET = "hidden_size_4242"


@pytest.fixture
def secret(workspace: Path) -> Path:
    """A model outside the working folder with everything beside it that some carrier could name, and links to it inside."""
    folder = tiny.write_tokenizer(tiny.write_model(workspace.parent / "outside" / "secret", 3))
    (folder / "config.json").write_text(json.dumps({"architectures": [SECRET]}), encoding="utf-8")
    tiny.write_adapter(folder / "adapter", folder)
    for name in ("recipe.yml", "plan.yaml"):
        (folder / name).write_text(f"{SECRET}: {tiny.linear_recipe(folder)}", encoding="utf-8")
    (folder / "data.jsonl").write_text(json.dumps({"prompt": SECRET, "expected": "b"}) + "\n", encoding="utf-8")
    (folder / "text.txt").write_text(SECRET, encoding="utf-8")
    (workspace / "link").symlink_to(folder)
    (workspace / "inner").mkdir()
    for name in ("config.json", "model.safetensors", "adapter_config.json", "recipe.yml", "data.jsonl"):
        (workspace / "inner" / name).symlink_to(folder / name)
    tiny.write_adapter(workspace / "stranger", folder)
    (workspace / "merged").mkdir()
    for name, text in tiny.MERGE.items():
        (workspace / "merged" / name).write_text(text, encoding="utf-8")
    record = json.loads(tiny.MERGE["merge_provenance.json"]) | {"recipe": tiny.linear_recipe(folder), "sources": [
        {"name": "secret", "ref": str(folder), "role": "model"}]}  # fmt: skip
    (workspace / "merged" / "merge_provenance.json").write_text(json.dumps(record), encoding="utf-8")
    (workspace / "merged" / "mergekit_config.yml").write_text(tiny.linear_recipe(folder), encoding="utf-8")
    for name in ("comparison", "verification", "evaluation", "sweep", "estimate"):
        (workspace / "merged" / f"{name}.json").symlink_to(folder / "config.json")
    (workspace / "merged" / "plan.yaml").symlink_to(folder / "plan.yaml")
    return folder


def spellings(secret: Path, workspace: Path) -> tuple[str, ...]:
    """Ways to name the secret folder from inside."""
    return (
        str(secret), f"{secret}@main", "link", "./link", "link@main", "../outside/secret", "base/../../outside/secret",
        f"{workspace}/../outside/secret", f"/proc/self/root{secret}", "/proc/self/cwd/../outside/secret", "link/.", "inner",
    )  # fmt: skip


def plan(**fields: Any) -> dict[str, Any]:
    sources = [{"name": n, "ref": f"./{n}", "kind": "full", "status": "works"} for n in ("code", "chat")]
    scenario = {"sources": sources, "base_model": "./base"} | fields.pop("scenario", {})
    weights = {"code": 0.5, "chat": 0.5}
    return {"verdict": "merge", "strategy": {"id": "task_arithmetic"}, "weights": weights, "scenario": scenario} | fields


def recipe(head: str = "", **places: str) -> str:
    model, base = places.get("model", "./code"), places.get("base", "./base")
    tail = f"\ntokenizer:\n  source: {places['tokenizer']}" if "tokenizer" in places else ""
    lines = (f"{head}merge_method: task_arithmetic", f"base_model: {base}", "dtype: bfloat16", "models:", f"- model: {model}")
    return "\n".join((*lines, f"  parameters: {{weight: 1.0}}{tail}\n"))


def named(**refs: str) -> list[dict[str, str]]:
    return [{"name": name, "ref": ref} for name, ref in refs.items()]


SLICES = "merge_method: passthrough\ndtype: bfloat16\nslices:\n- sources:\n  - model: {s}\n    layer_range: [0, 1]\n"
MOE = "base_model: ./base\ngate_mode: random\ndtype: bfloat16\nexperts:\n- source_model: {s}\n- source_model: ./code\n"
Carrier = Callable[[str], tuple[str, dict[str, Any]]]
CARRIERS: dict[str, Carrier] = {
    "a ref": lambda s: ("inspect_models", {"refs": [s]}),
    "a base": lambda s: ("inspect_models", {"refs": ["code"], "base": s}),
    "a base of base+adapter": lambda s: ("inspect_models", {"refs": [f"{s}+persona"]}),
    "an adapter of base+adapter": lambda s: ("inspect_models", {"refs": [f"base+{s}/adapter"]}),
    "a ref to compare": lambda s: ("compare_models", {"base": "base", "refs": [s, "code"]}),
    "a base to compare": lambda s: ("compare_models", {"base": s, "refs": ["chat", "code"]}),
    "a scenario's source": lambda s: ("recommend_strategy", {"scenario": {"sources": named(x=s, y="./code")}}),
    "a source's base": lambda s: ("recommend_strategy", {"scenario": {"sources": [{"name": "x", "ref": "./code", "base": s}]}}),
    "a scenario's base": lambda s: ("recommend_strategy", {"scenario": {"base_model": s, "sources": named(x="./code")}}),
    "a plan's source": lambda s: ("render_config", {"plan": plan(scenario={"sources": named(code=s, chat="./chat")})}),
    "a plan's base": lambda s: ("render_config", {"plan": plan(scenario={"base_model": s})}),
    "a plan's tokenizer": lambda s: ("render_config", {"plan": plan(tokenizer=s)}),
    "a plan file": lambda s: ("render_config", {"plan_file": f"{s}/plan.yaml"}),
    "a recipe's model": lambda s: ("validate_config", {"recipe": recipe(model=s)}),
    "a recipe's base": lambda s: ("validate_config", {"recipe": recipe(base=s)}),
    "a recipe's tokenizer": lambda s: ("validate_config", {"recipe": recipe(tokenizer=s)}),
    "a slice": lambda s: ("estimate_ram", {"recipe": SLICES.format(s=s)}),
    "an expert": lambda s: ("validate_config", {"recipe": MOE.format(s=s)}),
    "a recipe file": lambda s: ("validate_config", {"recipe": f"{s}/recipe.yml"}),
    "a recipe's adapter": lambda s: ("estimate_ram", {"recipe": recipe(model=f"./base+{s}/adapter")}),
    "a merge's model": lambda s: ("launch_merge", {"recipe": recipe(model=s), "out": "./new"}),
    "a merge's tokenizer": lambda s: ("launch_merge", {"recipe": recipe(tokenizer=s), "out": "./new"}),
    "refs to merge": lambda s: ("merge_adapters", {"refs": [s, "code"], "out": "./new"}),
    "a grid's source": lambda s: ("sweep_merges", {"out": "./new", "plan": plan(), "grid": {"sources.code.ref": [s]}}),
    "a grid's base": lambda s: ("sweep_merges", {"out": "./new", "plan": plan(), "grid": {"base_model": [s]}}),
    "a grid's tokenizer": lambda s: ("sweep_merges", {"out": "./new", "plan": plan(), "grid": {"tokenizer": [s]}}),
    "a sweep's data": lambda s: ("sweep_merges", {"out": "./new", "plan": plan(), "data": [f"{s}/data.jsonl"]}),
    "a label": lambda s: ("evaluate_merge", {"against": {"base": s}, "suites": ["perplexity"]}),
    "a label to ask": lambda s: ("ask_models", {"out": "merged", "text": "hello", "against": {"base": s}}),
    "a suite of text": lambda s: ("evaluate_merge", {"out": "merged", "suites": [f"{s}/text.txt"]}),
    "a file of data": lambda s: ("evaluate_merge", {"out": "merged", "data": [f"{s}/data.jsonl"]}),
    "a merge to verify": lambda s: ("verify_merge", {"out": s}),
    "a merge to evaluate": lambda s: ("evaluate_merge", {"out": s}),
    "a merge to report": lambda s: ("write_report", {"out": s}),
    "a report's file": lambda s: ("write_report", {"out": "merged", "path": f"{s}/report.html"}),
    "a merge to diagnose": lambda s: ("diagnose_merge", {"out": s}),
    "a merge's evaluations": lambda s: ("list_evaluations", {"out": s}),
    "a record's sources, for the report": lambda s: ("write_report", {"out": "merged"}),
    "a record's sources, for the diagnosis": lambda s: ("diagnose_merge", {"out": "merged"}),
    "a record's links, for the evaluations": lambda s: ("list_evaluations", {"out": "merged"}),
    "an adapter's config": lambda s: ("inspect_models", {"refs": ["stranger"]}),
    "an adapter's config, of a merge": lambda s: ("merge_adapters", {"refs": ["stranger", "persona"], "out": "./new"}),
    "an adapter's config, of a plan": lambda s: (
        "render_config",
        {"plan": plan(scenario={"base_model": None, "sources": named(code="./stranger", chat="./persona")})},
    ),
}  # fmt: skip


@functools.cache
def server() -> Any:
    return build_server()


def call(tool: str, arguments: dict[str, Any]) -> str:
    async def made() -> str:
        async with Client(server()) as client:
            return text_of(await client.call_tool(tool, arguments))

    traced.clear()
    tracing[0] = True
    try:
        return anyio.run(made)
    finally:
        tracing[0] = False


@pytest.mark.parametrize("carrier", CARRIERS)
def test_nothing_that_carries_a_name_leads_outside(carrier: str, secret: Path, workspace: Path) -> None:
    """The plain path, and two other spellings, which differ from carrier to carrier."""
    names = spellings(secret, workspace)
    turn = list(CARRIERS).index(carrier)
    said = refused(carrier, names[0], secret, workspace)
    if not carrier.startswith(("a record", "an adapter's config")):
        assert "MODEL_MERGING_ROOTS" in said, said[:300]
    if len(set(names)) > 1 and not carrier.startswith("a record"):
        for step in (1, 6):
            refused(carrier, names[1 + (turn + step) % (len(names) - 1)], secret, workspace)


@pytest.mark.slow
@pytest.mark.parametrize("carrier", CARRIERS)
def test_no_carrier_leads_outside_in_any_spelling(carrier: str, secret: Path, workspace: Path) -> None:
    for name in spellings(secret, workspace):
        refused(carrier, name, secret, workspace)


def refused(carrier: str, name: str, secret: Path, workspace: Path) -> str:
    """What the call answers; nothing outside was opened, nothing from there is in the answer, nothing was made."""
    tool, arguments = CARRIERS[carrier](name)
    said = call(tool, arguments)
    assert [path for path in traced if Path(path).is_relative_to(secret.parent)] == [], f"{tool} {arguments}: {said[:300]}"
    assert SECRET not in said, f"{tool} {arguments}"
    assert not (workspace / "new").exists()
    return said


def test_the_trace_sees_what_is_opened_and_listed(secret: Path) -> None:
    traced.clear()
    tracing[0] = True
    try:
        os.listdir(secret)  # noqa: PTH208 - the event is meant
        (secret / "text.txt").read_text(encoding="utf-8")
    finally:
        tracing[0] = False
    assert traced == [str(secret), str(secret / "text.txt")]


NAMES = ["base", "link", "..", ".", "outside", "secret", "inner", "adapter", "~", "code"]
PARTS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=6)


@settings(max_examples=25)
@given(parts=PARTS, revision=st.sampled_from(["", "@main", "@" + "0" * 40]), plus=st.sampled_from(["", "base+", "+persona"]))
def test_no_path_made_of_these_parts_leads_outside(
    parts: list[str], revision: str, plus: str, secret: Path, workspace: Path
) -> None:
    name = "/".join(parts) + revision
    said = call("inspect_models", {"refs": [f"{plus}{name}" if plus.endswith("+") else f"{name}{plus}"]})
    assert [path for path in traced if Path(path).is_relative_to(secret.parent)] == []
    assert SECRET not in said
