"""An Ollama Modelfile: the chat template as Ollama's own language writes it, stop tokens and sampling parameters.

Ollama's templates are Go's, a model's are Jinja's. No translation of programs is tried: the Jinja template is rendered on
conversations with marked contents, what stands between the marks is read off, and the result is accepted only when it renders
other conversations to the same text. A template that does more than put text around messages has no such form, and is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

Messages = list[dict[str, str]]
Render = Callable[[Messages, bool], str]
"""(messages, add_generation_prompt) → text, without the token that every text begins with."""
_MARKS: Final = [f"Xq{letter}zX" for letter in "abcdef"]
_QUOTES: Final = '"""'


@dataclass(frozen=True)
class Turns:
    """The text around messages: before and after each role's, before all when no system message is given, before a reply."""

    before: dict[str, str]
    after: dict[str, str]
    without_system: str
    reply: str

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        text = "" if messages and messages[0]["role"] == "system" else self.without_system
        text += "".join(self.before[m["role"]] + m["content"] + self.after[m["role"]] for m in messages)
        return text + (self.reply if add_generation_prompt else "")


def turns_of(render: Render) -> Turns | None:
    """The form that this template has, or None where it has no such form."""
    try:
        found = _read_off(render)
    except Exception:  # noqa: BLE001 - a template is a program of somebody else's, and may raise anything
        return None
    return found if found is not None and _agrees(found, render) else None


def _read_off(render: Render) -> Turns | None:
    system, one, two, three, four, five = _MARKS
    whole = _conversation([system, one, two, three, four, five], system=True)
    gaps = _gaps(render(whole, False), _MARKS)
    ended = _gaps(render(_conversation([system, one, two], system=True), False), [system, one, two])
    alone = _gaps(render(_conversation([one], system=False), False), [one])
    if gaps is None or ended is None or alone is None:
        return None
    before_system, to_user, to_reply, to_next, _, _, after_user = gaps
    after_reply = ended[-1]
    if not to_reply.startswith(after_user) or not to_next.startswith(after_reply):
        return None
    before_user, before_reply = to_next.removeprefix(after_reply), to_reply.removeprefix(after_user)
    if not to_user.endswith(before_user) or not alone[0].endswith(before_user):
        return None
    asked = render(_conversation([one], system=False), True)
    plain = render(_conversation([one], system=False), False)
    if not asked.startswith(plain):
        return None
    return Turns(
        before={"system": before_system, "user": before_user, "assistant": before_reply},
        after={
            "system": to_user[: len(to_user) - len(before_user)],
            "user": after_user,
            "assistant": after_reply,
        },
        without_system=alone[0][: len(alone[0]) - len(before_user)],
        reply=asked.removeprefix(plain),
    )


def _agrees(turns: Turns, render: Render) -> bool:
    words = ["Be brief.", "What is 2 + 2?", "4", "And 3 + 3?", "6", "Thank you"]
    for system in (True, False):
        for count in (1, 2, 3, 5) if not system else (2, 3, 4, 6):
            messages = _conversation(words[:count] if system else words[1 : count + 1], system=system)
            for asked in (True, False):
                if asked and messages[-1]["role"] != "user":
                    continue
                if render(messages, asked) != turns.render(messages, asked):
                    return False
    return True


def _conversation(contents: list[str], *, system: bool) -> Messages:
    roles = (["system"] if system else []) + ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def _gaps(text: str, marks: list[str]) -> list[str] | None:
    found = []
    for mark in marks:
        gap, seen, text = text.partition(mark)
        if not seen:
            return None
        found.append(gap)
    return [*found, text]


def go_template(turns: Turns) -> str:
    """The same in Go's template language."""
    system = turns.before["system"], turns.after["system"]
    lines = f'{{{{- if eq .Role "system" }}}}{_literal(system[0])}{{{{ .Content }}}}{_literal(system[1])}'
    for role in ("user", "assistant"):
        lines += f'{{{{- else if eq .Role "{role}" }}}}{_literal(turns.before[role])}{{{{ .Content }}}}'
        lines += _literal(turns.after[role])
    first = ""
    if turns.without_system:
        first = (
            f'{{{{- if and .Messages (ne (index .Messages 0).Role "system") }}}}{_literal(turns.without_system)}{{{{- end }}}}'
        )
    return f"{first}{{{{- range .Messages }}}}{lines}{{{{- end }}}}{{{{- end }}}}{_literal(turns.reply)}"


def _literal(text: str) -> str:
    """Text that Go writes as it is: as a quoted constant, so that no blank is trimmed and no brace is read."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def modelfile(
    model: str, *, adapter: str | None = None, turns: Turns | None = None, stops: list[str] | None = None,
    generation: dict[str, Any] | None = None,
) -> str:  # fmt: skip
    """`model` and `adapter` are file names beside the Modelfile."""
    lines = [f"FROM ./{model}"]
    if adapter is not None:
        lines.append(f"ADAPTER ./{adapter}")
    if turns is not None and _QUOTES not in (template := go_template(turns)):
        lines.append(f"TEMPLATE {_QUOTES}{template}{_QUOTES}")
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops or []]
    for ours, theirs in (
        ("temperature", "temperature"),
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("repetition_penalty", "repeat_penalty"),
    ):
        value = (generation or {}).get(ours)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            lines.append(f"PARAMETER {theirs} {value}")
    return "\n".join(lines) + "\n"
