"""Repositories of a hub with nothing but GGUF or 4-bit weights: judged from kilobytes, and offered their originals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from mcp_server.errors import MergingError, NotFound
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.hub import headers
from mcp_server.formats.hub.copies import looking
from mcp_server.schemas.scenario import Scenario, ScenarioSource
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.recommend import advise
from mcp_server.steps.validate import validate
from tests.hub import COMMIT, Hollow, Hub, serving
from tests.steps.test_hub_headers import KEYS, LAYERS, WIDTH, WORDS, big_model, eight_billion, linear

CARD = b"---\nlicense: apache-2.0\nbase_model: acme/original\n---\n"
SPLIT = "BF16/chat-BF16-{n:05d}-of-00003.gguf"


@pytest.fixture
def hub(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "MODEL_MERGING_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(headers, "_known", headers._Known())
    with serving(Hub({})) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def packed_model() -> dict[str, Any]:
    """Llama-3-8B in bitsandbytes' nf4, double-quantised; what tells a weight's shape lies among gigabytes of zeros."""
    entries: dict[str, Any] = {}
    states: list[tuple[int, bytes]] = []
    end = 0

    def put(name: str, dtype: str, shape: list[int], wide: int) -> int:
        nonlocal end
        begin, end = end, end + math.prod(shape) * wide
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        return begin

    for name, shape in eight_billion().items():
        if "_proj" not in name:
            put(name, "BF16", list(shape), 2)
            continue
        blocks = math.prod(shape) // 64
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape), "nested_blocksize": 256}
        told = json.dumps(state | {"nested_dtype": "float32", "nested_offset": 0.02}).encode()
        put(name, "U8", [math.prod(shape) // 2, 1], 1)
        states.append((put(f"{name}.quant_state.bitsandbytes__nf4", "U8", [len(told)], 1), told))
        put(f"{name}.absmax", "U8", [blocks], 1)
        put(f"{name}.quant_map", "F32", [16], 4)
        put(f"{name}.nested_absmax", "F32", [blocks // 256], 4)
        put(f"{name}.nested_quant_map", "F32", [256], 4)
    header = json.dumps(entries).encode()
    start = 8 + len(header)
    islands = {start + begin: told for begin, told in states}
    weights = Hollow(len(header).to_bytes(8, "little") + header, start + end, islands)
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    kept = {name: data for name, data in big_model(quantization_config=said).items() if not name.startswith("model")}
    return kept | {"model.safetensors": weights}


def gguf_file(folder: Path, *, words: int = WORDS) -> Hollow:
    """A GGUF of Llama-3-8B's shape: metadata as llama.cpp's own package writes them, megabytes of vocabulary, no weights."""
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / "made.gguf", "llama")
    writer.add_name("chat")
    for setting, value in {
        "block_count": LAYERS, "embedding_length": WIDTH, "feed_forward_length": 14336, "head_count": 32, "head_count_kv": 8,
    }.items():  # fmt: skip
        getattr(writer, f"add_{setting}")(value)
    writer.add_token_list([f"a word of the vocabulary {n}" for n in range(words)])
    writer.add_file_type(15)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Hollow((folder / "made.gguf").read_bytes(), 5_000_000_000)


def test_a_4_bit_copy_is_judged_beside_its_original_in_kilobytes(hub: Hub) -> None:
    hub.repositories |= {"acme/chat-bnb-4bit": packed_model(), "acme/chat": big_model()}
    found = inspect_models(["acme/chat-bnb-4bit", "acme/chat"])
    small, whole = found.sources
    assert (small.kind, small.parameters, small.layers, small.vocabulary) == ("quantised", whole.parameters, LAYERS, WORDS)
    assert (small.architecture_hash, found.compatible) == (whole.architecture_hash, True)
    assert small.detail == (
        "its weights are quantised (bitsandbytes nf4); they are unpacked to bfloat16 as they are read; its original is probably "
        "acme/chat (owner may differ), which loses less"
    )
    assert hub.sent["acme/chat-bnb-4bit/model.safetensors"] < 300_000
    reads = [line for line in hub.requests if "bnb-4bit/resolve" in line and line.endswith(".safetensors")]
    assert len(reads) <= 2 + 7  # the header in two parts, and one state of each kind of layer
    checked = validate(linear("acme/chat-bnb-4bit", "acme/chat"))
    assert (checked.ok, checked.level) == (True, "checkpoints")
    hub.requests.clear()
    inspect_models(["acme/chat-bnb-4bit"])
    assert hub.requests == []


def test_states_that_cannot_be_had_leave_it_unknown(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["acme/chat-bnb-4bit"] = packed_model()
    monkeypatch.setattr(headers, "MOST_PARTS", 6)
    with pytest.raises(NotFound, match="packed stands among them") as refused:
        inspect_models(["acme/chat-bnb-4bit"])
    assert "model-merging fetch acme/chat-bnb-4bit; or name its original, probably acme/chat" in refused.value.next_step
    found = validate(linear("acme/chat-bnb-4bit", "acme/chat-bnb-4bit"))
    assert "MM315" in {finding.code for finding in found.findings}


def test_gguf_alone_is_described_from_kilobytes_and_its_original_named(hub: Hub, tmp_path: Path) -> None:
    model = gguf_file(tmp_path / "made")
    hub.repositories["acme/chat-GGUF"] = {
        "README.md": CARD, "chat-Q4_K_M.gguf": b"never read", "mmproj-F16.gguf": b"never read", "chat-Q8_0.gguf": model,
    }  # fmt: skip
    found = inspect_models(["acme/chat-GGUF"])
    (source,) = found.sources
    shape = (source.layers, source.hidden, source.intermediate, source.heads, source.kv_heads, source.vocabulary)
    assert shape == (LAYERS, WIDTH, 14336, 32, KEYS * 32 // WIDTH, WORDS)
    assert (source.kind, source.revision, source.licence, source.bytes) == ("gguf", COMMIT, "apache-2.0", 5_000_000_000)
    assert source.detail == (
        "its weights are GGUF (chat-Q8_0.gguf, one of 2 GGUF models; architecture llama), which holds no config.json, and none "
        "lies beside it; its card names acme/original as the original, which loses less"
    )
    assert found.compatible is False
    assert sum(hub.sent.values()) < 40_000
    refs = [ScenarioSource(name="chat", ref="acme/chat-GGUF"), ScenarioSource(name="other", ref="acme/chat-GGUF")]
    plan = advise(Scenario(sources=refs))
    assert plan.observed is not None
    assert "its card names acme/original as the original" in str(plan.observed.unusable)
    assert sum(hub.sent.values()) < 40_000


def test_gguf_beside_a_config_may_be_a_model_and_is_compared_by_its_shape(hub: Hub, tmp_path: Path) -> None:
    files = {SPLIT.format(n=n): gguf_file(tmp_path / "made") if n == 1 else Hollow(b"", 7_000_000_000) for n in (1, 2, 3)}
    hub.repositories["acme/chat-GGUF"] = files | {"config.json": big_model()["config.json"], "README.md": CARD}
    hub.repositories |= {"acme/chat": big_model(), "acme/wide": big_model(hidden_size=8192)}
    found = inspect_models(["acme/chat-GGUF", "acme/chat"])
    small = found.sources[0]
    assert (small.architecture, small.bytes, found.compatible) == ("LlamaForCausalLM", 19_000_000_000, None)
    assert "fetch it to have it checked and merged (model-merging fetch acme/chat-GGUF)" in small.detail
    other = inspect_models(["acme/chat-GGUF", "acme/wide"])
    assert (other.compatible, [d.field for d in other.differences if d.meaning == "fatal"]) == (False, ["hidden"])
    checked = validate(linear("acme/chat-GGUF", "acme/chat"))
    assert (checked.ok, "MM315" in {finding.code for finding in checked.findings}) == (True, True)
    with looking(), pytest.raises(NotFound, match="only the beginning of its GGUF header is here"):
        open_checkpoint("acme/chat-GGUF")


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"", "not a sound GGUF file"), (b"GGML" + bytes(60), "not a sound GGUF file"), (b"GGUF" + b"\xff" * 60, "version")],
)
def test_a_file_that_is_no_gguf_inside_is_named(hub: Hub, data: bytes, said: str) -> None:
    hub.repositories["acme/broken"] = {"m.gguf": data, "README.md": CARD}
    with pytest.raises(MergingError, match=said):
        inspect_models(["acme/broken"])


def test_hostile_metadata_stay_metadata(hub: Hub, tmp_path: Path) -> None:
    """Counts without end, names that are no ids, and a card that names itself: nothing of it is followed."""
    array = (9).to_bytes(4, "little") + (8).to_bytes(4, "little") + b"\xff" * 8
    counts = (3).to_bytes(4, "little") + (5).to_bytes(8, "little") + (9).to_bytes(8, "little")
    endless = b"GGUF" + counts + (21).to_bytes(8, "little") + b"tokenizer.ggml.tokens" + array
    for number, front in enumerate(
        ("base_model: ../../etc", "base_model: [a/b, c/d]", "base_model: {x: 1}", "base_model: acme/odd5", "[]")
    ):
        name = f"acme/odd{number + 2}"
        hub.repositories[name] = {"m.gguf": Hollow(endless, 90_000), "README.md": f"---\n{front}\n---\n".encode()}
        (source,) = inspect_models([name]).sources
        assert (source.vocabulary, source.layers, "its card names" in source.detail) == (None, None, False), front
