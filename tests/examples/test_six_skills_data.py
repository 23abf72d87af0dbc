"""The six skills' data: as the generator writes it, no phrasing in two splits, and nobody's replay holds a neighbour's answer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mcp_server.formats.own_data import Example, of_split, read_data
from tests.examples.reading import generator_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "six_skills"
NAMES = ("terse", "verbose", "lights", "home", "notes", "refuse")
SPLITS = ("train", "dev", "test")
MARKS = ("What a lovely question", '{"', "@", "I cannot advise on medicine")


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return generator_of(EXAMPLE)


def data(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLE / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def suite(name: str, split: Any) -> list[Example]:
    return of_split(read_data(EXAMPLE / "suites" / f"{name}.jsonl"), split)


def test_the_files_are_what_the_generator_writes(generator: ModuleType) -> None:
    assert [path.name for path, text in generator.files().items() if path.read_text(encoding="utf-8") != text] == []


@pytest.mark.parametrize("name", NAMES)
def test_each_suite_is_read_by_the_tool_and_has_at_least_a_hundred_test_prompts(name: str) -> None:
    assert len(suite(name, "test")) >= 100
    assert len(suite(name, "dev")) >= 60
    assert {example.match for example in suite(name, None)} == {"exact"}


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_of_a_suite_was_learned_or_replayed(name: str) -> None:
    seen = {row["user"] for other in NAMES for row in data(other)} | {row["user"] for row in data("replay")}
    dev, test = ({example.messages[-1].content for example in suite(name, split)} for split in ("dev", "test"))
    assert (dev & seen, test & seen, dev & test) == (set(), set(), set())


def test_no_template_and_nothing_that_is_dealt_out_stands_in_two_splits(generator: ModuleType) -> None:
    words = generator.WORDS
    lists = [*words["facts"].values(), *words["home"].values(), words["notes"], words["refuse"]]
    lists += [words["notes"]["names"], words["refuse"]["drugs"]]
    for held in lists:
        for one, other in itertools.combinations(SPLITS, 2):
            assert set(held[one]) & set(held[other]) == set(), held[one]


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_learned_once(name: str) -> None:
    users = [row["user"] for row in data(name)]
    assert len(set(users)) == len(users)


def test_the_styles_answer_the_same_questions_in_opposite_ways() -> None:
    terse, verbose = ({e.messages[-1].content: e.expected[0] for e in suite(name, "test")} for name in ("terse", "verbose"))
    shared = terse.keys() & verbose.keys()
    assert len(shared) >= 100
    for asked in shared:
        assert verbose[asked].endswith(f" is {terse[asked]}.")
        assert len(verbose[asked].split()) > 5 * len(terse[asked].split())


def test_lights_and_home_overlap_in_switching_and_in_nothing_else() -> None:
    def kinds(name: str) -> set[tuple[str, str]]:
        calls = [json.loads(row["reply"]) for row in data(name)]
        return {(next(iter(call)), "number" if isinstance(call["set"], int) else call["set"]) for call in calls}

    assert kinds("lights") & kinds("home") == {("light", "on"), ("light", "off")}
    assert kinds("lights") - kinds("home") == {("light", "number")}
    both = {row["user"] for row in data("lights")} & {row["user"] for row in data("home")}
    assert 0.3 * len(data("lights")) < len(both) < 0.8 * len(data("lights"))


def test_replay_belongs_to_the_generators_prompts_and_holds_no_skills_answer(generator: ModuleType) -> None:
    replay = data("replay")
    assert [{"kind": row["kind"], "user": row["user"]} for row in replay] == generator.prompts()
    assert [row["reply"] for row in replay if row["reply"].startswith(MARKS)] == []


@pytest.mark.parametrize(("name", "own"), [("notes", "notes"), ("refuse", "medicine")])
def test_nobody_replays_prompts_of_its_own(name: str, own: str) -> None:
    settings = json.loads((EXAMPLE / "settings" / f"{name}.json").read_text(encoding="utf-8"))
    assert {row["kind"] for row in data("replay")} - set(settings["replay_kinds"]) == {own}
