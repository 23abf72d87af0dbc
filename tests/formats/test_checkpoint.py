"""Inspecting sources from headers and JSON alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from mcp_server.errors import Malformed, NotAModel, NotFound
from mcp_server.formats.adapter_folder import open_adapter_folder
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.source import inspect_source
from mcp_server.schemas.inspect import AdapterInfo, SourceInfo
from tests.checkpoints import cache_model, write_lora, write_model, write_tokenizer
from tests.tiny import write_safetensors


def test_a_full_model_is_described_in_full(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", tokens=["a", "b"], card="---\nlicense: Apache-2.0\n---\n# M\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    found = inspect_source(str(folder))
    assert found.model_copy(update={"architecture_hash": None, "tokenizer_hash": None, "chat_template_hash": None}) == SourceInfo(
        ref=str(folder), path=str(folder), kind="full", architecture="LlamaForCausalLM", model_type="llama", layers=2, hidden=8,
        intermediate=16, heads=2, kv_heads=2, vocabulary=16, dtype="bfloat16", parameters=1576, bytes=3152, tensors=21,
        largest_tensor={"name": "model.embed_tokens.weight", "shape": [16, 8], "elements": 128}, tied_embeddings=False,
        licence="apache-2.0",
    )  # fmt: skip
    assert found.architecture_hash and found.tokenizer_hash and found.chat_template_hash


def test_an_adapter_is_described_from_its_weights(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a", "org/base", rank=4, alpha=8, use_rslora=True, modules_to_save=["lm_head"])
    found = inspect_source(str(folder))
    assert found.kind == "lora"
    assert found.adapter == AdapterInfo(
        peft_type="LORA", ranks=[4], alpha=8.0, scale=4.0, targets=["down_proj", "q_proj"], base="org/base", rslora=True,
        modules_to_save=["lm_head"],
    )  # fmt: skip
    assert (found.architecture, found.layers) == (None, None)


def test_ranks_come_from_the_weights_and_a_mixed_scale_is_unknown(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a", "org/base", rank=4, r=16, layers=1)
    assert inspect_source(str(folder)).adapter.ranks == [4]  # type: ignore[union-attr]
    tensors = {}
    for n, rank in enumerate((2, 8)):
        stem = f"base_model.model.model.layers.{n}.self_attn.q_proj"
        tensors[f"{stem}.lora_A.weight"] = ("F32", [rank, 8], bytes(32 * rank))
        tensors[f"{stem}.lora_B.weight"] = ("F32", [8, rank], bytes(32 * rank))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    adapter = inspect_source(str(folder)).adapter
    assert adapter is not None
    assert (adapter.ranks, adapter.scale) == ([2, 8], None)


def test_base_plus_adapter_takes_its_architecture_from_the_base(tmp_path: Path) -> None:
    base, adapter = write_model(tmp_path / "b"), write_lora(tmp_path / "a", "b")
    found = inspect_source(f"{base}+{adapter}")
    assert (found.kind, found.architecture, found.layers, found.detail) == ("lora", "LlamaForCausalLM", 2, "")


@pytest.mark.parametrize(
    ("file", "kind", "says"),
    [
        ("pytorch_model.bin", "pickle", "safetensors"),
        ("model.Q4_K.gguf", "gguf", "config.json"),
        ("adapter_model.bin", "pickle", "safetensors"),
        ("notes.txt", "not_a_model", "config.json"),
        ("model-00001-of-00002.safetensors", "not_a_model", "cut short"),
        ("config.json", "not_a_model", "not complete"),
        ("adapter_config.json", "not_a_model", "adapter_model.safetensors"),
    ],
)
def test_what_is_no_model_is_named_with_what_to_do(tmp_path: Path, file: str, kind: str, says: str) -> None:
    (tmp_path / file).write_text("{}", encoding="utf-8")
    found = inspect_source(str(tmp_path))
    assert (found.kind, says in found.detail) == (kind, True), found.detail


@pytest.mark.parametrize("quantisation", [{"quant_method": "hqq"}, {}, None])
def test_packed_codes_of_an_unknown_form_are_no_full_model(tmp_path: Path, quantisation: dict[str, object] | None) -> None:
    folder = write_model(tmp_path / "q", dtype="U8", quantization_config=quantisation)
    assert inspect_source(str(folder)).kind == "quantised"
    with pytest.raises(NotAModel, match="quantised") as raised:
        open_checkpoint(str(folder))
    assert "unquantised" in raised.value.next_step


def test_one_packed_tensor_among_many_plain_ones_is_enough(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "q", add={"model.layers.1.self_attn.q_proj.weight": [8, 8]})
    file = folder / "model.safetensors"
    name = b'"model.layers.1.self_attn.q_proj.weight": {"dtype": '
    file.write_bytes(file.read_bytes().replace(name + b'"BF16"', name + b'"U16" '))
    found = inspect_source(str(folder))
    assert (found.kind, found.is_model, "q_proj.weight" in found.detail) == ("quantised", False, True)


def test_plain_numbers_are_a_full_model_whatever_a_left_over_config_says(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert inspect_source(str(folder)).kind == "full"


def test_a_missing_path_names_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "persona").mkdir()
    with pytest.raises(NotFound) as raised:
        inspect_source(str(tmp_path / "perso"))
    assert "does not exist" in raised.value.message
    assert "persona" in raised.value.next_step


def test_a_hub_id_that_is_not_cached_says_how_to_get_it_without_going_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(NotFound, match="not in the local Hugging Face cache") as raised:
        inspect_source("org/model")
    assert raised.value.next_step == "check the path, or download it first: model-merging fetch org/model"


def test_a_hub_id_in_the_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = cache_model(tmp_path, "org/model")
    assert inspect_source("org/model").path == str(snapshot)


def test_asking_for_a_model_and_finding_an_adapter_says_how_to_name_it(tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "a", "org/base")
    with pytest.raises(NotAModel) as raised:
        open_checkpoint(str(folder))
    assert "base+adapter" in raised.value.next_step
    with pytest.raises(NotAModel, match="a full model"):
        open_adapter_folder(str(write_model(tmp_path / "m")))


def test_an_index_that_names_what_is_not_there_is_malformed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text(encoding="utf-8"))
    data["weight_map"]["extra.weight"] = data["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(Malformed, match=r"extra\.weight"):
        inspect_source(str(folder))
    data["weight_map"]["extra.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(Malformed, match="outside its folder"):
        inspect_source(str(folder))


def test_a_stale_whole_file_beside_shards_is_pointed_out(tmp_path: Path) -> None:
    folder = write_model(write_model(tmp_path / "m", shards=2))
    assert "ignores the shards" in inspect_source(str(folder)).detail


def test_equal_hashes_mean_that_weights_line_up_whatever_their_dtype(tmp_path: Path) -> None:
    a, b, c = write_model(tmp_path / "a"), write_model(tmp_path / "b", dtype="F32"), write_model(tmp_path / "c", layers=3)
    hashes = [inspect_source(str(folder)).architecture_hash for folder in (a, b, c)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_licence_is_read_from_a_licence_file_too(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "LICENSE").write_text("META LLAMA 3 COMMUNITY LICENSE AGREEMENT\n...", encoding="utf-8")
    assert inspect_source(str(folder)).licence == "llama3"


def test_an_8b_sharded_checkpoint_takes_less_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    """Real names, shapes and a tokenizer of real size; the weights are a hole in the file. Processor time: other work waits."""
    folder = tmp_path / "m"
    write_model(folder, layers=1)
    (folder / "model.safetensors").unlink()
    weight_map = {}
    shapes = {"model.embed_tokens.weight": [128256, 4096], "lm_head.weight": [128256, 4096], "model.norm.weight": [4096]}
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.gate_proj",
             "mlp.down_proj", "input_layernorm", "post_attention_layernorm")  # fmt: skip
    shapes |= {f"model.layers.{n}.{part}.weight": [4096, 4096] for n in range(32) for part in parts}
    for shard in range(4):
        file = f"model-{shard + 1:05d}-of-00004.safetensors"
        header, offset = {}, 0
        for name, shape in list(shapes.items())[shard::4]:
            size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
            weight_map[name] = file
        raw = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(raw).to_bytes(8, "little") + raw)
            stream.truncate(8 + len(raw) + offset)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    write_tokenizer(folder, [f"token{n}" for n in range(128_256)], merges=[f"merge {n}" * 4 for n in range(280_000)])
    assert (folder / "tokenizer.json").stat().st_size > 9_000_000
    best = min(_seconds(folder) for _ in range(3))
    assert best < 0.1, f"{best:.3f} s"


def _seconds(folder: Path) -> float:
    start = time.process_time()
    assert inspect_source(str(folder)).tensors == 291
    return time.process_time() - start
