"""The model card of a merge: lineage, licences, recipe and what was measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mcp_server.core.errors import NotFound
from mcp_server.engine.checkpoint import locate, read_json
from mcp_server.engine.plan import MergePlan


def model_card(name: str, plan: MergePlan, measured: dict[str, Any], *, library: str = "transformers") -> str:
    """README.md with the front matter that the hub reads."""
    recipe = plan.recipe
    parents = [str(ref) for ref in recipe.refs]
    licences = {parent: licence for parent in parents if (licence := _licence(parent))}
    front: dict[str, Any] = {
        "base_model": [_public(p) for p in parents],
        "library_name": library,
        "tags": ["merge", "mergekit"],
    }
    if len(set(licences.values())) == 1 and len(licences) == len(parents):
        front["license"] = next(iter(licences.values()))
    lines = ["---", yaml.safe_dump(front, sort_keys=False).rstrip(), "---", f"# {name}", ""]
    lines += [f"A merge of {len(plan.labels)} source(s) by `{recipe.method}`.", "", "## Sources", ""]
    for ref in recipe.refs:
        role = " (base)" if ref == recipe.base else ""
        lines.append(f"- `{_public(str(ref))}`{role}: licence {licences.get(str(ref), 'not stated')}")
    if len(set(licences.values())) > 1 or len(licences) < len(parents):
        lines += ["", "The sources' licences differ or are not all stated; check what the strictest of them allows."]
    lines += ["", "## Recipe", "", "```yaml", recipe.text.rstrip(), "```", ""]
    lines += _measurements(measured)
    return "\n".join(lines)


def _measurements(measured: dict[str, Any]) -> list[str]:
    if measured.get("relative_error") is not None:
        return [f"The merged deltas are approximated; relative error {measured['relative_error']:.3g} (Frobenius norm).", ""]
    if not measured["landed"]:
        return []
    lines = ["## What landed", "", "| source | share of its delta in the result | lost to rounding |", "|---|---|---|"]
    for source, share in measured["landed"].items():
        lost = measured["rounding_loss"].get(source)
        lines.append(f"| `{_public(source)}` | {describe_share(share)} | {describe_share(lost)} |")
    return [*lines, "", f"Seed {measured['seed']}. Details are in `merge_provenance.json`.", ""]


def _public(ref: str) -> str:
    """A reference without this machine's folders: the last part of every local path."""
    return "+".join(
        Path(part).name if Path(part).is_absolute() or part.startswith((".", "~")) else part for part in ref.split("+")
    )


def _licence(ref: str) -> str | None:
    """The licence in a model's own card; for base+adapter the adapter's, else the base's."""
    for part in reversed(ref.split("+")):
        try:
            folder = locate(part)
        except NotFound:
            continue
        card = folder / "README.md"
        if card.is_file() and (front := re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S)):
            try:
                found = yaml.safe_load(front[1])
            except yaml.YAMLError:
                continue
            if isinstance(found, dict) and found.get("license"):
                return str(found["license"])
        if (folder / "config.json").is_file() and (stated := read_json(folder / "config.json").get("license")):
            return str(stated)
    return None


def describe_share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
