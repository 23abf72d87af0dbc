"""Hub ids judged from a hub on loopback: which bytes are asked for, and what each refusal and fault becomes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcp_server.errors import MergingError, NotAllowed, NotAModel, NotFound
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.hub import copies, headers
from mcp_server.schemas.scenario import Scenario, ScenarioSource
from mcp_server.steps.estimate import estimate
from mcp_server.steps.inspect import inspect_models
from mcp_server.steps.prepare import require_sources
from mcp_server.steps.recommend import advise
from mcp_server.steps.validate import validate
from tests.engine.synthetic import low_rank, random_tensors, write_adapter, write_model
from tests.hub import COMMIT, Hollow, Hub, serving

LAYERS, WIDTH, FEED, KEYS, WORDS = 32, 4096, 14336, 1024, 128_256
SHARDS = 4


def eight_billion() -> dict[str, tuple[int, ...]]:
    """The tensors of Llama-3-8B."""
    table: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (WORDS, WIDTH)}
    for n in range(LAYERS):
        layer = f"model.layers.{n}."
        table |= {layer + f"self_attn.{p}_proj.weight": (WIDTH if p in "qo" else KEYS, WIDTH) for p in "qkvo"}
        table |= {layer + f"mlp.{p}_proj.weight": (FEED, WIDTH) for p in ("gate", "up")}
        table |= {layer + "mlp.down_proj.weight": (WIDTH, FEED)}
        table |= {layer + f"{p}_layernorm.weight": (WIDTH,) for p in ("input", "post_attention")}
    return table | {"model.norm.weight": (WIDTH,), "lm_head.weight": (WORDS, WIDTH)}


def hollow(shapes: dict[str, tuple[int, ...]]) -> Hollow:
    """A bf16 safetensors file of which only the header exists."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, size = end, 2
        for length in shape:
            size *= length
        end = begin + size
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    return Hollow(len(header).to_bytes(8, "little") + header, 8 + len(header) + end)


