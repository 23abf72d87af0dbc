"""Text that comes out of files, for the eyes of people: no control character reaches a terminal, no markup a document.

Names of tensors, licences, log lines and messages of other programs are data. A terminal obeys escape sequences in them (it can
be cleared, retitled, its clipboard written), and Markdown takes pipes, brackets and tags for structure.
"""

from __future__ import annotations

import json
import re
from typing import Final

_UNSEEN: Final = (
    "\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000e0000-\U000e01ef"
)
"""Controls beyond ASCII, marks that turn the direction of writing, halves of characters, and what takes no room: a reader that is
a language model sees such text where a person sees none. (Joiners stay: emoji and some scripts are written with them.)"""
_CONTROLS: Final = re.compile(f"[\x00-\x08\x0b-\x1f{_UNSEEN}]")
_JSON_CONTROLS: Final = re.compile(f"[{_UNSEEN}]")
_START: Final = re.compile(r"^(\s*)(#{1,6}|[-+]|\d{1,9}(?=[.)]))([.)]?)(?=\s|$)")
_MARKUP: Final = re.compile(r"[\\`\[\]|*_~]")
_WORD: Final = re.compile(r"(?<=\w)\\_(?=\w)")


def printable(text: str) -> str:
    """Control characters as escapes (`\\x1b`); line breaks and tabs stay."""
    return _CONTROLS.sub(_escape, text)


def one_line(text: str) -> str:
    """`printable`, and line breaks and tabs are escapes as well: a name cannot fake a second line."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def json_printable(text: str) -> str:
    """JSON text with those control characters escaped that JSON itself lets stand raw; the value stays the same."""
    return _JSON_CONTROLS.sub(lambda found: json.dumps(found.group())[1:-1], text)


def markdown_inline(text: str) -> str:
    """Text inside a line or table cell of Markdown: neither structure nor tags. An underscore inside a word means nothing."""
    marked = _MARKUP.sub(lambda found: f"\\{found.group()}", one_line(text))
    plain = _WORD.sub("_", marked).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _START.sub(lambda found: f"{found[1]}{found[2]}\\{found[3]}" if found[3] else f"{found[1]}\\{found[2]}", plain)


def markdown_code(text: str, language: str = "") -> str:
    """A fenced block that its content cannot end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(text).strip()}\n{fence}"


def _escape(found: re.Match[str]) -> str:
    code = ord(found.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
