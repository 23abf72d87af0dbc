"""People's own prompts and expected answers: one JSON object a line, read as data and never as code.

{"prompt": "2 + 2 =", "expected": "4"}
{"messages": [{"role": "user", "content": "Add milk"}], "expected": {"name": "add", "item": "milk"}, "match": "json"}
{"prompt": "Which is a fruit?", "choices": ["apple", "chair"], "expected": "apple"}

prompt | messages   the question; `system` may stand beside a prompt; a chat template is used where the model has one
expected            the answer, or a list of answers of which one is enough (under json a list is itself the answer)
match               exact (default), contains, regex, json, choice; a table under `expected` means json, `choices` mean choice
choices             the answers to choose from, by the likelihood of each; `expected` is one of them or its number from 0
id, split           optional; a file that says dev and test keeps that split
max_tokens, stop    optional: where a reply ends, beside the model's own end
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from mcp_server.errors import Malformed, NotFound, did_you_mean
from mcp_server.schemas.base import Frozen
from mcp_server.schemas.faults import first_fault

DATA: Final = (".jsonl", ".ndjson")
MAX_LINES: Final = 50_000
MAX_BYTES: Final = 64 << 20
MAX_CHARACTERS: Final = 1_000_000
"""Of a line: more than any model's window holds."""
LONGEST_TOKEN: Final = 24
"""Bytes of a token, more than those of running text have in any vocabulary."""
Split = Literal["dev", "test"]
Match = Literal["exact", "contains", "regex", "json", "choice"]
FORMAT: Final = 'a line is {"prompt": "…", "expected": "…"}; match may be exact, contains, regex, json or choice'


class Message(Frozen):
    role: Literal["system", "user", "assistant"]
    content: str


class Row(Frozen):
    """One line, as it was written."""

    id: str | int | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    system: str | None = None
    expected: Any = None
    match: Match | None = None
    choices: list[str] | None = Field(default=None, min_length=2)
    split: Split | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    stop: str | list[str] | None = None


class Example(Frozen):
    """One question. `expected` holds the answers of which one is enough; under json each is JSON text, under choice an index."""

    id: str
    messages: list[Message]
    expected: list[str]
    match: Match
    choices: list[str] = Field(default_factory=list)
    split: Split | None = None
    max_tokens: int
    stop: list[str] = Field(default_factory=list)

    @property
    def chosen(self) -> int:
        """Index of the right choice."""
        return int(self.expected[0])


def read_data(file: Path) -> list[Example]:
    """Every example of a file. Raises `NotFound`, or `Malformed` with the line and the field that is wrong."""
    if not file.is_file():
        raise NotFound(f"there is no data file {file}", "give the path of a .jsonl file")
    if file.stat().st_size > MAX_BYTES:
        raise Malformed(f"{file} has {file.stat().st_size:,} bytes, {MAX_BYTES:,} is the most", "measure a part of it")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise Malformed(f"{file} is no text in UTF-8: {error.reason} at byte {error.start}", "convert it to UTF-8") from error
    found: list[Example] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        example = _example(f"{file}, line {number}", line, number)
        if example.id in seen:
            raise Malformed(
                f"{file}, line {number}: id {example.id!r} stands on line {seen[example.id]} as well",
                "give every line its own id",
            )
        seen[example.id] = number
        found.append(example)
    if not found:
        raise Malformed(f"{file} holds no line", FORMAT)
    if len(found) > MAX_LINES:
        raise Malformed(f"{file} has {len(found):,} lines, {MAX_LINES:,} is the most", "measure a part of it")
    return found


def of_split(examples: list[Example], split: Split | None) -> list[Example]:
    """Those of a split: as the file says, else every second line is dev. Null is the whole file."""
    if split is None:
        return examples
    if any(example.split for example in examples):
        return [example for example in examples if example.split in (split, None)]
    if len(examples) < 2:
        return examples
    return [example for number, example in enumerate(examples) if (number % 2 == 0) == (split == "dev")]


def _no_number(word: str) -> None:
    """Python's reader takes them, JSON has none, and no reply equals NaN."""
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text} is too large a number")
    return number


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python's reader keeps the last of two values under one name; whoever wrote both meant something else."""
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} stands twice in one object")
    return dict(pairs)


def _strict_json(text: str) -> Any:
    """Raises `ValueError` for what Python's reader takes and JSON does not have, and for names that stand twice."""
    return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_once)


def _example(where: str, line: str, number: int) -> Example:
    if len(line) > MAX_CHARACTERS:
        raise Malformed(f"{where} has {len(line):,} characters, {MAX_CHARACTERS:,} is the most", "give shorter prompts")
    try:
        raw = _strict_json(line)
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Malformed(f"{where} holds half a character (\\ud800 to \\udfff alone)", "write whole characters") from error
    except RecursionError as error:
        raise Malformed(f"{where} is nested too deeply", FORMAT) from error
    except ValueError as error:
        whole = "; each line is an object of its own, not part of one" if line.strip() in ("[", "{") else ""
        raise Malformed(f"{where} is no JSON: {error}{whole}", FORMAT) from error
    if not isinstance(raw, dict):
        raise Malformed(f"{where} holds {_kind(raw)}, not an object", FORMAT)
    for key in raw:
        if key not in Row.model_fields and (near := did_you_mean(str(key), Row.model_fields, 1)):
            raise Malformed(f"{where}: there is no field {key!r}.{near}", FORMAT)
    try:
        row = Row.model_validate({key: value for key, value in raw.items() if key in Row.model_fields})
    except ValidationError as error:
        raise Malformed(f"{where}: {first_fault(error, Row)}", FORMAT) from error
    if (row.prompt is None and row.messages is None) or row.expected is None:
        _name_what_is_there(where, raw, row)
    match = row.match or ("choice" if row.choices else "json" if isinstance(row.expected, dict) else "exact")
    expected = _expected(where, row, match)
    return Example(
        id=str(row.id) if row.id is not None else f"line {number}",
        messages=_messages(where, row),
        expected=expected,
        match=match,
        choices=row.choices or [],
        split=row.split,
        max_tokens=_max_tokens(where, row, expected, match),
        stop=_stop(where, row, expected, match),
    )


