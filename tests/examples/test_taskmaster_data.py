"""The running example's data: splits share nothing, targets are right, files are what the generator writes."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.examples.reading import generator_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "taskmaster"
SUITES = ROOT / "mcp_server" / "suites"
SPLITS = ("train", "dev", "test")
PAIRS = [("train", "dev"), ("train", "test"), ("dev", "test")]
SCHEMA: dict[str, dict[str, type]] = {
    "create_task": {"title": str, "due": str, "priority": str},
    "update_task": {"id": int, "title": str, "due": str, "priority": str},
    "complete_task": {"id": int},
    "list_tasks": {"status": str, "due": str, "priority": str},
    "delete_task": {"id": int},
}
REQUIRED = {"create_task": {"title"}, "update_task": {"id"}, "complete_task": {"id"}, "delete_task": {"id"}, "list_tasks": set()}


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return generator_of(EXAMPLE)


def read(name: str, split: str) -> list[dict[str, Any]]:
    suite = {"tools": "task_api_tools", "persona": "taskmaster_persona"}[name]
    file = EXAMPLE / "data" / f"{name}_train.jsonl" if split == "train" else SUITES / suite / f"{split}.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def calls(split: str) -> list[dict[str, Any]]:
    return [json.loads(row["reply"]) for row in read("tools", split)]


def wording(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((EXAMPLE / "wording" / f"{name}.yaml").read_text(encoding="utf-8"))
    return loaded


def by_split(node: Any, split: str) -> set[str]:
    """Every string under a key of that split's name, anywhere in a wording file."""
    if isinstance(node, list):
        return set().union(*(by_split(item, split) for item in node))
    if not isinstance(node, dict):
        return set()
    found = strings(node[split]) if split in node else set()
    return found.union(*(by_split(value, split) for key, value in node.items() if key not in SPLITS))


def strings(node: Any) -> set[str]:
    if isinstance(node, str):
        return {node} if node else set()
    return set().union(*(strings(item) for item in (node.values() if isinstance(node, dict) else node)))


def test_the_files_on_disk_are_what_the_generator_writes(generator: ModuleType) -> None:
    stale = [path.name for path, text in generator.files().items() if path.read_text(encoding="utf-8") != text]
    assert stale == []


def test_split_sizes_are_the_documented_ones() -> None:
    sizes = {(name, split): len(read(name, split)) for name in ("tools", "persona") for split in SPLITS}
    assert sizes == {
        ("tools", "train"): 1000, ("tools", "dev"): 100, ("tools", "test"): 200,
        ("persona", "train"): 200, ("persona", "dev"): 40, ("persona", "test"): 100,
    }  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["tools", "persona", "mixed"])
def test_splits_share_no_wording_and_no_topic(name: str, pair: tuple[str, str]) -> None:
    words = wording(name)
    first, second = by_split(words, pair[0]), by_split(words, pair[1])
    assert first & second == set()
    assert name == "mixed" or (first and second)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("field", ["title", "due", "id"])
def test_splits_share_no_title_date_or_id(field: str, pair: tuple[str, str]) -> None:
    first, second = ({c["arguments"][field] for c in calls(split) if field in c["arguments"]} for split in pair)
    assert first and second
    assert first & second == set()


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("name", ["tools", "persona"])
def test_splits_share_no_prompt(name: str, pair: tuple[str, str]) -> None:
    first, second = ({row["user"] for row in read(name, split)} for split in pair)
    assert first & second == set()


@pytest.mark.parametrize("split", SPLITS)
def test_every_target_is_a_legal_call(split: str) -> None:
    for call in calls(split):
        assert set(call) == {"name", "arguments"}
        fields, given = SCHEMA[call["name"]], call["arguments"]
        assert set(given) >= REQUIRED[call["name"]] and set(given) <= set(fields)
        assert all(type(value) is fields[key] for key, value in given.items())
        assert call["name"] != "update_task" or len(given) > 1
        assert given.get("priority", "low") in {"low", "medium", "high"}
        assert given.get("status", "open") in {"open", "done"}
        assert datetime.date.fromisoformat(given.get("due", "2026-01-01")).year == 2026


@pytest.mark.parametrize("split", SPLITS)
def test_every_argument_can_be_read_off_the_request(split: str) -> None:
    months = [datetime.date(2026, m, 1).strftime("%B") for m in range(1, 13)]
    for row in read("tools", split):
        given, text = json.loads(row["reply"])["arguments"], row["user"]
        if "title" in given:
            assert given["title"] in text or given["title"][0].lower() + given["title"][1:] in text
        if "id" in given:
            assert re.search(rf"\b{given['id']}\b", text)
        if "due" in given:
            day = datetime.date.fromisoformat(given["due"])
            assert given["due"] in text or (months[day.month - 1] in text and re.search(rf"\b{day.day}(st|nd|rd|th)?\b", text))
        for field in ("priority", "status"):
            assert given.get(field, "") in text.lower()


def test_training_sees_every_month_and_every_day_of_the_month(generator: ModuleType) -> None:
    dates = generator.dates("train")
    assert {month for month, _ in dates} == set(range(1, 13))
    assert {day for _, day in dates} == set(range(1, 32))


def test_replayed_prompts_are_not_test_prompts() -> None:
    replay = [json.loads(line) for line in (EXAMPLE / "data" / "replay.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = {row["user"] for row in replay if "user" in row}
    held_out = {row["user"] for name in ("tools", "persona") for split in ("dev", "test") for row in read(name, split)}
    assert seen & (held_out | set(wording("chat")["neutral"])) == set()
    assert {row["kind"] for row in replay} == {"chat", "coach", "api", "text"}
