"""A model card's front matter, read with care: it is data that somebody else wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from mcp_server.errors import Malformed
from mcp_server.formats.companions import CARD_FILE
from mcp_server.formats.refs import is_hub_id
from mcp_server.system.guard import open_read
from mcp_server.system.yaml_io import load_yaml

READ_BYTES: Final = 65_536


def front_matter_of(folder: Path) -> dict[str, Any]:
    """What the card of a folder states about it; nothing where there is no card, or one whose front matter is no table."""
    card = folder / CARD_FILE
    if not card.is_file():
        return {}
    with open_read(card) as file:
        text = file.read(READ_BYTES).decode("utf-8", errors="replace")
    head, separator, _ = text.removeprefix("---").partition("\n---")
    if not text.startswith("---") or not separator:
        return {}
    try:
        front = load_yaml(head, str(card))
    except Malformed:
        return {}  # nothing else depends on a card that cannot be parsed
    return front if isinstance(front, dict) else {}


def named_original(folder: Path, own: str) -> str | None:
    """The hub id of the one model that the card names as its base; None where it names none, several, or itself (`own`)."""
    named = front_matter_of(folder).get("base_model")
    first = named[0] if isinstance(named, list) and len(named) == 1 else named
    return first if isinstance(first, str) and is_hub_id(first) and first != own else None
