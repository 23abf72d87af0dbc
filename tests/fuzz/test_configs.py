"""Configs of models and adapters from strangers: every reader answers in our words, whatever the JSON says."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.engine.plan import make_plan
from mcp_server.errors import Malformed, MergingError, Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.lora import open_adapter
from mcp_server.formats.recipe import merge_recipe
from mcp_server.formats.tensors import read_json
from mcp_server.schemas.limits import MAX_JSON_BYTES
from mcp_server.steps.estimate import estimate
from mcp_server.steps.inspect import inspect_source
from mcp_server.steps.validate import validate
from tests import tiny

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10), st.sampled_from([2**31, 2**63, 10**30, -(2**63)]), st.floats(),
    st.text(max_size=6), st.sampled_from(["LlamaForCausalLM", "llama", "bfloat16", "LORA", "../..", "{{ x }}", "!!python/none"]),
)  # fmt: skip
VALUES = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.just("quant_method"), inner, max_size=3),
    max_leaves=6,
)
MODEL_KEYS = (
    "architectures", "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "tie_word_embeddings", "dtype", "torch_dtype", "quantization_config", "layer_types",
    "text_config", "num_local_experts",
)  # fmt: skip
ADAPTER_KEYS = (
    "peft_type", "base_model_name_or_path", "r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern",
    "alpha_pattern", "modules_to_save", "fan_in_fan_out", "bias", "init_lora_weights", "layer_replication", "exclude_modules",
)  # fmt: skip


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("configs")
    base = tiny.write_model(folder / "base")
    return base, tiny.write_model(folder / "strange"), tiny.write_adapter(folder / "adapter", base)


def answers(*asked) -> None:
    """Each call gives an answer or one of our errors; anything else escapes."""
    for call in asked:
        try:
            call()
        except MergingError as refused:
            assert refused.message


@given(st.dictionaries(st.sampled_from(MODEL_KEYS), VALUES, max_size=6), st.sets(st.sampled_from(MODEL_KEYS), max_size=4))
def test_any_model_config(sources, changes, removed):
    base, strange, _ = sources
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | changes
    (strange / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in removed}), encoding="utf-8")
    recipe = tiny.linear_recipe(base, strange)
    answers(
        lambda: inspect_source(str(strange)),
        lambda: open_checkpoint(str(strange)),
        lambda: validate(recipe),
        lambda: estimate(recipe),
        lambda: make_plan(merge_recipe(recipe)),
    )


@given(st.dictionaries(st.sampled_from(ADAPTER_KEYS), VALUES, max_size=6), st.sets(st.sampled_from(ADAPTER_KEYS), max_size=4))
def test_any_adapter_config(sources, changes, removed):
    base, _, adapter = sources
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 4} | changes
    (adapter / "adapter_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in removed}), encoding="utf-8"
    )
    tensors = open_checkpoint(str(base)).tensors
    recipe = tiny.linear_recipe(base, f"{base}+{adapter}")
    answers(
        lambda: inspect_source(str(adapter)),
        lambda: inspect_source(f"{base}+{adapter}"),
        lambda: open_adapter(str(adapter), tensors),
        lambda: validate(recipe),
        lambda: estimate(recipe),
        lambda: make_plan(merge_recipe(recipe)),
    )


@given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_in_the_place_of_a_config(sources, data):
    _, strange, adapter = sources
    for file in (strange / "config.json", adapter / "adapter_config.json"):
        file.write_bytes(data)
        answers(lambda file=file: inspect_source(str(file.parent)), lambda file=file: read_json(file))


@pytest.mark.parametrize("pattern", ["(a+)+", "([a-z_.0-9]+)*x", ".*.*.*.*.*x", "[", "a*" + "a" * 600])
def test_a_pattern_that_could_take_for_ever_is_not_tried(sources, pattern):
    base, _, adapter = sources
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 4, "rank_pattern": {pattern: 2}}
    (adapter / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises((Unsupported, Malformed), match="pattern"):
        open_adapter(str(adapter), open_checkpoint(str(base)).tensors)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 200_000, "not JSON"),
        (b'{"r": ' + b"9" * 5_000 + b"}", "not JSON"),
        (b'{"r": 1', "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'"text"', "holds str"),
    ],
    ids=["depth", "digits", "cut", "encoding", "text"],
)
def test_what_is_refused_is_named(data, says, tmp_path):
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(Malformed, match=says):
        read_json(tmp_path / "config.json")


def test_a_config_that_is_a_pipe_or_huge_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(Malformed, match="exceeds the limit of"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_bytes(b'{"a": [' + b"[]," * 5_500_000 + b"[]]}")
    with pytest.raises(Malformed, match="more than 6,000,000 values"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(Malformed, match="not a regular file"):
        read_json(tmp_path / "config.json")
