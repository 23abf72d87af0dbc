"""Licences of the sources: read from model cards and LICENSE files, and what they ask of a merge.

What each licence asks is data (`rules/licences.yaml`). Two sources conflict when no licence for the merge satisfies both.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Final

from mcp_server.formats.card import READ_BYTES, front_matter_of
from mcp_server.system import paths
from mcp_server.system.guard import open_read
from mcp_server.system.yaml_io import load_yaml

_COMMON: Final = frozenset({"the", "license", "licence", "version", "v", "community", "agreement", "international"})
FILES: Final = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")


@cache
def known_licences() -> dict[str, dict[str, Any]]:
    """Licence id → its row in rules/licences.yaml."""
    text = (paths.RULES / "licences.yaml").read_text(encoding="utf-8")
    return {row["id"]: row for row in load_yaml(text, "rules/licences.yaml")["licences"]}


def read_licence(folder: Path) -> str | None:
    """The licence's id as the model card states it, else recognised from a LICENSE file, else None."""
    return _from_card(folder) or _from_file(folder)


def licence_notes(licences: dict[str, str | None]) -> list[str]:
    """What the sources' licences (ref → id) mean for the merge: conflicts first, then what to state, then what is unknown."""
    named = {ref: licence for ref, licence in licences.items() if licence}
    classes = {ref: known_licences().get(licence, {}).get("class") for ref, licence in named.items()}
    notes = _conflicts(named, classes)
    for licence in dict.fromkeys(named.values()):
        row = known_licences().get(licence)
        if row:
            notes.append(f"{licence} asks: {row['asks']} ({row['source']})")
        else:
            notes.append(f"{licence} is not in rules/licences.yaml: read its terms before sharing the merge")
    if unknown := [ref for ref, licence in licences.items() if not licence]:
        notes.append(f"no licence was found for {', '.join(unknown)}: ask the author before sharing the merge")
    return notes


def _conflicts(named: dict[str, str], classes: dict[str, Any]) -> list[str]:
    of = {kind: [ref for ref, found in classes.items() if found == kind] for kind in set(classes.values())}
    notes = []
    same = [(ref, named[ref]) for kind in ("copyleft", "share_alike") for ref in of.get(kind, [])]
    others = [(ref, named[ref]) for kind in ("community", "non_commercial") for ref in of.get(kind, [])]
    for ref, licence in same:
        for other, term in others:
            notes.append(f"conflict: {licence} of {ref} allows no further restrictions, {term} of {other} adds some")
    if len({licence for _, licence in same}) > 1:
        notes.append(
            f"conflict: {', '.join(f'{licence} of {ref}' for ref, licence in same)} each want the merge under their own terms"
        )
    for ref in of.get("non_commercial", []):
        notes.append(f"the merge is not for commercial use, because of {named[ref]} of {ref}")
    return notes


def _from_card(folder: Path) -> str | None:
    front = front_matter_of(folder)
    licence, name = front.get("license"), front.get("license_name")
    chosen = name if licence == "other" and name else licence
    if isinstance(chosen, list):
        chosen = chosen[0] if len(chosen) == 1 else None  # several: which one holds for what, only its reader can tell
    return normalised(chosen) if isinstance(chosen, str) and chosen.strip() else None


def normalised(stated: str) -> str:
    """The id of rules/licences.yaml that a spelling means ("Apache License 2.0": apache-2.0), else the spelling itself."""
    wanted = _spelt(stated)
    return next((licence for licence in known_licences() if _spelt(licence) == wanted), stated.strip().lower())


def _spelt(text: str) -> str:
    """Letters and digits, without the words that every licence has."""
    return "".join(word for word in re.findall(r"[a-z]+|\d+", text.lower()) if word not in _COMMON)


def _from_file(folder: Path) -> str | None:
    for name in FILES:
        path = folder / name
        if path.is_file():
            with open_read(path) as file:
                text = " ".join(file.read(READ_BYTES).decode("utf-8", errors="replace").split()).lower()
            matches = [
                (sum(len(phrase) for phrase in row["recognise"]), licence)
                for licence, row in known_licences().items()
                if all(phrase.lower() in text for phrase in row["recognise"])
            ]
            return max(matches)[1] if matches else None
    return None
