"""GGUF models by transformers' names: every architecture that is read, each against the class that it was converted from."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.numpy import load_file

from mcp_server.engine.reader import Reader
from mcp_server.engine.unpack import ggml_kernels
from mcp_server.errors import Incompatible, Malformed, MergingError, NotAModel
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.gguf_model import ARCHITECTURES
from mcp_server.formats.quantised.ggml import TYPES
from mcp_server.recompute.reading import read_rows, rows_of
from mcp_server.steps.estimate.stream import LOOPED
from mcp_server.steps.inspect import inspect_source

Arrays = dict[str, np.ndarray[Any, Any]]
TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "vocab_size": 40, "max_position_embeddings": 64, "dtype": "float32", "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 32},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "starcoder2": {"use_bias": True},
    "seed_oss": {"attention_bias": True},
}
MODELS = [(name, model) for name, architecture in ARCHITECTURES.items() for model in architecture.models]


def stored_model(folder: Path, kind: str) -> tuple[dict[str, Any], Arrays]:
    """A tiny model as transformers saves it: its config, and its tensors by their stored names."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY | MORE.get(kind, {})))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    model.save_pretrained(folder / "original")
    config = json.loads((folder / "original" / "config.json").read_text("utf-8"))
    return config, load_file(folder / "original" / "model.safetensors")


