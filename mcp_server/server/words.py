"""Commands in messages, said as calls of tools.

What lies below both faces names the next step as a command line (`model-merging verify OUT --full`). An agent at this face has no
shell, so on the way out each command becomes the call that does the same: `verify_merge(out=OUT, full=true)`.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

CALLS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "inspect": ("inspect_models", ("refs",)),
    "recommend": ("recommend_strategy", ("scenario_file",)),
    "render": ("render_config", ("plan",)),
    "validate": ("validate_config", ("recipe",)),
    "estimate": ("estimate_ram", ("recipe",)),
    "merge": ("launch_merge", ("recipe", "out")),
    "go": ("merge_adapters", ("refs",)),
    "extract": ("extract_adapter", ("base", "finetune", "out")),
    "compare": ("compare_models", ("base", "refs")),
    "sweep": ("sweep_merges", ("plan", "out")),
    "verify": ("verify_merge", ("out",)),
    "evaluate": ("evaluate_merge", ("out",)),
    "evaluations": ("list_evaluations", ("out",)),
    "show": ("show_replies", ("out",)),
    "ask": ("ask_models", ("out", "text")),
    "diagnose": ("diagnose_merge", ("out",)),
    "report": ("write_report", ("out",)),
    "suites": ("list_suites", ()),
    "strategies": ("list_strategies", ()),
    "fetch": ("fetch_model", ("ref",)),
    "export": ("export_merge", ("out", "dest")),
    "publish": ("publish_merge", ("out", "repo")),
    "jobs": ("list_merges", ()),
    "status": ("merge_status", ("job_id",)),
    "wait": ("merge_status", ("job_id",)),
    "logs": ("merge_logs", ("job_id",)),
    "cancel": ("cancel_merge", ("job_id",)),
    "resume": ("resume_merge", ("job_id",)),
}
"""Command → its tool, and the arguments that its positions stand for. What is not here only a person does: demo, check, serve."""

PLURAL: Final = {"suite": "suites", "source": "sources", "try": "tries"}
LISTS: Final = frozenset({"refs", "suites", "sources", "tries", "data", "grid", "set"})
NO_ARGUMENT: Final = frozenset({"output", "json", "explain", "detach", "quiet", "help", "deep"})
"""Options of the shell alone: the tools always return their result."""

_WORD: Final = (
    r"(?:[A-Z][A-Z_]*(?:\.ya?ml)?\b|[./~](?:[^\s;,)`]*[^\s;,)`.:])?|demo:[\w.-]+|[a-z]+-\d{8}-\d{6}-\w+|(?:plan|recipe)-[0-9a-f]{12}\b"
    r"|[\w-][\w.-]*/[\w.@-]+)"
)
"""What an argument looks like: a placeholder, a path, an alias, an id of a job, plan or recipe, a hub id."""
_OPTION: Final = rf"(?:--[a-z][\w-]*|-o)(?:[ =]{_WORD})?"
_COMMAND: Final = re.compile(rf"(?P<tick>`?)model-merging (?P<verb>[a-z]+)(?P<rest>(?: (?:{_OPTION}|{_WORD}))*)(?P=tick)")
_PART: Final = re.compile(rf" (?:(?P<option>--[a-z][\w-]*|-o)(?:[ =](?P<value>{_WORD}))?|(?P<word>{_WORD}))")


def in_tool_words(text: str) -> str:
    """The text with every command of the shell as a call of a tool."""
    return _COMMAND.sub(_call, text) if "model-merging " in text else text


def told_in_tool_words(data: Any) -> Any:
    """The same for every text of a result but its documents: recipes, logs and what models said stay as they are."""
    if isinstance(data, str):
        return in_tool_words(data)
    if isinstance(data, list):
        return [told_in_tool_words(item) for item in data]
    if isinstance(data, dict):
        return {key: value if key in VERBATIM else told_in_tool_words(value) for key, value in data.items()}
    return data


VERBATIM: Final = frozenset({"recipe", "fixed_recipe", "text", "plan", "replies"})


def _call(found: re.Match[str]) -> str:
    if found["verb"] not in CALLS:
        return found[0]
    tool, names = CALLS[found["verb"]]
    positions = list(names)
    arguments: dict[str, list[str]] = {}
    for part in _PART.finditer(found["rest"]):
        if part["word"]:
            name = positions[0] if len(positions) == 1 else positions.pop(0) if positions else ""
            value = part["word"]
        else:
            name = (part["option"] or "").lstrip("-").replace("-", "_")
            name, value = PLURAL.get(name, "output" if name == "o" else name), part["value"] or "true"
        if name and name not in NO_ARGUMENT:
            arguments.setdefault(name, []).append(value if value == "true" or value.isupper() else json.dumps(value))
    said = [f"{n}=[{', '.join(v)}]" if n in LISTS else f"{n}={v[-1]}" for n, v in arguments.items()]
    return f"{tool}({', '.join(said)})"