def _name_what_is_there(where: str, raw: dict[str, Any], row: Row) -> None:
    """Files of other tools call the two fields otherwise (question and answer, instruction and output). Raises `Malformed` where
    a field is missing and others stand there that we do not read.
    """
    missing = "expected" if row.expected is None else "prompt"
    if others := [str(key) for key in raw if key not in Row.model_fields]:
        listed = ", ".join(repr(key) for key in others[:6])
        raise Malformed(f"{where}: {missing} is missing, found {listed}", f"rename the fields; {FORMAT}")


def _messages(where: str, row: Row) -> list[Message]:
    if (row.prompt is None) == (row.messages is None):
        found = "neither" if row.prompt is None else "both"
        raise Malformed(f"{where}: one of prompt and messages is needed, found {found}", FORMAT)
    if row.messages is not None:
        if row.system is not None:
            raise Malformed(f"{where}: system stands beside messages", "write it as the first of the messages")
        if row.messages[-1].role == "assistant":
            raise Malformed(f"{where}: messages end with the assistant's", "move its text to expected")
        if row.messages[-1].role != "user" or not row.messages[-1].content.strip():
            raise Malformed(f"{where}: messages end without a user's text", "let the last of the messages be the question")
        return row.messages
    if not (row.prompt or "").strip():
        raise Malformed(f"{where}: prompt is empty", FORMAT)
    system = [Message(role="system", content=row.system)] if row.system is not None else []
    return [*system, Message(role="user", content=row.prompt or "")]


def _expected(where: str, row: Row, match: Match) -> list[str]:
    value = row.expected
    if value is None or value == "" or (value == [] and match != "json"):
        raise Malformed(f"{where}: expected is {'missing' if value is None else 'empty'}", FORMAT)
    if match == "choice":
        return [_choice(where, row)]
    if row.choices:
        raise Malformed(
            f"{where}: choices stand beside match {match}, which does not read them", "match choice, or leave them out"
        )
    if match == "json":
        return [_json_text(where, value)]
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, dict | list) or one is None:
            raise Malformed(f"{where}: expected is {_kind(one)} under match {match}", "write text, or match json")
    texts = [one if isinstance(one, str) else json.dumps(one) for one in values]
    if match == "regex":
        for text in texts:
            try:
                re.compile(text)
            except (re.error, OverflowError, RecursionError) as error:
                raise Malformed(f"{where}: expected is no regular expression: {error}", "see Python's re") from error
    if any(not text.strip() for text in texts):
        raise Malformed(f"{where}: expected holds an empty answer", FORMAT)
    return texts


def _choice(where: str, row: Row) -> str:
    if not row.choices:
        raise Malformed(f"{where}: choices is missing under match choice", 'give "choices": ["…", "…"]')
    if len(set(row.choices)) < len(row.choices) or not all(choice.strip() for choice in row.choices):
        raise Malformed(f"{where}: choices are equal to each other, or empty", "give each choice a text of its own")
    if isinstance(row.expected, int) and not isinstance(row.expected, bool):
        if not 0 <= row.expected < len(row.choices):
            raise Malformed(f"{where}: expected is {row.expected}, there are {len(row.choices)} choices from 0", FORMAT)
        return str(row.expected)
    if row.expected not in row.choices:
        raise Malformed(f"{where}: expected is {row.expected!r}, which is none of the choices", "copy one of them, or its number")
    return str(row.choices.index(row.expected))


def _json_text(where: str, value: Any) -> str:
    """A string that is JSON stands for what it says."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        _strict_json(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{where}: expected is no JSON: {error}", "write the value itself, or JSON as text") from error
    return value


def _max_tokens(where: str, row: Row, expected: list[str], match: Match) -> int:
    """Raises `Malformed` where not even the shortest answer fits, which would count every model wrong."""
    most = row.max_tokens or _room(expected, match)
    shortest = min(len(text.encode()) for text in expected)
    if match in ("exact", "contains", "json") and shortest > most * LONGEST_TOKEN:
        given = "max_tokens is" if row.max_tokens else "the most tokens of a reply are"
        raise Malformed(f"{where}: expected has {shortest:,} bytes, {given} {most}", "give more max_tokens, or a shorter answer")
    return most


def _room(expected: list[str], match: Match) -> int:
    """Tokens for a reply: twice the longest answer at three bytes a token, and more where the answer stands inside a text."""
    longest = max(len(text.encode()) for text in expected)
    return min(1024, max(128 if match in ("contains", "regex") else 32, 2 * longest // 3 + 16))


def _stop(where: str, row: Row, expected: list[str], match: Match) -> list[str]:
    """Raises `Malformed` for a text that ends a reply before the answer is whole."""
    if row.stop is not None:
        stops = [row.stop] if isinstance(row.stop, str) else list(row.stop)
        if not all(stops):
            raise Malformed(f"{where}: stop holds an empty text", "leave it out")
        cuts = [stop for stop in stops if match in ("exact", "contains") and all(stop in text for text in expected)]
        if cuts:
            raise Malformed(f"{where}: stop is {cuts[0]!r}, which stands in the expected answer", "stop at another text")
        return stops
    return ["\n"] if match == "exact" and not any("\n" in text for text in expected) else []


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