def converted(architecture: str, config: dict[str, Any], tensors: Arrays) -> Arrays:
    """The tensors as llama.cpp's converter names and changes them (conversion/llama.py, gemma.py, qwen.py)."""
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    experts: dict[str, dict[int, np.ndarray[Any, Any]]] = {}
    out: Arrays = {}
    for name, value in tensors.items():
        if match := re.match(r"(.*)experts\.(\d+)\.(.*)", name):
            merged = f"{match[1]}experts.{match[3]}".replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
            experts.setdefault(merged if "feed_forward" in merged else f"model.{merged}", {})[int(match[2])] = value
            continue
        if architecture in ("llama", "smollm3", "granite") and re.search(r"[qk]_proj\.", name):
            count = heads if "q_proj" in name else groups
            halves = value.reshape(count, 2, len(value) // count // 2, *value.shape[1:])
            changed = halves.swapaxes(1, 2).reshape(value.shape)
        elif architecture.startswith("gemma") and name.endswith("norm.weight"):
            changed = value + 1
        else:
            changed = value[0] if name.endswith("shared_expert_gate.weight") else value
        out[str(names.get_name(name, try_suffixes=(".weight", ".bias")))] = changed
    for name, parts in experts.items():
        out[str(names.get_name(name, try_suffixes=(".weight",)))] = np.stack([parts[number] for number in sorted(parts)])
    assert "None" not in out, sorted(set(tensors))
    return out


def write_gguf(
    file: Path, architecture: str, tensors: Arrays, types: Callable[[str, tuple[int, ...]], str], **metadata: int | str
) -> Path:
    writer = gguf.GGUFWriter(None, architecture)
    for key, value in metadata.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{key.replace('__', '.')}", value)  # type: ignore[operator]
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "a", "é"])
    for name, value in tensors.items():
        kind = gguf.GGMLQuantizationType[types(name, value.shape)]
        writer.add_tensor(name, quantize(value.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def with_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def values(folder: Path | str) -> Arrays:
    opened, reader = open_checkpoint(str(folder)), Reader()
    return {name: reader.whole(tensor) for name, tensor in opened.tensors.items()}


def all_float32(_name: str, _shape: tuple[int, ...]) -> str:
    return "F32"


def matrices_in(kind: str) -> Callable[[str, tuple[int, ...]], str]:
    return lambda _name, shape: kind if len(shape) > 1 and shape[-1] % 32 == 0 else "F32"


@pytest.mark.parametrize(("architecture", "model"), MODELS)
def test_a_converted_model_has_its_own_names_and_values_again(tmp_path: Path, architecture: str, model: str) -> None:
    config, tensors = stored_model(tmp_path, model)
    folder = with_config(tmp_path / "gguf", config)
    metadata = {"block_count": 2, "embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}
    write_gguf(folder / "m.gguf", architecture, converted(architecture, config, tensors), matrices_in("Q8_0"), **metadata)
    found = values(folder)
    assert set(found) == set(tensors)
    quantised = matrices_in("Q8_0")
    for name, value in tensors.items():
        stored_as_vector = name.endswith("shared_expert_gate.weight")
        kind = gguf.GGMLQuantizationType["F32" if stored_as_vector else quantised(name, value.shape)]
        want = dequantize(quantize(value, kind), kind)  # blocks lie within rows, so permuted rows hold the same values
        shifted = architecture.startswith("gemma") and name.endswith("norm.weight")
        assert np.allclose(found[name], want, rtol=0, atol=2e-7 * (1 + abs(value).max()) if shifted else 0), name


def with_embedding(folder: Path, config: dict[str, Any], raw: np.ndarray[Any, Any], kind: gguf.GGMLQuantizationType) -> Path:
    """A model of nothing but an embedding, of the given blocks, in `m.gguf`."""
    writer = gguf.GGUFWriter(None, config["model_type"])
    writer.add_tensor("token_embd.weight", raw, raw_dtype=kind)
    writer.write_header_to_file(with_config(folder, config) / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def valid_blocks(kind: gguf.GGMLQuantizationType, count: int) -> np.ndarray[Any, Any]:
    """Random bytes, but for blocks whose scales are infinite or no numbers."""
    numbers = np.random.default_rng(7)
    wide = gguf.GGML_QUANT_SIZES[kind][1]
    blocks = np.empty((0, wide), np.uint8)
    while len(blocks) < count:
        fresh = numbers.integers(0, 256, (count, wide), np.uint8)
        with np.errstate(all="ignore"):
            sound = np.abs(dequantize(fresh, kind)).max(axis=1) < 1e6
        blocks = np.concatenate([blocks, fresh[sound]])
    return blocks[:count]


@pytest.mark.parametrize("kind", [kind for kind, _, _ in TYPES.values()])
def test_every_type_is_unpacked_as_gguf_unpacks_it(tmp_path: Path, kind: str) -> None:
    named = gguf.GGMLQuantizationType[kind]
    per, wide = gguf.GGML_QUANT_SIZES[named]
    rows, columns = 24, 2 * per if per > 1 else 64
    if per > 1:
        raw = valid_blocks(named, rows * 2).reshape(rows, 2 * wide)
        want = dequantize(raw, named)
    else:
        plain = np.random.default_rng(7).standard_normal((rows, columns))
        raw = plain if kind == "F64" else quantize(plain.astype(np.float32), named)
        want = plain.astype(np.float32) if kind == "F64" else dequantize(raw, named)
    config = TINY | {"model_type": "qwen2", "vocab_size": rows, "num_hidden_layers": 0, "hidden_size": columns}
    folder = with_embedding(tmp_path, config, raw, named)
    [(name, tensor)] = open_checkpoint(str(folder)).tensors.items()
    assert name == "model.embed_tokens.weight"
    assert np.array_equal(Reader().whole(tensor), want)
    assert np.array_equal(read_rows(tensor, 3, 19), want[3:19].astype(np.float64))


def test_an_estimate_knows_the_types_that_have_compiled_loops() -> None:
    found = set()
    for kind, per, wide in TYPES.values():
        if per > 1 and ggml_kernels.unpack(np.zeros((1, wide), np.uint8), kind, np.empty((1, per), np.float32)):
            found.add(kind)
    assert found == LOOPED
    assert all(hasattr(ggml_kernels, f"_{kind.lower()}") for kind in LOOPED)


def test_the_types_have_the_sizes_of_ggml() -> None:
    sizes = {kind.value: (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    assert {number: sizes[number] for number in TYPES} == TYPES


def test_checks_undo_the_permutation_by_themselves(tmp_path: Path) -> None:
    config, tensors = stored_model(tmp_path, "llama")
    folder = with_config(tmp_path / "gguf", config)
    write_gguf(folder / "m.gguf", "llama", converted("llama", config, tensors), all_float32)
    for name, tensor in open_checkpoint(str(folder)).tensors.items():
        rows = rows_of(tensor.shape)[0]
        first, last = rows // 3, max(rows // 2, 1)
        assert np.array_equal(read_rows(tensor, first, last), tensors[name].reshape(rows, -1)[first:last].astype(np.float64)), (
            name
        )


def test_transformers_reads_the_same_values(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    config, tensors = stored_model(tmp_path, "llama")
    folder = with_config(tmp_path / "gguf", config)
    metadata: dict[str, int | str] = {
        "block_count": 2, "embedding_length": 64, "feed_forward_length": 96, "attention__head_count": 4,
        "attention__head_count_kv": 2, "vocab_size": 40, "context_length": 64,
    }  # fmt: skip
    write_gguf(folder / "m.gguf", "llama", converted("llama", config, tensors), matrices_in("Q4_1"), **metadata)
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf", dtype=torch.float32).state_dict()
    found = values(folder / "m.gguf")
    assert all(np.array_equal(found[name], loaded[name].numpy()) for name in found)


def split_in_two(folder: Path) -> Path:
    config, tensors = stored_model(folder, "qwen2")
    out = with_config(folder / "gguf", config)
    every = [*converted("qwen2", config, tensors).items()]
    for number, part in enumerate((every[:9], every[9:]), 1):
        write_gguf(out / f"m-{number:05}-of-00002.gguf", "qwen2", dict(part), all_float32)
    return out


def test_a_model_in_several_files(tmp_path: Path) -> None:
    out = split_in_two(tmp_path)
    original = load_file(tmp_path / "original" / "model.safetensors")
    for ref in (out, out / "m-00002-of-00002.gguf"):
        found = values(ref)
        assert all(np.array_equal(found[name], value) for name, value in original.items())
    (out / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(Malformed, match=r"holds 1 of the 2 parts of m"):
        open_checkpoint(str(out))


Change = Callable[[dict[str, Any], Arrays], None]


def settings(**change: Any) -> Change:
    return lambda config, _tensors: config.update(change)


def dropped(name: str) -> Change:
    def change(_config: dict[str, Any], tensors: Arrays) -> None:
        del tensors[name]

    return change


def added(name: str) -> Change:
    return lambda _config, tensors: tensors.update({name: np.zeros((32, 32), np.float32)})


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (settings(model_type="qwen2"), Incompatible, r"architecture 'llama', the config.json beside it describes 'qwen2'"),
        (settings(num_hidden_layers=3), Incompatible, r"llama.block_count 2, the config.json beside it 3"),
        (settings(num_key_value_heads=4), Incompatible, r"head_count_kv 2, the config.json beside it 4"),
        (settings(vocab_size=48), Incompatible, r"rows for 40 tokens, the config.json beside it says vocab_size 48"),
        (dropped("blk.1.ffn_up.weight"), Malformed, r"holds no ffn_up.weight of layer 1"),
        (dropped("token_embd.weight"), Malformed, r"holds no token_embd.weight"),
        (added("blk.0.ssm_in.weight"), NotAModel, r"what 'blk.0.ssm_in.weight' is in llama is not known here"),
    ],
)
def test_a_file_of_another_model_than_its_config_is_refused(
    tmp_path: Path, change: Change, error: type[MergingError], says: str
) -> None:
    config, tensors = stored_model(tmp_path, "llama")
    stored = converted("llama", config, tensors)
    change(config, stored)
    folder = with_config(tmp_path / "gguf", config)
    metadata = {"block_count": 2, "attention__head_count_kv": 2}
    write_gguf(folder / "m.gguf", "llama", stored, all_float32, **metadata)
    with pytest.raises(error, match=says):
        open_checkpoint(str(folder))


def test_what_is_beside_or_unknown_is_said(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "rwkv7", {"token_embd.weight": np.zeros((40, 64), np.float32)}, all_float32)
    assert "holds no config.json" in inspect_source(str(tmp_path)).detail
    with pytest.raises(NotAModel, match=r"holds no config.json, and none lies beside it"):
        open_checkpoint(str(tmp_path / "m.gguf"))
    with_config(tmp_path, TINY | {"model_type": "llama"})
    with pytest.raises(NotAModel, match="architecture 'rwkv7', whose conversion is not undone here"):
        open_checkpoint(str(tmp_path))
    found = inspect_source(str(tmp_path / "m.gguf"))
    assert (found.kind, "rwkv7" in found.detail) == ("gguf", True)
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(Malformed, match=r"several GGUF models: m.gguf, n.gguf"):
        open_checkpoint(str(tmp_path))


def damaged(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: b"GGML" + raw[4:], "starts with b'GGML'"),
        (lambda raw: raw[:20], "ends beyond the file"),
        (lambda raw: raw[:-100], "lies at bytes"),
        (lambda raw: damaged(raw, 8, struct.pack("<Q", 1 << 60)), "claims 1152921504606846976 tensors"),
        (lambda raw: damaged(raw, 24, struct.pack("<Q", 1 << 62)), "a text of its header claims"),
        (lambda raw: damaged(raw, 4, struct.pack("<I", 3 << 24)), "big-endian"),
    ],
)
def test_a_damaged_header_is_named(tmp_path: Path, change: Callable[[bytes], bytes], says: str) -> None:
    folder = with_config(tmp_path, TINY | {"model_type": "qwen2"})
    file = write_gguf(folder / "m.gguf", "qwen2", {"token_embd.weight": np.ones((40, 64), np.float32)}, all_float32)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises((Malformed, NotAModel), match=says):
        open_checkpoint(str(folder))