def big_model(**settings: Any) -> dict[str, Any]:
    tensors = eight_billion()
    names = list(tensors)
    files: dict[str, Any] = {}
    weight_map: dict[str, str] = {}
    for n in range(SHARDS):
        file = f"model-{n + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = names[n * len(names) // SHARDS : (n + 1) * len(names) // SHARDS]
        files[file] = hollow({name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FEED,
        "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": WORDS,
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }  # fmt: skip
    tokenizer = {"model": {"vocab": {f"word{n}": n for n in range(3000)}}}
    return files | {
        "config.json": json.dumps(config | settings).encode(),
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        "tokenizer.json": json.dumps(tokenizer).encode(),
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "pytorch_model.bin": b"never read",
    }


@pytest.fixture
def hub(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "MODEL_MERGING_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(headers, "_known", headers._Known())
    write_model(tmp_path / "made" / "base", random_tensors(0), "float32", shards=2)
    write_adapter(
        tmp_path / "made" / "persona",
        low_rank(3, {"model.layers.1.mlp.up_proj": (16, 12)}, 2),
        base_model_name_or_path="acme/base",
    )
    hub = Hub({})
    for name in ("base", "persona"):
        hub.add(f"acme/{name}", tmp_path / "made" / name)
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def linear(*refs: str) -> str:
    return "merge_method: linear\ndtype: bfloat16\nmodels:\n" + "".join(
        f"  - {{model: {ref}, parameters: {{weight: 0.5}}}}\n" for ref in refs
    )


def downloads(hub: Hub) -> list[str]:
    return sorted(line.partition(COMMIT)[2].strip("/") for line in hub.requests if "/resolve/" in line)


def test_an_eight_billion_pair_is_judged_in_kilobytes(hub: Hub) -> None:
    hub.repositories |= {"acme/code": big_model(), "acme/chat": big_model()}
    began = time.monotonic()
    found = inspect_models(["acme/code", "acme/chat"])
    checked = validate(linear("acme/code", "acme/chat"))
    cost = estimate(linear("acme/code", "acme/chat"), ram_gib=12)
    plan = advise(Scenario(sources=[ScenarioSource(name=n, ref=f"acme/{n}") for n in ("code", "chat")], base_model="acme/code"))
    assert [(s.kind, s.bytes, s.layers, s.revision, s.path, s.licence) for s in found.sources] == [
        ("full", 16_060_522_496, 32, COMMIT, None, "apache-2.0")
    ] * 2
    assert (found.compatible, found.differences) == (True, [])
    assert (checked.ok, checked.level) == (True, "checkpoints")
    assert "MM315" not in {finding.code for finding in checked.findings}
    assert cost.engines["stream"].disk_bytes > 16_060_522_496
    assert cost.notes[:1] == ["sizes from headers on the hub"]
    assert plan.observed is not None
    assert (plan.observed.looked_at, plan.observed.compatible, plan.observed.unreachable) == (["code", "chat"], True, None)
    files = ["README.md", "config.json", "model.safetensors.index.json"]
    files += [f"model-{n + 1:05d}-of-{SHARDS:05d}.safetensors" for n in range(SHARDS)]
    assert downloads(hub) == sorted(files * 2)
    assert sum(hub.sent.values()) < 320_000
    assert time.monotonic() - began < 30


def test_the_second_look_asks_for_the_commit_alone(hub: Hub) -> None:
    inspect_models(["acme/base"])
    hub.requests.clear()
    inspect_models(["acme/base"])
    assert hub.requests == []
    headers._known.found.clear()
    inspect_models(["acme/base"])
    assert [line for line in hub.requests if "agent" not in line] == ["GET api/models/acme/base"]


def test_copies_of_headers_serve_no_merge(hub: Hub) -> None:
    inspect_models(["acme/base"])
    with pytest.raises(NotFound, match="not in the local Hugging Face cache"):
        open_checkpoint("acme/base")
    folder = copies.root() / "acme--base" / COMMIT
    with pytest.raises(NotFound, match="of acme/base only headers are here"):
        open_checkpoint(str(folder))
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    whole = sum(len(data) for name, data in hub.repositories["acme/base"].items() if name.endswith(".safetensors"))
    assert stored < whole


def test_an_adapter_is_compared_with_its_base_on_the_hub(hub: Hub) -> None:
    found = inspect_models(["acme/persona"], base="acme/base")
    assert (found.compatible, [s.kind for s in found.sources]) == (True, ["full", "lora"])
    checked = validate(
        "merge_method: task_arithmetic\ndtype: float32\nbase_model: acme/base\nmodels:\n"
        "  - {model: acme/base+acme/persona, parameters: {weight: 1.0}}\n"
    )
    assert (checked.ok, checked.level) == (True, "checkpoints")
    hub.repositories["acme/other"] = big_model()
    assert inspect_models(["acme/persona"], base="acme/other").compatible is False


def test_equal_tokenizers_are_told_by_the_listing_and_others_are_read(hub: Hub, tmp_path: Path) -> None:
    for name, words in (("one", "ab"), ("same", "ab"), ("moved", "ba")):
        table = json.dumps({"model": {"vocab": {word: n for n, word in enumerate(words)}}}).encode()
        hub.repositories[f"acme/{name}"] = hub.repositories["acme/base"] | {"tokenizer.json": table}
    assert inspect_models(["acme/one", "acme/same"]).differences == []
    assert "tokenizer.json" not in downloads(hub)
    (moved,) = [d for d in inspect_models(["acme/one", "acme/moved"]).differences if d.field == "tokenizer"]
    assert (moved.meaning, downloads(hub).count("tokenizer.json")) == ("needs_tokenizer_block", 2)
    (tmp_path / "made" / "base" / "tokenizer.json").write_bytes(hub.repositories["acme/one"]["tokenizer.json"])
    local = inspect_models([str(tmp_path / "made" / "base"), "acme/one"])
    assert [d for d in local.differences if "token" in d.field] == []


@pytest.mark.parametrize(
    ("ref", "error", "words"),
    [
        ("acme/nothing", NotFound, "is not a folder here, and the hub knows no repository acme/nothing"),
        ("acme/base@v9", NotFound, "no revision 'v9'"),
        ("acme/gated", NotAllowed, "accept a licence"),
        ("acme/pickle", NotAModel, "only pickle"),
        ("acme/words", NotAModel, "no config.json"),
        ("acme/mlx", NotAModel, "an adapter of mlx-lm"),
        ("acme/pipeline", NotAModel, "a pipeline of several models"),
        ("acme/inside", NotAModel, r"weights in its folders alone \(checkpoint-100\)"),
        ("acme/mistral", NotAModel, "Mistral's own layout"),
        ("acme/shard", NotAModel, "neither model.safetensors nor model.safetensors.index.json"),
    ],
)
def test_what_the_hub_refuses_is_said_with_the_next_step(hub: Hub, ref: str, error: type[MergingError], words: str) -> None:
    inside, shard = "checkpoint-100/adapter_model.safetensors", "model-00001-of-00002.safetensors"
    hub.repositories |= {
        "acme/mlx": {"adapter_config.json": b"{}", "adapters.safetensors": b"x"},
        "acme/pipeline": {"model_index.json": b"{}", "unet/config.json": b"{}", "unet/model.safetensors": b"x"},
        "acme/inside": {"checkpoint-100/adapter_config.json": b"{}", inside: b"x"},
        "acme/mistral": {"config.json": b"{}", "consolidated.safetensors": b"x"},
        "acme/shard": {"config.json": b"{}", shard: b"x"},
        "acme/gated": {}, "acme/words": {"README.md": b"hello"},
        "acme/pickle": {"config.json": b"{}", "pytorch_model.bin": b"x"},
    }  # fmt: skip
    hub.faults.gated = {"acme/gated"}
    with pytest.raises(error, match=words) as refused:
        inspect_models([ref])
    assert refused.value.next_step
    assert downloads(hub) == []


def test_a_recipe_with_a_missing_or_gated_id_is_wrong_and_one_that_cannot_be_asked_for_is_unknown(hub: Hub) -> None:
    hub.repositories["acme/gated"] = {}
    hub.faults.gated = {"acme/gated"}
    for ref in ("acme/nothing", "acme/gated"):
        codes = {finding.code: finding.severity for finding in validate(linear("acme/base", ref)).findings}
        assert codes.get("MM301") == "error"
    hub.faults.too_many_requests = 1000
    hub.repositories["acme/busy"] = hub.repositories["acme/base"]
    found = validate(linear("acme/base", "acme/busy"))
    assert (found.ok, found.level, "MM315" in {f.code for f in found.findings}) == (True, "yaml", True)


def test_advice_says_what_the_hub_refused_and_go_stops_at_it(hub: Hub) -> None:
    sources = [ScenarioSource(name="persona", ref="acme/persona"), ScenarioSource(name="tools", ref="acme/nothing")]
    scenario = Scenario(sources=sources, base_model="acme/base")
    plan = advise(scenario)
    assert plan.observed is not None
    assert "tools (acme/nothing is not a folder here, and the hub knows no repository" in str(plan.observed.unreachable)
    with pytest.raises(NotFound, match="the hub knows no repository acme/nothing"):
        require_sources(scenario)
    require_sources(scenario.model_copy(update={"sources": sources[:1]}))


def test_a_token_is_needed_and_never_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.faults.token = "hf_right_token_of_the_owner"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_token_of_nobody")
    with pytest.raises(MergingError) as refused:
        inspect_models(["acme/base"])
    assert "hf_wrong" not in str(refused.value)
    headers._known.refused.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_right_token_of_the_owner")
    assert inspect_models(["acme/base"]).sources[0].kind == "full"


@pytest.mark.parametrize("fault", ["cut", "too_many_requests"])
def test_a_fault_that_passes_is_waited_out(hub: Hub, fault: str) -> None:
    setattr(hub.faults, fault, 2)
    assert inspect_models(["acme/base"]).sources[0].tensors == 18
    assert getattr(hub.faults, fault) == 0


def test_a_server_that_ignores_ranges_is_not_listened_to_for_longer(hub: Hub) -> None:
    hub.faults.ignores_ranges = True
    weights = {f"model.layers.{n}.mlp.up_proj.weight": (8192, 8192) for n in range(8)}
    config = json.loads(hub.repositories["acme/base"]["config.json"])
    files = {"config.json": json.dumps(config | {"num_hidden_layers": 8}).encode(), "model.safetensors": hollow(weights)}
    hub.repositories["acme/large"] = files
    assert inspect_models(["acme/large"]).sources[0].bytes == 8 * 8192 * 8192 * 2
    assert hub.sent["acme/large/model.safetensors"] < len(files["model.safetensors"]) / 4


def test_offline_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MODEL_MERGING_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
        with pytest.raises(NotFound, match="not in the local Hugging Face cache"):
            inspect_models(["acme/base"])
        monkeypatch.delenv(name)
    assert hub.requests == []


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch, hub: Hub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    found = validate(linear("acme/one", "acme/two"))
    assert (found.ok, [f.code for f in found.findings].count("MM315")) == (True, 2)
    assert list(headers._known.silent) == ["http://127.0.0.1:9"]
    assert time.monotonic() - began < 5


def test_a_broken_header_is_named(hub: Hub) -> None:
    for name, data in (
        ("short", b"abc"),
        ("liar", (1 << 40).to_bytes(8, "little") + b"{}"),
        ("words", b"\x02" + bytes(7) + b"[]"),
    ):
        hub.repositories[f"acme/{name}"] = hub.repositories["acme/persona"] | {"adapter_model.safetensors": data}
        with pytest.raises(MergingError, match="is not a sound safetensors file"):
            inspect_models([f"acme/{name}"])


def test_a_broken_file_is_named_by_its_repository(hub: Hub) -> None:
    hub.repositories["acme/odd"] = hub.repositories["acme/base"] | {"config.json": b"[1, 2"}
    with pytest.raises(MergingError, match=r"^acme/odd/config\.json is not JSON"):
        inspect_models(["acme/odd"])
