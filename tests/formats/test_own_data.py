"""People's own prompts: every kind of line that is taken, and every wrong one named by its line and field."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.own_data import Example, Message, of_split, read_data
from mcp_server.formats.suites import find_suite


def written(tmp_path: Path, *lines: Any) -> Path:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), encoding="utf-8")
    return file


def test_a_line_needs_a_prompt_and_an_answer(tmp_path: Path) -> None:
    assert read_data(
        written(tmp_path, {"prompt": "2 + 2 =", "expected": 4}, "", {"id": 7, "prompt": "a", "expected": ["b", "c"]})
    ) == [
        Example(
            id="line 1",
            messages=[Message(role="user", content="2 + 2 =")],
            expected=["4"],
            match="exact",
            max_tokens=32,
            stop=["\n"],
        ),
        Example(
            id="7", messages=[Message(role="user", content="a")], expected=["b", "c"], match="exact", max_tokens=32, stop=["\n"]
        ),
    ]


@pytest.mark.parametrize(
    ("line", "match", "expected"),
    [
        ({"prompt": "a", "expected": {"n": 1}}, "json", ['{"n": 1}']),
        ({"prompt": "a", "expected": [1, 2], "match": "json"}, "json", ["[1, 2]"]),
        ({"prompt": "a", "expected": '{"n": 1}', "match": "json"}, "json", ['{"n": 1}']),
        ({"prompt": "a", "choices": ["x", "y"], "expected": "y"}, "choice", ["1"]),
        ({"prompt": "a", "choices": ["x", "y"], "expected": 0}, "choice", ["0"]),
        ({"prompt": "a", "expected": "b", "match": "contains"}, "contains", ["b"]),
        ({"prompt": "a", "expected": "b+", "match": "regex", "source": "of no meaning here"}, "regex", ["b+"]),
    ],
)
def test_the_kind_of_match_is_given_or_follows_from_the_answer(
    line: dict[str, Any], match: str, expected: list[str], tmp_path: Path
) -> None:
    (found,) = read_data(written(tmp_path, line))
    assert (found.match, found.expected) == (match, expected)


def test_messages_and_a_system_text_are_kept(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    first, second = read_data(
        written(tmp_path, {"messages": turns, "expected": "Hi"}, {"system": "Be brief.", "prompt": "Hello", "expected": "Hi"})
    )
    assert first.messages == second.messages == [Message.model_validate(turn) for turn in turns]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"prompt": "a", "expected": "b"}, "not json"], ("line 2", "no JSON")),
        (["[1, 2]"], ("line 1", "a list")),
        ([{"prompt": "a"}], ("line 1", "expected is missing")),
        ([{"prompt": "a", "expected": ""}], ("line 1", "expected is empty")),
        ([{"prompt": "a", "expcted": "b"}], ("line 1", "'expcted'", "'expected'")),
        ([{"expected": "b"}], ("line 1", "prompt and messages", "neither")),
        ([{"prompt": 5, "expected": "b"}], ("line 1", "prompt")),
        ([{"prompt": "a", "expected": "b", "match": "exactly"}], ("line 1", "match", "exactly")),
        ([{"prompt": "a", "expected": "(", "match": "regex"}], ("line 1", "expected", "regular expression")),
        ([{"prompt": "a", "expected": "{", "match": "json"}], ("line 1", "expected", "no JSON")),
        ([{"prompt": "a", "choices": ["x", "y"], "expected": "z"}], ("line 1", "'z'", "choices")),
        ([{"prompt": "a", "choices": ["x", "y"], "expected": 2}], ("line 1", "2 choices")),
        ([{"prompt": "a", "expected": "x", "match": "choice"}], ("line 1", "choices is missing")),
        ([{"prompt": "a", "expected": {"n": 1}, "match": "exact"}], ("line 1", "an object", "exact")),
        ([{"id": "x", "prompt": "a", "expected": "b"}, {"id": "x", "prompt": "c", "expected": "d"}], ("line 2", "'x'", "line 1")),
        ([{"messages": [{"role": "user", "text": "a"}], "expected": "b"}], ("line 1", "messages")),
        (['{"prompt": "a", "expected": "b", "expected": "c"}'], ("line 1", "'expected' stands twice")),
        (['{"prompt": "a", "expected": 1e999}'], ("line 1", "1e999 is too large")),
        (["["], ("line 1", "each line is an object of its own")),
        ([{"question": "a", "answer": "b"}], ("line 1", "expected is missing", "'question', 'answer'")),
        ([{"messages": [{"role": "system", "content": "a"}], "expected": "b"}], ("line 1", "without a user's text")),
        ([{"prompt": "a", "expected": "b", "match": "exact", "choices": ["b", "c"]}], ("line 1", "choices", "match exact")),
        ([{"prompt": "a", "expected": "b", "choices": ["b", "b"]}], ("line 1", "choices are equal")),
        ([{"prompt": "a", "expected": "b" * 1_000, "max_tokens": 2}], ("line 1", "1,000 bytes", "max_tokens is 2")),
        ([{"prompt": "a", "expected": "a, b", "stop": ","}], ("line 1", "','", "stands in the expected answer")),
        ([{"prompt": "a", "expected": "b", "stop": ["\n", ""]}], ("line 1", "stop holds an empty text")),
        (
            [{"prompt": "a", "expected": '{"a": 1, "a": 2}', "match": "json"}],
            ("line 1", "expected is no JSON", "'a' stands twice"),
        ),
        ([""], ("no line",)),
    ],
)
def test_a_wrong_line_is_named_with_its_number_and_field(lines: list[Any], said: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(Malformed) as refused:
        read_data(written(tmp_path, *lines))
    assert [word for word in said if word not in refused.value.message] == []


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        read_data(tmp_path / "none.jsonl")
    (tmp_path / "own.jsonl").write_bytes(b'{"prompt": "\xff')
    with pytest.raises(Malformed, match="UTF-8"):
        read_data(tmp_path / "own.jsonl")


def test_splits_are_the_files_or_every_second_line(tmp_path: Path) -> None:
    plain = read_data(written(tmp_path, *({"id": i, "prompt": "a", "expected": "b"} for i in range(5))))
    assert [[e.id for e in of_split(plain, split)] for split in (None, "dev", "test")] == [list("01234"), list("024"), list("13")]
    said = read_data(written(tmp_path, *({"id": s, "prompt": "a", "expected": "b", "split": s} for s in ("test", "dev"))))
    assert [[e.id for e in of_split(said, split)] for split in (None, "dev", "test")] == [["test", "dev"], ["dev"], ["test"]]


def test_a_data_file_is_a_suite_named_after_it(tmp_path: Path) -> None:
    file = written(tmp_path, {"prompt": "a", "expected": "b"})
    found = find_suite(str(file))
    assert (found.name, found.capability, found.data, found.folder) == ("data_own", "own.jsonl", str(file), None)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("task_api_tool", "task_api_tools"),
        ("perplexty", "perplexity"),
        ("taskmaster-persona", "taskmaster_persona"),
        ("nope", "refusals"),
    ],
)
def test_a_name_that_is_no_suite_is_refused_with_the_nearest_of_ours(typed: str, meant: str) -> None:
    with pytest.raises(NotFound) as refused:
        find_suite(typed)
    assert meant in str(refused.value)


@pytest.mark.parametrize("task", ["arc_easy", "mmlu", "gsm8k"])
def test_tasks_and_groups_of_lm_eval_are_found_by_name(task: str) -> None:
    assert find_suite(task).tasks == {"test": [task], "dev": [task]}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "expected": ' + "[" * 5000 + "]" * 5000 + "}", "line 2 is nested too deeply"),
        ('{"prompt": "a", "expected": NaN}', "line 2 is no JSON: NaN is no number of JSON"),
        ('{"prompt": "\\ud800", "expected": "b"}', "line 2 holds half a character"),
        ('{"prompt": "' + "a" * 1_000_000 + '", "expected": "b"}', "line 2 has 1,000,0.. characters, 1,000,000 is the most"),
    ],
    ids=["deep", "nan", "surrogate", "long"],
)
def test_a_line_that_no_model_can_be_asked_is_named(line: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "expected": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(Malformed, match=said):
        read_data(file)
