"""Read `rules/` into a checked catalogue; every problem is found in one pass and named by file and field."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from mcp_server.catalog.models import Catalog, Question, Rule, Strategy, Threshold
from mcp_server.catalog.signals import SIGNALS
from mcp_server.errors import Malformed, did_you_mean
from mcp_server.schemas.faults import explain
from mcp_server.system.yaml_io import load_yaml

M = TypeVar("M", bound=BaseModel)
DECIDED: Final = frozenset({"verdict", "strategy", "merge_fits", "verify_fits", "evaluate_fits", "evaluate_gib"})
"""Facts that come to be while the table is read: the verdict, then the strategy, then the engine. Later stages may read them."""
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")


@dataclass
class Loaded:
    """What could be read, and everything that is wrong as (file, message)."""

    strategies: dict[str, Strategy] = field(default_factory=dict)
    strategy_files: set[str] = field(default_factory=set)
    rules: list[Rule] = field(default_factory=list)
    thresholds: dict[str, Threshold] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def catalog(self) -> Catalog:
        return Catalog(strategies=self.strategies, rules=self.rules, thresholds=self.thresholds, questions=self.questions)


def read_rules(folder: Path) -> Loaded:
    """Read every file of a rules folder. Never raises for what a file says: the problems come back in the result."""
    loaded = Loaded()
    for threshold in _models(loaded, folder / "thresholds.yaml", "thresholds.yaml", Threshold):
        if threshold.name in loaded.thresholds:
            loaded.problems.append(("thresholds.yaml", f"the threshold {threshold.name!r} is given twice"))
        loaded.thresholds[threshold.name] = threshold
    for path in sorted((folder / "strategies").glob("*.yaml")):
        loaded.strategy_files.add(path.stem)
        for strategy in _models(loaded, path, f"strategies/{path.name}", Strategy, one=True):
            if strategy.id != path.stem:
                loaded.problems.append(
                    (f"strategies/{path.name}", f"its id is {strategy.id!r}; name it like the file: {path.stem}")
                )
            loaded.strategies[strategy.id] = strategy
    loaded.rules = list(_models(loaded, folder / "decision.yaml", "decision.yaml", Rule))
    loaded.questions = list(_models(loaded, folder / "questions.yaml", "questions.yaml", Question))
    ids = [rule.id for rule in loaded.rules]
    for twice in sorted({i for i in ids if ids.count(i) > 1}):
        loaded.problems.append(("decision.yaml", f"the rule {twice!r} is given twice"))
    for rule in loaded.rules:
        loaded.problems += [("decision.yaml", f"rule {rule.id!r}: {problem}") for problem in _rule_problems(rule, loaded)]
    for question in loaded.questions:
        if problem := _signal_problem(question.signal):
            loaded.problems.append(("questions.yaml", problem))
    return loaded


def _models(loaded: Loaded, path: Path, name: str, model: type[M], *, one: bool = False) -> Iterator[M]:
    try:
        data = load_yaml(path.read_text(encoding="utf-8"), "the file")
    except (Malformed, OSError, UnicodeDecodeError) as error:
        loaded.problems.append((name, getattr(error, "message", str(error))))
        return
    if one:
        data = [_numbers_in(loaded, name, data)]
    if not isinstance(data, list):
        loaded.problems.append((name, f"it holds a {type(data).__name__}, a list of entries is expected"))
        return
    for number, entry in enumerate(data, 1):
        try:
            yield model.model_validate(entry)
        except ValidationError as error:
            label = entry.get("id") or entry.get("name") or entry.get("signal") if isinstance(entry, dict) else None
            where = "" if one else f"entry {number}" + (f" ({label})" if label else "") + ": "
            loaded.problems += [(name, where + text) for text in explain(error, model)]


def _numbers_in(loaded: Loaded, name: str, data: Any) -> Any:
    """A strategy file with every `{threshold: name}` replaced by its number, so that no number is written twice."""
    if isinstance(data, list):
        return [_numbers_in(loaded, name, item) for item in data]
    if not isinstance(data, dict):
        return data
    if set(data) == {"threshold"}:
        known, wanted = loaded.thresholds, str(data["threshold"])
        if wanted not in known:
            loaded.problems.append((name, f"there is no threshold {wanted!r}.{did_you_mean(wanted, known)}"))
            return None
        return known[wanted].value
    return {key: _numbers_in(loaded, name, value) for key, value in data.items()}


def _signal_problem(name: str) -> str:
    return "" if name in SIGNALS else f"there is no signal {name!r}.{did_you_mean(name, SIGNALS)}"


def _rule_problems(rule: Rule, loaded: Loaded) -> Iterator[str]:
    read = set()
    for condition in rule.when:
        read.add(condition.signal)
        if condition.signal in DECIDED:
            if rule.stage == "verdict" or (rule.stage == "strategy" and condition.signal != "verdict"):
                yield f"{condition.signal!r} is not decided yet when a {rule.stage} rule is read"
        elif problem := _signal_problem(condition.signal):
            yield problem
        yield from _value_problems(condition.op, condition.value, loaded)
    named = [rule.choose] if rule.choose else [rule.runner_up.strategy] if rule.runner_up else []
    for strategy in named:
        if strategy not in loaded.strategy_files and strategy != "asked":
            yield f"there is no strategy {strategy!r}.{did_you_mean(strategy, loaded.strategy_files)}"
    for name in _PLACEHOLDER.findall(f"{rule.because} {rule.warn or ''} {rule.ask or ''}"):
        if name not in read:
            yield f"its text quotes {{{name}}}, which none of its conditions reads; add one (op: known will do)"


def _value_problems(op: str, value: Any, loaded: Loaded) -> Iterator[str]:
    if isinstance(value, dict):
        if set(value) != {"threshold"}:
            yield f"a value is a plain value or {{threshold: name}}, not {value!r}"
        elif (name := str(value["threshold"])) not in loaded.thresholds:
            yield f"there is no threshold {name!r}.{did_you_mean(name, loaded.thresholds)}"
    elif op in ("known", "unknown"):
        if value is not None:
            yield f"{op!r} takes no value, found {value!r}"
    elif value is None:
        yield f"{op!r} needs a value"
    elif op == "in":
        if not isinstance(value, list):
            yield f"'in' needs a list, found {value!r}"
    elif op not in ("is", "is_not") and (isinstance(value, bool) or not isinstance(value, int | float)):
        yield f"{op!r} needs a number, found {value!r}"
