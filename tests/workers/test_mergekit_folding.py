"""Folding an adapter into its base: the arithmetic, the cache's key, and that an entry is whole or absent."""

import json
import struct

import numpy as np
import pytest

from mcp_server.errors import DiskFull
from mcp_server.formats.safetensors import read_header
from mcp_server.workers import folding
from tests import tiny


@pytest.fixture
def sources(store, tmp_path):
    base = tiny.write_model(tmp_path / "base")
    return base, tiny.write_adapter(tmp_path / "adapter", base)


def fold(base, adapter):
    return folding.folded(str(base), str(adapter), lambda done, total: None)


def tensors(file):
    """Name → float64 array, read by hand."""
    header = read_header(file)
    data = file.read_bytes()[header.data_start :]
    found = {}
    for name, info in header.tensors.items():
        raw = data[info.begin : info.end]
        if info.dtype == "BF16":
            values = [struct.unpack("<f", b"\x00\x00" + raw[i : i + 2])[0] for i in range(0, len(raw), 2)]
        else:
            values = struct.unpack(f"<{len(raw) // 4}f", raw)
        found[name] = np.array(values, np.float64).reshape(info.shape)
    return found


def test_folded_is_base_plus_scaled_product_rounded_once(sources):
    base, adapter = sources
    before, delta, after = (
        tensors(base / "model.safetensors"),
        tensors(adapter / "adapter_model.safetensors"),
        tensors(fold(base, adapter) / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, value in after.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        exact = before[name]
        if f"{stem}.lora_A.weight" in delta:
            exact = exact + 2.0 * delta[f"{stem}.lora_B.weight"] @ delta[f"{stem}.lora_A.weight"]
            assert np.abs(exact - before[name]).max() > 0.001
            np.testing.assert_allclose(value, exact, rtol=2**-8, atol=1e-9)
        else:
            np.testing.assert_array_equal(value, exact)


def test_folding_twice_finds_the_first(sources):
    base, adapter = sources
    first = fold(base, adapter)
    changed = (first / "model.safetensors").stat().st_mtime_ns
    assert fold(base, adapter) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == changed


def test_a_retrained_adapter_at_the_same_path_is_another_entry(sources, tmp_path):
    base, adapter = sources
    first = fold(base, adapter)
    tiny.write_adapter(tmp_path / "retrained", base, seed=9)
    (tmp_path / "retrained" / "adapter_model.safetensors").replace(adapter / "adapter_model.safetensors")
    assert fold(base, adapter) != first


def test_another_scale_in_the_config_is_another_entry(sources):
    base, adapter = sources
    first = fold(base, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}), encoding="utf-8")
    assert fold(base, adapter) != first


def test_a_fold_that_fails_leaves_no_entry(sources, store, monkeypatch):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folding.folded(*map(str, sources), stop)
    assert list((store / "cache" / "folded").iterdir()) == []


def test_a_cache_without_room_is_refused_before_anything_is_written(sources, store, monkeypatch):
    from collections import namedtuple

    monkeypatch.setattr(folding.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(10))
    with pytest.raises(DiskFull, match=r"needs 0\.0 GB"):
        fold(*sources)
    assert list((store / "cache" / "folded").iterdir()) == []
