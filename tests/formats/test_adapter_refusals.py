"""Whatever the reader of adapters refuses, the linter reports as an error in the same words, before anything runs.

Every `raise` of the reader is reached by a case here; one that is added without a case fails the last test.
"""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

from mcp_server import formats
from mcp_server.errors import MergingError
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.lora import open_adapter
from mcp_server.formats.recipe import KEEPS_TIES
from mcp_server.steps.validate import validate
from tests.checkpoints import WIDTH, shapes, write_model
from tests.tiny import write_safetensors

_FORMATS = Path(formats.__file__).parent
READER = (*sorted(_FORMATS.glob("adapter_*.py")), _FORMATS / "lora.py")
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"
Dims = dict[str, list[int]]


def pair(module: str, rank: int = 2, into: int = 8, out: int = 8) -> Dims:
    return {f"{module}.lora_A.weight": [rank, into], f"{module}.lora_B.weight": [out, rank]}


@dataclass(frozen=True)
class Case:
    """An adapter by the shapes of its tensors, the settings that differ from plain LoRA's, and the base that it is put on."""

    tensors: Dims
    settings: dict[str, Any] = field(default_factory=dict)
    base: str = "llama"
    dtype: str = "F32"
    file: str = "adapter_model.safetensors"
    keeps_ties: bool = False


