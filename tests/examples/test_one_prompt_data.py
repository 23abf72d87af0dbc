"""The one-prompt example: data as the generator writes it, of train wording only, and no answer of the other role in it."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLE = EXAMPLES / "one_prompt"
SUITES = EXAMPLES.parent / "mcp_server" / "suites"


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("one_prompt_rows", EXAMPLE / "make_rows.py")
    assert spec is not None and spec.loader is not None
    before = list(sys.path), set(sys.modules)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before[0]
    for name in set(sys.modules) - before[1]:
        if name in ("make_data", "make_rows"):
            del sys.modules[name]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def data(name: str) -> list[dict[str, Any]]:
    return read(EXAMPLE / "data" / f"{name}.jsonl")


def held_out() -> list[dict[str, Any]]:
    suites = ("task_api_tools", "taskmaster_persona", "taskmaster_mixed")
    return [row for suite in suites for split in ("dev", "test") for row in read(SUITES / suite / f"{split}.jsonl")]


def test_the_files_are_what_the_generator_writes(generator: ModuleType) -> None:
    assert [path.name for path, text in generator.files().items() if path.read_text(encoding="utf-8") != text] == []


def test_what_the_base_said_belongs_to_the_generators_prompts(generator: ModuleType) -> None:
    replay = data("replay")
    assert [{key: value for key, value in row.items() if key not in ("reply", "end")} for row in replay] == generator.prompts()
    both = [{key: row[key] for key in ("user", "reply")} for row in data("tools_both")]
    assert both == [{key: row[key] for key in ("user", "reply")} for row in generator.tools_rows()[1]]
    assert all(row["said"].endswith("\n") and row["said"].strip() for row in data("tools_both"))


def test_neither_adapter_sees_an_answer_of_the_other() -> None:
    coach = re.compile(r"next step:|you've got this", re.I)
    call = re.compile(r'\{\s*"name"')
    seen = {
        name: json.loads((EXAMPLE / "settings" / f"{name}.json").read_text(encoding="utf-8")) for name in ("tools", "persona")
    }
    kinds = {name: set(settings["replay_kinds"]) for name, settings in seen.items()}
    assert kinds["tools"] & {"action", "left_open"} == set() and kinds["persona"] & {"chat", "both", "general"} == set()
    replayed = {name: [row for row in data("replay") if row["kind"] in kinds[name]] for name in kinds}
    assert all(replayed.values())
    assert not [row for row in data("tools") + data("tools_both") + replayed["tools"] if coach.search(json.dumps(row))]
    said = [*(row["reply"] for row in data("persona") + data("replay")), *(row["said"] for row in data("tools_both"))]
    assert not [text for text in said if call.search(text)]


def test_no_prompt_title_or_feeling_of_dev_or_test_is_trained_on(generator: ModuleType) -> None:
    prompts = {row["user"] for name in ("tools", "tools_both", "persona", "replay") for row in data(name)}
    assert prompts & {row["user"] for row in held_out()} == set()
    titles = [
        {json.loads(text)["arguments"].get("title") for text in texts} - {None}
        for texts in (
            [row["reply"] for name in ("tools", "tools_both") for row in data(name)],
            [row.get("call") or row["reply"] for row in held_out() if row.get("call") or row.get("reply", "").startswith("{")],
        )
    ]
    assert all(titles) and titles[0] & titles[1] == set()
    mixed = yaml.safe_load((EXAMPLES / "taskmaster" / "wording" / "mixed.yaml").read_text(encoding="utf-8"))
    rng, held = random.Random(5), generator.held_out("feelings", "mixed")
    drawn = {generator.reading(generator.words()["feelings"], held, rng) for _ in range(2000)}
    said = {*drawn, *(row["user"] for name in ("tools_both", "persona", "replay") for row in data(name))}
    assert not [
        text for text in said for held in (*mixed["feelings"]["dev"], *mixed["feelings"]["test"]) if text.startswith(held)
    ]


def test_no_topic_step_or_frame_of_dev_or_test_is_trained_on(generator: ModuleType) -> None:
    theirs, own = generator.earlier("persona"), generator.words()
    held = {word for split in ("dev", "test") for topic in theirs["topics"][split] for word in topic}
    assert {word for topic in own["topics"] for word in topic} & held == set()
    frames = {form for split in ("dev", "test") for forms in theirs["frames"][split].values() for form in forms}
    assert {form for forms in own["frames"].values() for form in forms} & frames == set()


def test_no_new_phrase_is_a_phrase_of_dev_or_test(generator: ModuleType) -> None:
    for section, patterns in generator.words()["requests"].items():
        drawn = {phrase for pattern in patterns for phrase in generator.alternatives(pattern)}
        allowed = drawn - generator.held_out(section)
        assert len(allowed) >= 10, section
    made = generator.MoreRequests(5)
    assert {made.pick("create") for _ in range(400)} & generator.held_out("create") == set()


def test_alternatives_are_every_reading_of_a_pattern(generator: ModuleType) -> None:
    assert generator.alternatives("[see|show] my [open |]list") == [
        "see my open list", "see my list", "show my open list", "show my list",
    ]  # fmt: skip


def test_half_of_the_prompts_are_contracted_as_people_write_them(generator: ModuleType) -> None:
    draw = random.Random(3)
    written = [generator.contracted("I am late. I will do it, it is not hard", draw) for _ in range(200)]
    assert set(written) == {"I am late. I will do it, it is not hard", "I'm late. I'll do it, it isn't hard"}
    assert 70 < written.count("I'm late. I'll do it, it isn't hard") < 130


def test_both_adapters_train_under_the_prompt_of_the_suite(generator: ModuleType) -> None:
    prompt = generator.words()["system"]
    assert {row["system"] for row in read(SUITES / "taskmaster_mixed" / "test.jsonl")} == {prompt}
    for name in ("persona", "tools"):
        assert json.loads((EXAMPLE / "settings" / f"{name}.json").read_text(encoding="utf-8"))["system"] == prompt
