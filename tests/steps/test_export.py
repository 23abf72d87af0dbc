"""What an export knows before it starts, and what it writes without weights."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mcp_server.errors import BadInput, MergingError, NotFound, Unsupported
from mcp_server.formats.exports import not_an_export
from mcp_server.schemas.job import ExportRequest
from mcp_server.steps import export
from mcp_server.steps.export.mixture import mixture
from mcp_server.steps.export.modelfile import go_template, modelfile, turns_of
from mcp_server.steps.export.serving import vllm_command
from tests.engine.synthetic import low_rank, random_tensors, write_adapter, write_model

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SYSTEM_IN_USER = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}{% if m.role == 'user' %}"
    "[INST] {{ s + '\n' if s and loop.index < 3 else '' }}{{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
ROLES_MUST_ALTERNATE = "{{ raise_exception('no system message here') if messages[0].role == 'system' else messages[0].content }}"


def renderer(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def refuse(message: str) -> str:
        raise ValueError(message)

    made = environment.from_string(template, {"raise_exception": refuse})
    return lambda messages, asked: made.render(messages=messages, add_generation_prompt=asked)


def llama(layers: int, hidden: int, kv: int, inner: int, vocabulary: int = 128256) -> dict[str, tuple[int, ...]]:
    """GGUF's names and shapes of a Llama with an output head of its own."""
    table: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, hidden),
        "output.weight": (vocabulary, hidden),
        "output_norm.weight": (hidden,),
    }
    for i in range(layers):
        table |= {
            f"blk.{i}.attn_q.weight": (hidden, hidden),
            f"blk.{i}.attn_k.weight": (kv, hidden),
            f"blk.{i}.attn_v.weight": (kv, hidden),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_gate.weight": (inner, hidden),
            f"blk.{i}.ffn_up.weight": (inner, hidden),
            f"blk.{i}.ffn_down.weight": (hidden, inner),
            f"blk.{i}.attn_norm.weight": (hidden,),
            f"blk.{i}.ffn_norm.weight": (hidden,),
        }
    return table


@pytest.mark.parametrize(
    ("quant", "counts"),
    [
        ("Q4_K_M", {"Q4_K": 193, "Q6_K": 33}),
        ("Q5_K_M", {"Q5_K": 193, "Q6_K": 33}),
        ("Q4_K_S", {"Q4_K": 217, "Q5_K": 8, "Q6_K": 1}),
        ("Q3_K_M", {"Q3_K": 129, "Q4_K": 92, "Q5_K": 4, "Q6_K": 1}),
        ("Q6_K", {"Q6_K": 226}),
        ("Q8_0", {"Q8_0": 226}),
    ],
)
def test_a_model_of_32_layers_gets_the_types_that_llama_cpp_prints_for_it(quant: str, counts: dict[str, int]) -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 32}
    assert Counter(mixture(quant, llama(32, 4096, 1024, 14336), metadata).values()) == counts


def test_rows_that_no_block_of_256_fits_get_types_of_32_and_others_stay_16_bits() -> None:
    metadata = {"general.architecture": "llama", "llama.block_count": 8}
    shapes = llama(8, 576, 192, 1536)
    del shapes["output.weight"]  # tied
    found = mixture("Q4_K_M", shapes | {"blk.0.odd.weight": (4, 12), "blk.0.ffn_gate_inp.weight": (8, 576)}, metadata)
    assert {
        n: found.get(n) for n in ("token_embd.weight", "blk.1.attn_q.weight", "blk.0.attn_v.weight", "blk.1.ffn_down.weight")
    } == {
        "token_embd.weight": "Q8_0",
        "blk.1.attn_q.weight": "Q5_0",
        "blk.0.attn_v.weight": "Q5_0",
        "blk.1.ffn_down.weight": "Q4_K",
    } | {"blk.0.attn_v.weight": "Q8_0"}
    assert (found["blk.0.odd.weight"], found.get("blk.0.ffn_gate_inp.weight")) == ("F16", None)


@pytest.mark.parametrize("template", [CHATML, LLAMA_3])
def test_a_template_that_puts_text_around_messages_is_read_off_exactly(template: str) -> None:
    render = renderer(template)
    turns = turns_of(render)
    assert turns is not None
    talk = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "{{ braces }}"},
    ]
    for messages in (talk, [{"role": "system", "content": "Terse."}, *talk]):
        assert turns.render(messages, True) == render(messages, True)