CASES: dict[str, Case] = {
    "prompt tuning": Case({"prompt_embeddings": [4, 8]}, {"peft_type": "PROMPT_TUNING"}),
    "a kind without a formula": Case(pair(Q), {"peft_type": "BOFT"}),
    "a setting without a formula": Case(pair(Q), {"lora_bias": True}),
    "weights of the base changed at the start": Case(pair(Q), {"init_lora_weights": "pissa"}),
    "no tensors": Case({}),
    "no kind": Case(pair(Q), {"peft_type": None}),
    "the layout of sd-scripts": Case({"lora_te_model_layers_0_self_attn_q_proj.lora_down.weight": [2, 8]}),
    "integers": Case(pair(Q), dtype="I8"),
    "two adapters in one file": Case(
        {f"{Q}.lora_A.one.weight": [2, 8], f"{Q}.lora_B.one.weight": [8, 2], f"{DOWN}.lora_A.two.weight": [2, 16]}
    ),
    "a module that the base lacks": Case(pair("model.layers.7.self_attn.q_proj")),
    "layers that the config leaves out": Case(pair(Q.replace(".0.", ".1.")), {"layers_to_transform": [0]}),
    "another size": Case(pair(Q, into=12, out=12)),
    "no B": Case({f"{Q}.lora_A.weight": [2, 8]}),
    "a magnitude that the config denies": Case(pair(Q) | {f"{Q}.lora_magnitude_vector": [8]}),
    "sharded when it was saved": Case({f"{Q}.lora_A.weight": [0], f"{Q}.lora_B.weight": [0]}),
    "another rank than the config's": Case(pair(Q), {"r": 4}),
    "an alpha that is no number": Case(pair(Q), {"lora_alpha": "high"}),
    "patterns that are no table": Case(pair(Q), {"rank_pattern": [1]}),
    "a pattern that never ends": Case(pair(Q), {"rank_pattern": {"(a*)*(b*)*": 2}}),
    "a pattern that is none": Case(pair(Q), {"rank_pattern": {"[": 2}}),
    "rows of tokens that the config does not name": Case(
        {"model.embed_tokens.token_adapter.trainable_tokens_delta": [2, 8]}, {"trainable_token_indices": {"embed_tokens": [1]}}
    ),
    "a token past the vocabulary": Case(
        {"model.embed_tokens.token_adapter.trainable_tokens_delta": [1, 8]}, {"trainable_token_indices": {"embed_tokens": [99]}}
    ),
    "a norm of another size": Case({"model.norm.modules_to_save.weight": [4]}),
    "an embedding alone with more rows": Case({"model.embed_tokens.modules_to_save.weight": [20, 8]}),
    "fewer rows": Case({"model.embed_tokens.modules_to_save.weight": [12, 8]}),
    "LoHa in Tucker form": Case(
        {f"{Q}.hada_w1_a": [2, 8], f"{Q}.hada_w1_b": [2, 8], f"{Q}.hada_t1": [2, 2, 3, 3]}, {"peft_type": "LOHA"}
    ),
    "LoHa of another size": Case(
        {f"{Q}.hada_w{n}_{side}": shape for n in (1, 2) for side, shape in (("a", [9, 2]), ("b", [2, 9]))}, {"peft_type": "LOHA"}
    ),
    "LoHa without a half": Case({f"{Q}.hada_w1_a": [8, 2]}, {"peft_type": "LOHA"}),
    "LoHa with a rank that is no number": Case(
        {f"{Q}.hada_w{n}_{side}": shape for n in (1, 2) for side, shape in (("a", [8, 2]), ("b", [2, 8]))},
        {"peft_type": "LOHA", "r": "two"},
    ),
    "VeRA without its projections": Case(
        {f"{Q}.vera_lambda_b": [8], f"{Q}.vera_lambda_d": [2]}, {"peft_type": "VERA", "save_projection": False}
    ),
    "VeRA with projections that are too small": Case(
        {f"{Q}.vera_lambda_b": [8], f"{Q}.vera_lambda_d": [2], "base_model.vera_A": [2, 4], "base_model.vera_B": [8, 2]},
        {"peft_type": "VERA"},
    ),
    "IA3 of another size": Case({f"{Q}.ia3_l": [5, 1]}, {"peft_type": "IA3"}),
    "IA3 on a Conv1D": Case({"transformer.h.0.attn.c_attn.ia3_l": [24, 1]}, {"peft_type": "IA3"}, "gpt2"),
    "a rank that the experts do not share": Case(
        {f"{FUSED}.lora_A.weight": [3, 8], f"{FUSED}.lora_B.weight": [16, 3]}, {"target_parameters": ["gate_up_proj"]}, "experts"
    ),
    "a grouped convolution": Case(
        {"features.0.lora_A.weight": [4, 4, 3], "features.0.lora_B.weight": [8, 2, 1]}, {"r": 4}, "convolution"
    ),
    "rows that the adapter itself has added": Case(
        {
            "model.embed_tokens.modules_to_save.weight": [20, 8],
            "lm_head.modules_to_save.weight": [20, 8],
            "model.embed_tokens.lora_embedding_A": [2, 16],
            "model.embed_tokens.lora_embedding_B": [8, 2],
        }
    ),
    "experts that the base interleaves": Case(
        {"model.layers.0.mlp.experts.lora_A.weight": [4, 8], "model.layers.0.mlp.experts.lora_B.weight": [16, 4]},
        {"target_parameters": ["gate_up_proj"]},
        "interleaved",
    ),
    "patterns by the hundred": Case(pair(Q), {"rank_pattern": {f"a.*{n}": 2 for n in range(300)}}),
    "DoRA on both names of a tied tensor": Case(
        pair("lm_head", out=16)
        | {
            "lm_head.lora_magnitude_vector": [16],
            "model.embed_tokens.lora_embedding_A": [2, 16],
            "model.embed_tokens.lora_embedding_B": [8, 2],
            "model.embed_tokens.lora_magnitude_vector": [8],
        },
        {"use_dora": True},
        "tied",
        keeps_ties=True,
    ),
    "a pickle": Case(pair(Q), file="adapter_model.bin"),
    "names that fit in two ways": Case(pair("layers.0.self_attn.q_proj"), base="two towers"),
    "a whole matrix for one stored in pieces": Case({"model.layers.0.mlp.experts.gate_up_proj": [2, 32, 8]}, {}, "mixture"),
    "LoHa on what is stored in pieces": Case(
        {f"{FUSED[:-13]}.hada_w{n}_{side}": shape for n in (1, 2) for side, shape in (("a", [2, 2]), ("b", [2, 128]))},
        {"peft_type": "LOHA"},
        "mixture",
    ),
}


