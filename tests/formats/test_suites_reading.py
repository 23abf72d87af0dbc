"""Suites are folders: what their sidecar may say, and what is said about one that is wrong."""

from pathlib import Path

import pytest

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.suites import Suite, content_hash, find_suite, list_suites, read_suite


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "suite.yaml").write_text(text, encoding="utf-8")
    return folder


def test_what_the_sidecar_leaves_out_comes_from_the_folders_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", "metric: acc")
    assert read_suite(folder) == Suite(
        name="mine", title="mine", capability="mine", tasks={"test": ["mine"]}, metric="acc", folder=str(folder)
    )


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match=r"suite\.yaml: unknown field 'metrik'\. Did you mean 'metric'"):
        read_suite(write(tmp_path / "mine", "metrik: acc"))


def test_a_sidecar_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Malformed, match="holds no table but list"):
        read_suite(write(tmp_path / "mine", "[1]"))


def test_a_users_folder_adds_suites_to_the_shipped_ones(tmp_path: Path) -> None:
    write(tmp_path / "mine", "capability: rhyme")
    found = list_suites([tmp_path])
    assert "mine" in found
    assert {"perplexity", "task_api_tools", "taskmaster_persona"} <= set(found)


def test_a_users_suite_may_not_take_a_shipped_name(tmp_path: Path) -> None:
    write(tmp_path / "perplexity", "metric: acc")
    with pytest.raises(Malformed, match="two suites are called 'perplexity'"):
        list_suites([tmp_path])


def test_a_suite_is_found_by_name_by_capability_and_by_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "mine", "capability: rhyme")
    assert find_suite("mine", [tmp_path]) == find_suite("rhyme", [tmp_path]) == find_suite(str(folder)) == read_suite(folder)


def test_any_other_name_is_taken_for_a_task_of_lm_eval() -> None:
    assert find_suite("arc_easy") == Suite(
        name="arc_easy", capability="arc_easy", tasks={"test": ["arc_easy"], "dev": ["arc_easy"]}
    )


def test_a_split_that_a_suite_lacks_is_not_replaced_by_another(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path / "mine", "metric: acc"))
    assert suite.task_names("test") == ["mine"]
    with pytest.raises(NotFound, match="has no dev split; it has test"):
        suite.task_names("dev")


def test_a_changed_prompt_makes_another_suite(tmp_path: Path) -> None:
    suite = read_suite(write(tmp_path / "mine", "metric: acc"))
    before = content_hash(suite)
    (tmp_path / "mine" / "test.jsonl").write_text("{}", encoding="utf-8")
    assert content_hash(suite) != before


def test_a_text_file_is_a_perplexity_suite_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Some prose.", encoding="utf-8")
    found = find_suite(str(file))
    shipped = find_suite("perplexity")
    assert found == shipped.model_copy(
        update={
            "name": "text_notes", "title": "Perplexity of notes.txt", "capability": "notes.txt", "text": str(file), "note": "",
        }
    )  # fmt: skip
    before = content_hash(found)
    file.write_text("Other prose.", encoding="utf-8")
    assert content_hash(found) != before


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"none\.txt does not exist"):
        find_suite(str(tmp_path / "none.txt"))
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(Malformed, match=r"empty\.txt holds no text"):
        find_suite(str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(Malformed, match=r"latin\.txt is no text in UTF-8: .* at byte 2"):
        find_suite(str(tmp_path / "latin.txt"))
