"""Plan in, recipe out: mergekit's YAML from one template per strategy, parsed back and compared with what was meant."""

from __future__ import annotations

import functools
import traceback
from pathlib import Path

import jinja2
from jinja2.sandbox import SandboxedEnvironment

from mcp_server import catalog
from mcp_server.catalog.loader import DECIDED
from mcp_server.catalog.models import Strategy
from mcp_server.catalog.signals import read_facts
from mcp_server.errors import Malformed, NotFound
from mcp_server.schemas.base import Message
from mcp_server.schemas.plan import Plan, Rendered
from mcp_server.steps.recommend.decide import fill, fired
from mcp_server.steps.render.example import example_plan
from mcp_server.steps.render.intent import ASSUMED_DTYPE, Meaning, compare, known_dtype, meaning_of
from mcp_server.steps.render.overrides import apply, parse_overrides, strategy_of
from mcp_server.steps.render.yaml_text import to_yaml
from mcp_server.steps.scenario import read_plan
from mcp_server.system import paths
from mcp_server.system.yaml_io import load_yaml_all

__all__ = ["parse_overrides", "read_plan", "render", "render_strategy", "template_text"]


def render(plan: Plan, overrides: dict[str, str] | None = None, *, relative_to: Path | None = None) -> Rendered:
    """The recipe of a plan, with `--set` overrides applied (grammar: steps/render/overrides.py).

    Refs become absolute paths, or stay hub ids; relative ones count from `relative_to` (default: the current folder). Raises
    `BadInput` for what is missing or illegal, `Malformed` when a template does not say what the plan means.
    """
    plan = apply(plan, overrides or {})
    strategy = strategy_of(plan)
    folder = relative_to or Path.cwd()
    meaning = meaning_of(plan, strategy, folder)
    named = f"# plan: {plan.plan_id}\n" if plan.plan_id else ""
    text = named + _text(strategy, meaning, paths.templates_dir())
    return Rendered(strategy=strategy.id, recipe=text, warnings=_warnings(plan, strategy, folder))


def render_strategy(strategy_id: str, templates: Path | None = None, strategies: dict[str, Strategy] | None = None) -> Rendered:
    """The recipe of a strategy for the example sources: what documents show and what golden files hold."""
    strategy = strategies[strategy_id] if strategies else catalog.strategy(strategy_id)
    plan = example_plan(strategy)
    meaning = meaning_of(plan, strategy, Path("/"))
    return Rendered(strategy=strategy.id, recipe=_text(strategy, meaning, templates or paths.templates_dir()))


def template_text(strategy_id: str) -> str:
    """A strategy's template, for the resource `merge://templates/{id}`."""
    catalog.strategy(strategy_id)
    path = paths.templates_dir() / f"{strategy_id}.yaml.j2"
    if not path.is_file():
        raise NotFound(f"{path} does not exist", "run `model-merging check`")
    return path.read_text(encoding="utf-8")


@functools.cache
def _environment(folder: Path) -> SandboxedEnvironment:
    environment = SandboxedEnvironment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        finalize=_refuse_raw,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["yaml"] = _quote
    return environment


def _quote(value: object) -> _Quoted:
    """The `yaml` filter. An undefined value raises jinja2's own error, which names it."""
    return _Quoted(str(value) if isinstance(value, jinja2.Undefined) else to_yaml(value))


class _Quoted(str):
    """Text that went through the `yaml` filter, or that the template itself made."""


def _refuse_raw(value: object) -> object:
    """A template prints values through `| yaml` only; anything raw could break out of its place."""
    if isinstance(value, _Quoted | jinja2.Undefined) or type(value).__name__ == "Markup":
        return value
    raise jinja2.TemplateRuntimeError(f"{value!r} is printed raw; write {{{{ … | yaml }}}}")


def _text(strategy: Strategy, meaning: Meaning, templates: Path) -> str:
    name = f"{strategy.id}.yaml.j2"
    try:
        text = (
            _environment(templates)
            .get_template(name)
            .render(
                method=meaning.method,
                base=meaning.base,
                sources=meaning.inputs,
                parameters=meaning.parameters,
                dtype=meaning.dtype,
                tokenizer=meaning.tokenizer,
                stages=meaning.stages,
            )
        )
    except jinja2.TemplateNotFound as missing:
        raise NotFound(f"templates/{missing.name} does not exist", f"write it for the strategy {strategy.id!r}") from missing
    except jinja2.TemplateError as error:
        line = getattr(error, "lineno", None) or _line(error, name)
        where = f" (line {line})" if line else ""
        raise Malformed(f"templates/{name}{where}: {error.message}", "correct the template") from error
    compare(load_yaml_all(text, f"the text of templates/{name}"), meaning, name)
    return text


def _line(error: Exception, template: str) -> int | None:
    """The template's line that an error at run time came from; jinja2 puts it into the traceback."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == template]
    return frames[-1].lineno if frames else None


def _warnings(plan: Plan, strategy: Strategy, folder: Path) -> list[Message]:
    """What the decision table says about this strategy (which may not be the plan's own), and what rendering assumed."""
    facts = {**dict.fromkeys(DECIDED), **read_facts(plan.scenario), "verdict": plan.verdict, "strategy": strategy.id}
    rules = [r for r in fired(catalog.load(), "warning", facts) if any(c.signal == "strategy" for c in r.when)]
    warnings = [Message(code=rule.id, message=fill(rule.warn or "", facts)) for rule in rules]
    if not plan.dtype and not known_dtype(plan, folder):
        text = f"nothing tells the sources' dtype, so {ASSUMED_DTYPE} is assumed; set another with --set dtype=float16"
        warnings.append(Message(code="dtype_assumed", message=text))
    return warnings