@pytest.mark.parametrize("template", [SYSTEM_IN_USER, ROLES_MUST_ALTERNATE])
def test_a_template_that_does_more_is_left_out_rather_than_guessed(template: str) -> None:
    assert turns_of(renderer(template)) is None


def test_a_modelfile_says_model_adapter_template_stops_and_sampling() -> None:
    turns = turns_of(renderer(LLAMA_3))
    assert turns is not None
    text = modelfile(
        "m.gguf", adapter="a.gguf", turns=turns, stops=["<|eot_id|>"],
        generation={"temperature": 0.6, "top_p": 0.9, "top_k": None, "do_sample": True},
    )  # fmt: skip
    assert text == (
        "FROM ./m.gguf\nADAPTER ./a.gguf\n"
        f'TEMPLATE """{go_template(turns)}"""\n'
        'PARAMETER stop "<|eot_id|>"\nPARAMETER temperature 0.6\nPARAMETER top_p 0.9\n'
    )
    assert '{{ "<|start_header_id|>user<|end_header_id|>\\n\\n" }}{{ .Content }}{{ "<|eot_id|>" }}' in text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 12}, "vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules persona=/m/persona"),
        (
            {"r": 8, "rank_pattern": {"q": 33}},
            "vllm serve org/base --enable-lora --max-lora-rank 64 --lora-modules persona=/m/persona",
        ),
        (None, "vllm serve /m/persona --served-model-name persona"),
    ],
)
def test_vllm_is_given_the_rank_that_it_takes(config: dict[str, Any] | None, said: str) -> None:
    assert vllm_command(Path("/m/persona"), config, "org/base") == said


@pytest.mark.parametrize("config", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"r": 1024}])
def test_an_adapter_that_vllm_refuses_is_refused_here(config: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match="vLLM does not serve"):
        vllm_command(Path("/m/persona"), config, "org/base")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "merged", random_tensors(0))


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        ({"to": "gguf"}, Unsupported, "does not know the architecture NobodysForCausalLM"),
        ({"to": "vllm", "quant": "Q4_K_M"}, BadInput, "vLLM serves the merge as it is stored"),
        ({"to": "mlx", "quant": "Q5_K_M"}, BadInput, "mlx has no Q5_K_M"),
    ],
)
def test_what_a_target_cannot_do_is_said_before_anything_starts(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, str], kind: type[MergingError], words: str
) -> None:
    monkeypatch.setattr(export, "require_converter", lambda: None)
    monkeypatch.setattr(export, "known_architectures", lambda: frozenset({"LlamaForCausalLM"}))
    config = model / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"architectures": ["NobodysForCausalLM"]}), encoding="utf-8"
    )
    with pytest.raises(kind, match=words):
        export.require_exportable(ExportRequest.of({"out": str(model), "dest": str(tmp_path / "d"), **wanted}), tmp_path / "d")


def test_mlx_is_refused_where_it_does_not_run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.sys, "platform", "linux")
    with pytest.raises(Unsupported, match="Apple silicon"):
        export.require_exportable(ExportRequest(out=str(model), dest=str(tmp_path / "d"), to="mlx"), tmp_path / "d")


def test_an_adapter_without_its_base_names_what_to_fetch(tmp_path: Path) -> None:
    adapter = write_adapter(
        tmp_path / "a", low_rank(3, {"model.layers.1.mlp.up_proj": (16, 12)}, 2), base_model_name_or_path="acme/none"
    ) or tmp_path / "a"  # fmt: skip
    with pytest.raises(NotFound) as refused:
        export.require_exportable(ExportRequest(out=str(adapter), dest=str(tmp_path / "d"), to="gguf"), tmp_path / "d")
    assert "model-merging fetch acme/none" in refused.value.next_step


def test_only_an_export_of_ours_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    assert "holds no export.json" in str(not_an_export(folder))
    record = {"target": "vllm", "folder": "x", "source": "m", "kind": "model", "files": {"serve.sh": 1}, "command": "c"}
    (folder / "export.json").write_text(json.dumps(record), encoding="utf-8")
    assert "'notes.txt'" in str(not_an_export(folder))
    (folder / "notes.txt").unlink()
    assert not_an_export(folder) is None


def test_a_base_that_would_be_an_option_is_no_word_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="which is no model"):
        vllm_command(tmp_path, {"r": 8}, "--trust-remote-code")
    assert "'; rm -rf ~'" in vllm_command(tmp_path, {"r": 8}, "; rm -rf ~")
