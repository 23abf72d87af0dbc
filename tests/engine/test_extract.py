"""A full fine-tune as an adapter: the best of its rank, with its error, as PEFT loads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mcp_server.engine.adapter_space import merge_adapters
from mcp_server.engine.request import Request
from mcp_server.errors import Malformed, Unsupported
from mcp_server.steps.verify import verify
from tests.engine.synthetic import load, random_tensors, run, save, shapes, write_adapter, write_model

SIDES = {name: shape for name, shape in shapes().items() if len(shape) == 2 and "embed" not in name}
MATRICES = list(SIDES)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = random_tensors(0)
    write_model(tmp_path / "base", base, "float32")
    write_model(tmp_path / "tuned", random_tensors(1, around=base), "float32")
    return tmp_path


def recipe(root: Path, *models: str, method: str = "task_arithmetic", **more: Any) -> str:
    entries = [{"model": f"{root}/{model}", "parameters": {"weight": 1.0}} for model in models or ("tuned",)]
    return json.dumps({"merge_method": method, "base_model": f"{root}/base", "models": entries, "dtype": "float32"} | more)


def extract(root: Path, rank: int, text: str | None = None, **settings: Any) -> dict[str, Any]:
    return merge_adapters(Request(text or recipe(root), root / "out", root / "journal", rank=rank, **settings), lambda *_: None)


def written(root: Path) -> dict[str, np.ndarray]:
    """What the adapter adds, by tensor; every scale is 1."""
    stored = load(root / "out")
    stem = "base_model.model."
    return {
        f"{key.removeprefix(stem).partition('.lora_B')[0]}.weight": b @ stored[key.replace("lora_B", "lora_A")]
        for key, b in stored.items()
        if "lora_B" in key
    }


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_no_adapter_of_that_rank_comes_nearer(root: Path, small_blocks: None, rank: int) -> None:
    result = extract(root, rank, seed=0)
    base, tuned, found = load(root / "base"), load(root / "tuned"), written(root)
    report = json.loads((root / "out" / "approximation.json").read_text("utf-8"))
    assert sorted(found) == sorted(MATRICES)
    lost = whole = 0.0
    for name, shape in shapes().items():
        delta = tuned[name] - base[name]
        values = np.linalg.svd(delta.reshape(shape[0], -1), compute_uv=False)
        best = float((values[rank:] ** 2).sum()) if name in found else float((delta**2).sum())
        error = float(((delta - found.get(name, 0)) ** 2).sum())
        assert error <= best * 1.02 + 1e-9
        assert report["tensors"][name] == pytest.approx(np.sqrt(error / (delta**2).sum()), abs=2e-3)
        lost, whole = lost + error, whole + float((delta**2).sum())
    assert result["relative_error"] == report["relative_error"] == pytest.approx(np.sqrt(lost / whole), abs=1e-3)
    assert set(report["left_out"]) == set(shapes()) - set(MATRICES)
    assert "left out (biases, embeddings, norms)" in result["warnings"][-1]


def test_a_change_of_that_rank_is_kept_whole(root: Path) -> None:
    base = random_tensors(0)
    numbers = np.random.default_rng(5)
    sides = {
        name: (numbers.standard_normal((shape[0], 2)), numbers.standard_normal((2, shape[1]))) for name, shape in SIDES.items()
    }
    low = {name: base[name] + left @ right for name, (left, right) in sides.items()}
    write_model(root / "low", base | low, "float32")
    assert extract(root, 2, recipe(root, "low"), seed=0)["relative_error"] < 1e-3


def test_the_rest_is_stored_whole_where_it_is_asked_for(root: Path) -> None:
    result = extract(root, 16, seed=0, whole=("embeddings", "norms", "biases"))
    base, tuned, stored = load(root / "base"), load(root / "tuned"), load(root / "out")
    config = json.loads((root / "out" / "adapter_config.json").read_text("utf-8"))
    assert (result["warnings"], config["bias"], result["relative_error"] < 1e-3) == ([], "all", True)
    assert set(config["modules_to_save"]) == {"embed_tokens", "input_layernorm", "norm"}
    assert np.allclose(stored["base_model.model.model.embed_tokens.weight"], tuned["model.embed_tokens.weight"], atol=1e-6)
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert np.allclose(stored[f"base_model.model.{bias.replace('bias', 'base_layer.bias')}"], tuned[bias])
    assert all(np.allclose(base[n] + d, tuned[n], atol=1e-4) for n, d in written(root).items())


def test_verify_knows_that_a_rank_keeps_a_part(root: Path) -> None:
    extract(root, 4, seed=0)
    found = verify(root / "out", full=True)
    assert next(check for check in found.checks if check.name == "recomputed").passed


def test_full_models_and_adapters_become_one_adapter(root: Path) -> None:
    q = "model.layers.0.self_attn.q_proj"
    write_adapter(root / "lora", {f"{q}.lora_A.weight": np.ones((2, 12)), f"{q}.lora_B.weight": np.ones((12, 2))})
    body = json.loads(recipe(root))
    body["models"].append({"model": f"{root}/base+{root}/lora", "parameters": {"weight": 1.0}})
    extract(root, 16, json.dumps(body), seed=0)
    delta = load(root / "tuned")[f"{q}.weight"] - load(root / "base")[f"{q}.weight"]
    assert np.allclose(written(root)[f"{q}.weight"], delta + 4 * np.ones((12, 12)), atol=1e-4)


@pytest.mark.parametrize(("method", "rank"), [("task_arithmetic", None), ("linear", 4)])
def test_a_full_model_needs_a_rank_and_a_base(root: Path, method: str, rank: int | None) -> None:
    body = json.loads(recipe(root, method=method))
    if method == "linear":
        del body["base_model"]
    with pytest.raises(Unsupported, match="tuned is a full model") as raised:
        extract(root, rank, json.dumps(body))  # type: ignore[arg-type]
    assert "--rank" in raised.value.next_step


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_loads_it_and_gives_the_fine_tune(tmp_path: Path, kind: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if kind == "llama":
        model: Any = LlamaForCausalLM(
            LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        vocab_size=40, tie_word_embeddings=False)
        )  # fmt: skip
    else:
        model = GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=40, n_positions=64, tie_word_embeddings=False)
        )
    model.save_pretrained(tmp_path / "base")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(tmp_path / "tuned")
    extract(tmp_path, 96, seed=0, whole=("embeddings", "norms", "biases"))
    tokens = torch.arange(12)[None]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert torch.allclose(loaded(tokens).logits, model.eval()(tokens).logits, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_an_embedding_that_is_one_with_its_head_stays_so(tmp_path: Path) -> None:
    """PEFT parts a saved embedding from a tied head, which would keep the base's values."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    model = LlamaForCausalLM(LlamaConfig(**small, num_key_value_heads=2, tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "base")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "tuned")
    extract(tmp_path, 16, seed=0, whole=("embeddings", "norms"))
    tokens = torch.arange(12)[None]
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert torch.allclose(loaded(tokens).logits, model.eval()(tokens).logits, atol=1e-4)
    assert verify(tmp_path / "out", recipe=recipe(tmp_path), full=True).verdict == "verified"
    entry = {"model": f"{tmp_path}/base+{tmp_path}/out", "parameters": {"weight": 1.0}}
    body = {"merge_method": "task_arithmetic", "base_model": f"{tmp_path}/base", "models": [entry], "dtype": "float32"}
    run(json.dumps(body), tmp_path / "back")
    back, tuned = load(tmp_path / "back"), load(tmp_path / "tuned")
    assert set(back) == set(tuned)
    assert all(np.allclose(back[name], tuned[name], atol=1e-4) for name in tuned)


def test_numbers_that_are_none_are_named(root: Path) -> None:
    tensors = load(root / "tuned")
    tensors["model.layers.0.self_attn.q_proj.weight"][0, 0] = np.nan
    save(root / "tuned" / "model.safetensors", tensors, "float32")
    with pytest.raises(Malformed, match=r"layers\.0\.self_attn\.q_proj\.weight of .*tuned holds values that are not finite"):
        extract(root, 4)


def test_routers_that_peft_does_not_load_are_named(tmp_path: Path) -> None:
    layer = "model.layers.0.mlp"
    more = {f"{layer}.gate.weight": (4, 12), f"{layer}.experts.0.up_proj.weight": (8, 12)}
    base = random_tensors(0) | {name: np.zeros(shape) for name, shape in more.items()}
    write_model(tmp_path / "base", base, "float32")
    write_model(tmp_path / "tuned", {name: value + 0.1 for name, value in base.items()}, "float32")
    said = extract(tmp_path, 4)["warnings"]
    (router,) = [warning for warning in said if "router" in warning]
    assert router.startswith(f"the adapter holds factors of 1 routers, such as {layer}.gate, which PEFT does not load")