def write_base(folder: Path, kind: str) -> Path:
    if kind == "gpt2":
        attention = "transformer.h.0.attn.c_attn"
        names = {"transformer.wte.weight": [16, 8], f"{attention}.weight": [8, 24], f"{attention}.bias": [24]}
        return write_model(folder, drop=tuple(_llama()), add=names, architecture="GPT2LMHeadModel")
    if kind == "experts":
        return write_model(folder, add={FUSED: [2, 16, 8]}, architecture="UnknownForCausalLM")
    if kind == "mixture":
        names = {
            f"model.layers.0.mlp.experts.{n}.{part}.weight": shape
            for n in range(2)
            for part, shape in (("gate_proj", [16, 8]), ("up_proj", [16, 8]), ("down_proj", [8, 16]))
        }
        return write_model(
            folder,
            add=names | {"model.layers.0.mlp.gate.weight": [2, 8]},
            architecture="Qwen3MoeForCausalLM",
            model_type="qwen3_moe",
        )
    if kind == "interleaved":
        return write_model(folder, add={"model.layers.0.mlp.experts.w13_weight": [2, 16, 8]}, architecture="Inkling2ForCausalLM")
    if kind == "convolution":
        return write_model(folder, add={"features.0.weight": [8, 4, 3]}, architecture="UnknownForCausalLM")
    if kind == "two towers":
        names = {f"{tower}.layers.0.self_attn.q_proj.weight": [8, 8] for tower in ("left", "right")}
        return write_model(folder, drop=tuple(_llama()), add=names, architecture="UnknownModel")
    return write_model(folder, tied=kind == "tied")


def _llama() -> list[str]:
    return list(shapes(2, 8, 16, 16, 2, 2, False))


def write_adapter(folder: Path, case: Case) -> Path:
    folder.mkdir(parents=True)
    made = {}
    for name, dims in case.tensors.items():
        made[f"base_model.model.{name}"] = (case.dtype, dims, bytes(math.prod(dims) * WIDTH[case.dtype]))
    write_safetensors(folder / case.file, made)
    settings = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | case.settings), encoding="utf-8")
    return folder


def lines_reached(call: Callable[[], object]) -> set[tuple[str, int]]:
    """Lines of the reader that run during a call."""
    files = {str(path) for path in READER}
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        reached.add((Path(frame.f_code.co_filename).name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return reached


def refusal_of(case: Case, folder: Path) -> tuple[MergingError, str]:
    """What the reader says of a case, and the recipe that asks for it."""
    base, adapter = write_base(folder / "base", case.base), write_adapter(folder / "adapter", case)
    opened = open_checkpoint(str(base))
    with pytest.raises(MergingError) as refused:
        open_adapter(str(adapter), opened.tensors, opened.config, as_merged=case.keeps_ties)
    settings = {"weight": 1} | ({KEEPS_TIES: True} if case.keeps_ties else {})
    recipe = {"merge_method": "linear", "models": [{"model": f"{base}+{adapter}", "parameters": settings}]}
    return refused.value, yaml.safe_dump(recipe)


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_of_the_reader_is_an_error_of_the_linter(name: str, tmp_path: Path) -> None:
    refusal, recipe = refusal_of(CASES[name], tmp_path)
    found = validate(recipe)
    errors = {(finding.message, finding.fix) for finding in found.findings if finding.severity == "error"}
    assert not found.ok
    assert (refusal.message, refusal.next_step) in errors


def raises(path: Path) -> Iterator[tuple[str, range]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield path.name, range(node.lineno, (node.end_lineno or node.lineno) + 1)


def test_every_refusal_of_the_reader_has_a_case(tmp_path: Path) -> None:
    def all_cases() -> None:
        for number, case in enumerate(CASES.values()):
            refusal_of(case, tmp_path / str(number))

    reached = lines_reached(all_cases)
    missing = [
        f"{name}:{lines.start}"
        for path in READER
        for name, lines in raises(path)
        if not any((name, line) in reached for line in lines)
    ]
    assert not missing, missing
