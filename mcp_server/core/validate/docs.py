"""docs/lint.md from rules/lint.yaml: `python -m mcp_server.core.validate.docs > docs/lint.md`; a test fails when they differ."""

from __future__ import annotations

import sys

from mcp_server.core.validate.registry import LintRule, rules

GROUPS = {
    "1": "Form of the recipe",
    "2": "What the method needs and means",
    "3": "Checkpoints",
    "4": "Adapters",
    "5": "Output and resources",
    "6": "Mixtures of experts and several stages",
    "7": "mergekit's planner",
}
LEVELS = {
    "yaml": "needs only the text",
    "checkpoints": "needs the sources on this machine",
    "resources": "needs an output folder or a memory budget",
    "planner": "`--deep`: asks mergekit itself",
}
HEAD = """# Codes of the linter

<!-- Generated from mcp_server/rules/lint.yaml by `python -m mcp_server.core.validate.docs`: edit that file. -->

`model-merging validate RECIPE.yml` reports findings with these codes. An **error** stops the merge or makes its result
something else than the recipe says; a **warning** deserves a look; a **note** teaches. A check that lacks a fact (a model
that is not on this machine, no output given) is skipped and says so: it never passes silently. `--fix` corrects what is
marked, lists what it changed and keeps the old file as `RECIPE.yml.orig`. The behaviour described was observed on mergekit 0.1.5.
"""


def lint_page() -> str:
    """The whole page: a table of all codes, then each with what, why, example and fix."""
    lines = [HEAD, "| code | | finding | checked | `--fix` |", "|---|---|---|---|---|"]
    for rule in rules().values():
        fixable = "yes" if rule.fixable else ""
        anchor = f"[{rule.code}](#{rule.code.lower()})"
        lines.append(f"| {anchor} | {rule.severity} | {rule.title} | {LEVELS[rule.level]} | {fixable} |")
    group = ""
    for rule in rules().values():
        if rule.code[2] != group:
            group = rule.code[2]
            lines += ["", f"## {GROUPS[group]}"]
        lines += _section(rule)
    return "\n".join(lines) + "\n"


def _section(rule: LintRule) -> list[str]:
    return [
        "",
        f"### {rule.code}",
        "",
        f"**{rule.title}** ({rule.severity}{', fixable' if rule.fixable else ''}).",
        rule.what,
        "",
        f"- Why it matters: {rule.why}",
        f"- Example: `{rule.example}`",
        f"- Fix: {rule.fix}",
    ]


if __name__ == "__main__":
    sys.stdout.write(lint_page())
