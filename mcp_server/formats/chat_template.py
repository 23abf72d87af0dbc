"""Chat templates: what a model's tokenizer uses, which most models of a merge have, and how an output gets another one.

Source: transformers 5, `PreTrainedTokenizerBase._from_pretrained` (files before tokenizer_config.json), and mergekit 0.1.5,
`_set_chat_template`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from mcp_server.formats.tensors import read_json

FILE: Final = "chat_template.jinja"
MORE: Final = "additional_chat_templates"
SETTINGS: Final = "tokenizer_config.json"
OF_PROCESSORS: Final = "chat_template.json"
AUTO: Final = "auto"
DEFAULT: Final = "default"


def is_name(template: str) -> bool:
    """Whether a recipe's `chat_template` names one (`auto` included) instead of holding its text."""
    return "{" not in template


def stored(folder: Path) -> dict[str, str]:
    """Name → text of each chat template of a model, `default` the one that is used; empty when there is none."""
    found = {DEFAULT: folder / FILE} if (folder / FILE).is_file() else {}
    found |= {path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))}
    if found:
        return {name: path.read_text(encoding="utf-8", errors="replace") for name, path in found.items()}
    held = read_json(folder / SETTINGS).get("chat_template") if (folder / SETTINGS).is_file() else None
    return _texts(held)


def _texts(held: Any) -> dict[str, str]:
    if isinstance(held, str):
        return {DEFAULT: held} if held else {}
    if isinstance(held, list):
        held = {one.get("name"): one.get("template") for one in held if isinstance(one, dict)}
    return {str(name): text for name, text in held.items() if isinstance(text, str)} if isinstance(held, dict) else {}


def most_common(folders: Iterable[Path]) -> str | None:
    """The default template that most of these models have, without blanks around it; of equally many, the first. None: no model
    has any."""
    found = votes(folders)
    return found.most_common(1)[0][0] if found else None


def votes(folders: Iterable[Path]) -> Counter[str]:
    """How many of these models have which default template."""
    return Counter(text for folder in folders if (text := stored(folder).get(DEFAULT, "").strip()))


def put(folder: Path, text: str) -> None:
    """Make this the model's one template, for readers of either file. Files are not synced."""
    (folder / FILE).write_text(text, encoding="utf-8")
    (folder / OF_PROCESSORS).unlink(missing_ok=True)
    for other in (folder / MORE).glob("*.jinja"):
        other.unlink()
    if (folder / SETTINGS).is_file() and "chat_template" in (held := read_json(folder / SETTINGS)):
        del held["chat_template"]
        (folder / SETTINGS).write_text(json.dumps(held, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
