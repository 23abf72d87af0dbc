"""One value → one line of YAML that reads back as exactly that value, whatever is in it.

Names and paths come from users. Written raw, a newline or `: ` in one would add keys to the recipe; here everything but plain
words is double-quoted and escaped, so a value can never become structure.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

from mcp_server.errors import BadInput

_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./+-]*\Z")
_NOT_TEXT: Final = frozenset(("null", "true", "false", "yes", "no", "on", "off", "y", "n"))
_SHORT: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def to_yaml(value: Any) -> str:
    """Flow-style YAML for text, numbers, truth values, lists and tables. Raises `BadInput` for what YAML cannot hold."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_yaml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_yaml(str(key))}: {to_yaml(item)}" for key, item in value.items()) + "}"
    raise BadInput(
        f"a recipe cannot hold a {type(value).__name__} ({value!r})", "use text, numbers, true or false, lists or tables"
    )


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise BadInput(f"a recipe cannot hold the number {value}", "use a finite number")
    text = repr(value)
    # YAML 1.1 reads 1e-05 as text: a float needs its point.
    return re.sub(r"^(-?\d+)e", r"\1.0e", text)


def _text(value: str) -> str:
    if _PLAIN.match(value) and value.lower() not in _NOT_TEXT:
        return value
    return '"' + "".join(_escaped(character) for character in value) + '"'


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    if 0xD800 <= code <= 0xDFFF:
        raise BadInput(f"text with the lone surrogate U+{code:04X} cannot be written to a file", "rename the file or source")
    if code > 0xFFFF:
        return f"\\U{code:08X}"
    if not character.isprintable() or code == 0xFEFF:
        return f"\\u{code:04X}"
    return character
