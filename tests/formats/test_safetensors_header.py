"""A header is refused, with its fault named, before any number in it is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import Malformed, NotFound
from mcp_server.formats.safetensors import Header, TensorInfo, read_header


def write(path: Path, entries: Any, data: int, *, length: int | None = None) -> Path:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + bytes(data))
    return path


def entry(begin: int, end: int, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_a_sound_header_is_read_whole(tmp_path: Path) -> None:
    entries = {"__metadata__": {"format": "pt"}, "a": entry(0, 12, [2, 3], "F16"), "b": entry(12, 12, [0, 4], "F32")}
    header = read_header(write(tmp_path / "x", entries, 12))
    size = len(json.dumps(entries).encode())
    expected = {"a": TensorInfo("F16", (2, 3), 0, 12), "b": TensorInfo("F32", (0, 4), 12, 12)}
    assert header == Header(expected, {"format": "pt"}, 8 + size, 8 + size + 12, header.sha256)
    assert (header.tensors["a"].elements, header.tensors["a"].nbytes, len(header.sha256)) == (6, 12, 64)


def test_the_reference_implementation_agrees(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.float16)}, tmp_path / "x", metadata={"k": "v"})
    header = read_header(tmp_path / "x")
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {"a": ("F32", (2, 3)), "b": ("F16", (5,))}


@pytest.mark.parametrize(
    ("entries", "data", "match"),
    [
        ({"a": entry(0, 4)}, 3, "truncated"),
        ({"a": entry(0, 4)}, 9, "5 bytes after the last tensor"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, 6, "inside the tensor before it"),
        ({"a": entry(0, 4), "b": entry(6, 8)}, 8, "bytes 4 to 6, before 'b', belong to no tensor"),
        ({"a": entry(4, 0, [4])}, 4, "impossible offsets"),
        ({"a": entry(0, 4, [2], "F32")}, 4, "8 bytes, but its offsets hold 4"),
        ({"a": entry(0, 4, [-4])}, 4, "impossible shape"),
        ({"a": entry(0, 4, [2**40, 2**40])}, 4, "impossible shape"),
        ({"a": entry(0, 4, [1] * 40)}, 4, "impossible shape"),
        ({"a": entry(0, 4, [4.0])}, 4, "impossible shape"),
        ({"a": entry(0, 4, [True])}, 4, "impossible shape"),
        ({"a": entry(0, 4, dtype="Q4")}, 4, "unknown dtype 'Q4'"),
        ({"a": {"dtype": "U8"}}, 0, "not dtype, shape and data_offsets"),
        ({"a": 7}, 0, "not dtype, shape and data_offsets"),
        ({"__metadata__": {"a": 1}}, 0, "not a table of strings"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', 0, "names 'a' twice"),
        (b"[]", 0, "not with a JSON object"),
        (b'{"a":', 0, "is not JSON"),
        (b'{"\xff":1}', 0, "is not JSON"),
        (b'{"a":' * 20000, 0, "is not JSON"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, entries: Any, data: int, match: str) -> None:
    with pytest.raises(Malformed, match=match) as caught:
        read_header(write(tmp_path / "x", entries, data))
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("length", "match"), [(2**63, "the format allows"), (200_000_000, "the format allows"), (4000, "the file has")]
)
def test_a_length_is_bounded_before_it_is_read(tmp_path: Path, length: int, match: str) -> None:
    with pytest.raises(Malformed, match=match):
        read_header(write(tmp_path / "x", {}, 0, length=length))


def test_no_file_an_empty_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(NotFound, match="does not exist"):
        read_header(tmp_path / "absent")
    with pytest.raises(Malformed, match="too few for a header"):
        read_header(tmp_path / "empty")
    with pytest.raises(Malformed, match="is a folder"):
        read_header(tmp_path)


@given(st.data())
def test_no_damage_gets_through_as_anything_but_a_named_fault(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any byte of a sound file changed: it is refused, or still tiles the file exactly."""
    path = tmp_path_factory.mktemp("fuzz") / "x"
    write(path, {"a": entry(0, 4, [2, 2]), "b": entry(4, 8, [1], "F32")}, 8)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except Malformed:
        return
    assert sum(info.nbytes for info in header.tensors.values()) == header.file_bytes - header.data_start
