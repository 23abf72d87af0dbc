"""An adapter output without its base's weights: the base quantised, plain, or not here at all; and what adapters store whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.reader import Reader
from mcp_server.engine.request import Request
from mcp_server.errors import NotFound, Unsupported
from mcp_server.formats.safetensors import read_header
from mcp_server.steps.estimate import estimate
from tests.engine.synthetic import (
    HIDDEN,
    INTERMEDIATE,
    VOCABULARY,
    Tensors,
    load,
    low_rank,
    run,
    write_adapter,
    write_two_adapters,
)

UP, Q = "model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"
SHAPES = {UP: (INTERMEDIATE, HIDDEN), Q: (HIDDEN, HIDDEN)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_two_adapters(tmp_path, UP, Q)
    return tmp_path


def recipe(
    root: Path, method: str = "task_arithmetic", *, base: str | None = None, weights: tuple[float, ...] = (0.7, 0.3), **more: Any
) -> str:
    on = base or f"{root}/base"
    entries = [
        {"model": f"{on}+{root}/{name}", "parameters": {"weight": weight}} for name, weight in zip("ab", weights, strict=True)
    ]
    body: dict[str, Any] = {"merge_method": method, "models": entries}
    if method != "linear":
        body["base_model"] = on
    return json.dumps(body | more)


def adapter(root: Path, text: str, out: str = "out", **settings: Any) -> Tensors:
    merge_adapters(Request(text, root / out, root / "journal", **settings), lambda *_: None)
    return load(root / out)


def config(root: Path, out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / out / "adapter_config.json").read_text("utf-8"))
    return found


@pytest.mark.parametrize(
    ("method", "rank"), [("linear", None), ("task_arithmetic", None), ("ties", 4), ("dare_ties", 4), ("della", 4)]
)
def test_a_base_that_is_not_here_changes_nothing(root: Path, method: str, rank: int | None) -> None:
    here = adapter(root, recipe(root, method), rank=rank, seed=3)
    shutil.rmtree(root / "base")
    away = adapter(root, recipe(root, method, base="org/base"), "away", rank=rank, seed=3)
    assert {*here} == {*away}
    assert all(np.array_equal(here[name], away[name]) for name in here)
    assert estimate(recipe(root, method, base="org/base"), output="adapter", rank=rank).engines["stream"].covers


@pytest.mark.parametrize(("method", "rank"), [("linear", None), ("ties", 4), ("breadcrumbs_ties", 4), ("della", 4)])
def test_the_weights_of_the_base_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch, method: str, rank: int | None) -> None:
    read = Reader.bytes_into

    def watched(self: Reader, path: Path, offset: int, buffer: Any) -> None:
        assert path.parent != root / "base"
        read(self, path, offset, buffer)

    monkeypatch.setattr(Reader, "bytes_into", watched)
    assert adapter(root, recipe(root, method), rank=rank)


def test_the_dtype_is_the_recipes(root: Path) -> None:
    plain = adapter(root, recipe(root))
    half = adapter(root, recipe(root, dtype="bfloat16"), "half")
    dtypes = {
        out: {info.dtype for info in read_header(root / out / "adapter_model.safetensors").tensors.values()}
        for out in ("out", "half")
    }
    assert dtypes == {"out": {"F32"}, "half": {"BF16"}}
    assert all(np.allclose(half[name], plain[name], rtol=2**-8, atol=0) for name in plain)


def test_the_base_is_named_by_hub_id_or_from_the_output(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    adapter(root, recipe(root))
    assert config(root)["base_model_name_or_path"] == "../base"
    snapshot = tmp_path / "models--org--base" / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(root / "base", snapshot)
    adapter(root, recipe(root, base=str(snapshot)), "cached")
    named = config(root, "cached")
    assert (named["base_model_name_or_path"], named["revision"]) == ("org/base", snapshot.name)
    for name in "ab":
        file = root / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"base_model_name_or_path": "org/known"}), "utf-8")
    adapter(root, recipe(root), "said")
    assert config(root, "said")["base_model_name_or_path"] == "org/known"


def save_head(root: Path, name: str, seed: int, **factors: Any) -> np.ndarray:
    """The adapter again, with a head and a bias that it stores whole."""
    shutil.rmtree(root / name)
    head, bias = np.random.default_rng(seed).standard_normal((VOCABULARY, HIDDEN)), np.full(HIDDEN, float(seed))
    stored = low_rank(seed, {UP: SHAPES[UP], Q: SHAPES[Q]}, 2) | {"lm_head.weight": head, f"{Q}.base_layer.bias": bias}
    write_adapter(root / name, stored, modules_to_save=["lm_head"], bias="lora_only", **factors)
    return head


def test_whole_tensors_travel(root: Path) -> None:
    heads = [save_head(root, name, seed) for seed, name in enumerate("ab", 5)]
    text = recipe(root)
    found = adapter(root, text)
    run(text, root / "full")
    full = load(root / "full")
    assert np.allclose(found["base_model.model.lm_head.weight"], 0.7 * heads[0] + 0.3 * heads[1], atol=1e-6)
    assert np.allclose(found["base_model.model.lm_head.weight"], full["lm_head.weight"], atol=1e-6)
    assert np.allclose(found[f"base_model.model.{Q}.base_layer.bias"], full[f"{Q}.bias"], atol=1e-6)
    assert (config(root)["modules_to_save"], config(root)["bias"]) == (["lm_head"], "lora_only")
    shutil.rmtree(root / "base")
    away = adapter(root, recipe(root, base="org/base"), "away")
    assert all(np.array_equal(found[name], away[name]) for name in found)


def test_a_whole_tensor_that_needs_the_base_reads_it_or_says_so(root: Path) -> None:
    save_head(root, "a", 5)
    text = recipe(root)
    found = adapter(root, text)
    run(text, root / "full")
    assert np.allclose(found["base_model.model.lm_head.weight"], load(root / "full")["lm_head.weight"], atol=1e-6)
    shutil.rmtree(root / "base")
    with pytest.raises(Unsupported, match=r"lm_head\.weight is stored whole .*base's own, which is not here"):
        adapter(root, recipe(root, base="org/base"), "away")


def test_what_cannot_be_told_without_the_base(root: Path) -> None:
    shutil.rmtree(root / "base")
    with pytest.raises(Unsupported, match="a gradient runs over the base's layers"):
        adapter(root, recipe(root, base="org/base", parameters={"lambda": [0.5, 1.0]}))
    with pytest.raises(NotFound, match="org/base"):  # the base alone is a source: nothing tells its shapes
        body = json.loads(recipe(root, base="org/base"))
        body["models"] = [{"model": "org/base", "parameters": {"weight": 1}}]
        adapter(root, json.dumps(body))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_peft_loads_whole_tensors_and_agrees_with_the_merged_model(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=40,
        tie_word_embeddings=False, attention_bias=True,
    )  # fmt: skip
    LlamaForCausalLM(settings).float().save_pretrained(tmp_path / "base")
    for name in "ab":
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        asked = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], bias="all")
        model = get_peft_model(base, asked)
        for key, parameter in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key or key.endswith("bias"):
                parameter.data.normal_(0, 0.1)
        model.save_pretrained(tmp_path / name)
    text = recipe(tmp_path, weights=(0.7, 0.6))
    adapter(tmp_path, text)
    run(text, tmp_path / "full")
    tokens = torch.arange(12)[None]
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert torch.allclose(merged(tokens).logits, full(tokens).logits, atol=1e-5)
