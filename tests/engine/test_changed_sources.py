"""A source that is edited during a merge is noticed, also when its size and time of modification are put back."""

import os

import pytest

from mcp_server.engine.journal import InputFile, Journal
from mcp_server.errors import InputChanged
from mcp_server.system.hashes import file_sha256


def edited_in_place(path):
    before = path.stat()
    with path.open("r+b") as file:
        file.write(b"Y")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_a_copy(path):
    before = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"Z" * before.st_size)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("change", [edited_in_place, replaced_by_a_copy])
def test_an_edit_with_its_time_put_back_is_noticed(change, tmp_path):
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"X" * 100)
    journal = Journal(tmp_path / "journal.jsonl", "fingerprint", 1, [InputFile.of(source, "header")])
    journal.check_inputs()
    change(source)
    with pytest.raises(InputChanged, match="the file system notes a change"):
        journal.check_inputs()
    journal.close()


def moved_away_and_back(path):
    path.rename(path.with_name("moved"))
    path.with_name("moved").rename(path)


@pytest.mark.parametrize("change", [edited_in_place, replaced_by_a_copy, moved_away_and_back])
def test_a_merge_that_is_resumed_after_it_begins_anew(change, tmp_path):
    """Whether the bytes are the same cannot be told, so nothing of what was computed is mixed with what will be."""
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"X" * 100)
    journal = Journal(tmp_path / "journal.jsonl", "fingerprint", 1, [InputFile.of(source, "header")])
    journal.computed(0, {})
    journal.on_disk([0])
    journal.close()
    again = Journal(tmp_path / "journal.jsonl", "fingerprint", 1, [InputFile.of(source, "header")])
    assert again.resumes
    again.close()
    change(source)
    anew = Journal(tmp_path / "journal.jsonl", "fingerprint", 1, [InputFile.of(source, "header")])
    assert not anew.resumes
    anew.check_inputs()
    anew.close()
    source.write_bytes(b"X" * 101)
    with pytest.raises(InputChanged, match="is not the file this merge began with"):
        Journal(tmp_path / "journal.jsonl", "fingerprint", 1, [InputFile.of(source, "header")])


@pytest.mark.parametrize("change", [edited_in_place, replaced_by_a_copy])
def test_a_remembered_hash_is_not_believed_after_it(change, store, tmp_path):
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"X" * 100)
    first = file_sha256(source)
    change(source)
    assert file_sha256(source) != first
    assert file_sha256(source) == file_sha256(source, remembered=False)
