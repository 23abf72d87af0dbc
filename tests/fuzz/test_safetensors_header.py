"""The header parser against hostile files: it reads what is sound and refuses the rest in our words, fast, in little memory."""

import json
import os
import struct
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import Malformed
from mcp_server.formats.safetensors import MAX_HEADER_BYTES, read_header

NUMBERS = st.one_of(
    st.integers(-2, 40), st.sampled_from([2**31, 2**62, 2**63, 2**64, -(2**63)]), st.floats(), st.booleans(), st.none()
)
OFFSETS = st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS, st.text(max_size=3))
SHAPES = st.one_of(st.lists(NUMBERS, max_size=18), NUMBERS)
DTYPES = st.one_of(st.sampled_from(["BF16", "F32", "F4", "I64", "BOOL", "bf16", "", "F99"]), NUMBERS)
ENTRIES = st.one_of(
    st.fixed_dictionaries({"dtype": DTYPES, "shape": SHAPES, "data_offsets": OFFSETS}),
    st.dictionaries(st.text(max_size=8), NUMBERS, max_size=3),
    NUMBERS,
)
HEADERS = st.dictionaries(st.one_of(st.text(max_size=8), st.sampled_from(["__metadata__", "a", "b"])), ENTRIES, max_size=5)


def file_of(folder, header: bytes, data: bytes, length: int | None = None):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def read_or_refuse(path) -> bool:
    """True when it was read. Anything but our own refusal escapes."""
    try:
        header = read_header(path)
    except Malformed:
        return False
    assert header.data_start + sum(t.nbytes for t in header.tensors.values()) == header.file_bytes
    return True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("headers")


@given(st.binary(max_size=300))
def test_any_bytes(folder, data):
    path = folder / "model.safetensors"
    path.write_bytes(data)
    read_or_refuse(path)


@given(HEADERS, st.binary(max_size=64), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_any_table_in_the_form_of_a_header(folder, header, data, length):
    read_or_refuse(file_of(folder, json.dumps(header).encode(), data, length))


@given(
    st.lists(st.tuples(st.sampled_from(["BF16", "F32", "I8"]), st.lists(st.integers(0, 4), max_size=3)), max_size=6), st.data()
)
def test_a_sound_file_is_read_and_one_with_any_byte_of_its_header_changed_is_read_or_refused(folder, tensors, draw):
    header: dict[str, Any] = {}
    position = 0
    for n, (dtype, shape) in enumerate(tensors):
        size = {"BF16": 2, "F32": 4, "I8": 1}[dtype]
        for dimension in shape:
            size *= dimension
        header[f"t{n}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    assert read_or_refuse(file_of(folder, text, bytes(position)))
    at = draw.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + bytes([draw.draw(st.integers(0, 255))]) + text[at + 1 :]
    read_or_refuse(file_of(folder, changed, bytes(position)))
    if position:
        assert not read_or_refuse(file_of(folder, text, bytes(position - 1)))
        assert not read_or_refuse(file_of(folder, text, bytes(position + 1)))


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "I8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"", "too few"),
        (b'{"a": ' + json.dumps(entry(0, 4)).encode() + b', "a": ' + json.dumps(entry(4, 8)).encode() + b"}", "twice"),
        (json.dumps({"a": entry(0, 6), "b": entry(4, 8)}).encode(), "inside the tensor before it"),
        (json.dumps({"a": entry(0, 2), "b": entry(4, 8)}).encode(), "belong to no tensor"),
        (json.dumps({"a": entry(0, 9)}).encode(), "truncated"),
        (json.dumps({"a": entry(0, 4)}).encode(), "belong to no tensor"),
        (json.dumps({"a": entry(0, 8, [2**40, 2**40])}).encode(), "impossible shape"),
        (json.dumps({"a": entry(0, 8, [1] * 40 + [8])}).encode(), "impossible shape"),
        (json.dumps({"a": entry(0, 8, [3])}).encode(), "its offsets hold 8"),
        (json.dumps({"a": entry(0, 8, [True])}).encode(), "impossible shape"),
        (b"[" * 100_000, "JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"}", "not JSON"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not JSON"),
    ],
    ids=[
        "empty",
        "twice",
        "overlap",
        "hole",
        "beyond",
        "rest",
        "absurd",
        "dimensions",
        "size",
        "bool",
        "list",
        "depth",
        "digits",
    ],
)
def test_what_is_refused_is_named(header, says, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8) if header else b"\x00\x01")
    with pytest.raises(Malformed, match=says):
        read_header(path)


def test_a_claimed_length_is_not_believed(tmp_path):
    for length in (MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        path = file_of(tmp_path, b"{}", b"", length)
        tracemalloc.start()
        assert not read_or_refuse(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_a_pipe_a_device_and_a_folder_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "device.safetensors").symlink_to("/dev/zero")
    for name in ("model", "folder", "device"):
        with pytest.raises(Malformed, match=r"regular file|is a folder"):
            read_header(tmp_path / f"{name}.safetensors")


def test_a_name_that_comes_twice_among_a_hundred_thousand_is_found_at_once(tmp_path):
    rows = [b'"%d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}' % (n or 89_999) for n in range(90_000)]
    began = time.monotonic()
    with pytest.raises(Malformed, match="names '89999' twice"):
        read_header(file_of(tmp_path, b"{" + b",".join(rows) + b"}", b""))
    assert time.monotonic() - began < 10, "counting each name anew would take minutes"


READ = """
import re, sys, time
from pathlib import Path
from mcp_server.errors import Malformed
from mcp_server.formats.safetensors import read_header
def peak_bytes():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before, began = peak_bytes(), time.process_time()
try:
    read_header(sys.argv[1])
    said = "read"
except Malformed as error:
    said = error.message.partition(": ")[2]
print(time.process_time() - began, peak_bytes() - before, said)
"""
ROW = b'"%d":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("header", "says"),
    [
        (lambda: b"{" + b",".join(ROW % n for n in range(1_700_000)) + b"}", "values"),
        (lambda: b'{"a":' + b"[" * 99_000_000 + b"}", "values"),
        (lambda: b'{"a":[' + b"{}," * 30_000_000 + b"{}]}", "values"),
        (lambda: b'{"a":' + b"9" * 99_000_000 + b"}", "not JSON"),
        (lambda: b'{"__metadata__":{"a":"' + b"x" * 99_000_000 + b'"}}', "read"),
        (lambda: b'{"__metadata__":{"a":"' + b"\\n" * 49_000_000 + b'"}}', "read"),
        (lambda: b"{" + b",".join(ROW % n for n in range(110_000)) + b"}", "read"),
    ],
    ids=["tensors", "lists", "tables", "digits", "text", "escapes", "as many tensors as are read"],
)
def test_a_header_as_long_as_the_format_allows_takes_seconds_and_bounded_memory(header, says, tmp_path):
    """Read in a process of its own: the time is its processor time, the memory what it grew by."""
    path = file_of(tmp_path, header().ljust(MAX_HEADER_BYTES), b"")
    assert path.stat().st_size == 8 + MAX_HEADER_BYTES
    done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=True)
    seconds, grown, said = done.stdout.split(" ", 2)
    assert says in said
    assert float(seconds) < 5
    assert int(grown) < 1_000_000_000
    print(f"{float(seconds):.2f} s, {int(grown) / 1e6:.0f} MB: {said[:60]}")
