"""Packed weights whose parts do not fit, or whose form is not read, are named before anything is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mcp_server.errors import Malformed, MergingError, NotAModel
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.steps.validate import validate
from tests.engine.packers import FORMS, Tensors
from tests.engine.synthetic import run
from tests.engine.test_quantised import arithmetic, weights, write
from tests.engine.test_unpack import read

Q = "model.layers.0.self_attn.q_proj.weight"
QUANTISED = Q.removesuffix(".weight")
QUANT_STATE = f"{Q}.quant_state.bitsandbytes__nf4"


def state(**change: Any) -> Callable[[Tensors], Tensors]:
    def edit(tensors: Tensors) -> Tensors:
        said = json.loads(bytes(tensors[QUANT_STATE].tolist())) | change
        return tensors | {QUANT_STATE: torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)}

    return edit


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def cut(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: tensors[name][:-1].contiguous()}


@pytest.mark.parametrize(
    ("form", "edit", "error", "says"),
    [
        ("nf4 nested", without(QUANT_STATE), Malformed, "quant_state.bitsandbytes__nf4, which says"),
        ("nf4 nested", without(f"{Q}.absmax"), Malformed, "absmax is not there"),
        ("nf4 nested", without(f"{Q}.quant_map"), Malformed, "quant_map is not there"),
        ("nf4 nested", without(f"{Q}.nested_absmax"), Malformed, "nested_absmax is not there"),
        ("nf4 nested", cut(f"{Q}.absmax"), Malformed, "should be U8 .64."),
        ("nf4 nested", cut(Q), Malformed, "should be 2048 bytes"),
        ("nf4 nested", state(blocksize=0), Malformed, "no shape and block size"),
        ("nf4 nested", state(shape=[64, 65]), Malformed, "should be 2080 bytes"),
        ("nf4 nested", state(nested_offset=None), Malformed, "offset None"),
        ("LLM.int8", cut(Q.replace("weight", "SCB")), Malformed, "should be .* one for each row"),
        ("LLM.int8", without(Q.replace("weight", "SCB")), NotAModel, "not known here: .*I8"),
        ("fp8 blocks", without(f"{Q}_scale_inv"), Malformed, "no .*_scale or"),
        ("fp8 blocks", lambda t: t | {f"{Q}_scale_inv": torch.ones(3, 5)}, Malformed, "does not divide"),
        ("fp8 blocks", lambda t: t | {f"{Q}_scale_inv": torch.ones(63)}, Malformed, "for each row"),
        ("fp8 blocks", lambda t: t | {Q: t[Q].bfloat16()}, Malformed, "beside it is not FP8"),
        ("fp8 rows", lambda t: t | {f"{Q}_scale_inv": torch.ones(64, 1)}, Malformed, "has two scales"),
        ("gptq", lambda t: t | {Q: torch.ones(64, 64)}, Malformed, "is stored beside .*qweight"),
        ("int4 groups", lambda t: t | {Q: torch.ones(64, 64)}, Malformed, "is stored beside .*weight_packed"),
        ("gptq", lambda t: t | {f"{QUANTISED}.g_idx": torch.full((64,), -1)}, Malformed, "names groups -1 to -1"),
        ("int4 groups", without(f"{Q}_scale"), Malformed, "_scale is not there"),
        ("int4 groups", without(f"{Q}_shape"), Malformed, "_shape is not there"),
        ("int4 groups", lambda t: t | {f"{Q}_shape": torch.tensor([64, 63])}, Malformed, "do not divide"),
        ("int4 groups", lambda t: t | {f"{Q}_shape": torch.tensor([64, 640])}, Malformed, "_packed .* should be"),
        ("int4 groups", lambda t: t | {f"{Q}_scale": torch.ones(64, 3)}, Malformed, "do not divide"),
        ("mxfp8", without(f"{Q}_scale"), Malformed, "no .*_scale or"),
        ("mxfp4", without(f"{Q}_scale"), Malformed, "_scale is not there"),
        ("mxfp4", cut(f"{Q}_scale"), Malformed, "one for each group of 32"),
        ("nvfp4", without(f"{Q}_global_scale"), Malformed, "_global_scale is not there"),
        ("gptq", without(f"{QUANTISED}.scales"), Malformed, "scales is not there"),
        ("gptq", without(f"{QUANTISED}.qzeros"), Malformed, "qzeros is not there"),
        ("gptq", without(f"{QUANTISED}.qweight"), NotAModel, "holds packed codes"),
        ("gptq", cut(f"{QUANTISED}.scales"), Malformed, "one zero point for each scale"),
        ("gptq", cut(f"{QUANTISED}.qweight"), Malformed, "the group of each input"),
        ("gptq", lambda t: t | {f"{QUANTISED}.g_idx": torch.full((64,), 2)}, Malformed, "names groups 2 to 2"),
        ("gptq_v2", cut(f"{QUANTISED}.qzeros"), Malformed, "one zero point for each scale"),
        ("awq", cut(f"{QUANTISED}.qweight"), Malformed, "does not divide"),
        ("torchao int8", without(f"{QUANTISED}._weight_scale"), Malformed, "_weight_scale is not there"),
        ("torchao int8", cut(f"{QUANTISED}._weight_zero_point"), Malformed, "one for each scale"),
        (
            "int4 groups",
            lambda t: t | {f"{Q}_g_idx": torch.full((64,), 2, dtype=torch.int32)},
            Malformed,
            "names groups 2 to 2",
        ),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named_before_anything_is_written(
    tmp_path: Path, form: str, edit: Callable[[Tensors], Tensors], error: type[MergingError], says: str
) -> None:
    write(tmp_path / "base", weights(0))
    write(tmp_path / "tuned", weights(1), FORMS[form])
    file = tmp_path / "tuned" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(edit(load_file(file)), file, metadata=metadata)
    text = arithmetic(tmp_path / "base", tmp_path / "tuned")
    with pytest.raises(error, match=says) as raised:
        run(text, tmp_path / "out")
    assert raised.value.next_step
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    with pytest.raises((error, NotAModel), match=says):
        open_checkpoint(str(tmp_path / "tuned"))
    assert not validate(text).ok


@pytest.mark.parametrize(
    ("parts", "scheme"),
    [
        ({"W_q": torch.uint8, "meta": torch.float32}, "HQQ"),
        ({"codes": torch.int16, "codebooks": torch.float32}, "AQLM"),
        ({"indices": torch.int32, "centroids": torch.float32}, "VPTQ"),
        ({"weight._data": torch.int8, "weight._scale": torch.float32}, "optimum-quanto"),
        ({"trellis": torch.int16, "suh": torch.float32}, "EXL3"),
        ({"weight": torch.int16}, "not known"),
    ],
)
def test_a_format_that_is_not_read_is_named_with_the_tool_that_reads_it(
    tmp_path: Path, parts: dict[str, torch.dtype], scheme: str
) -> None:
    write(tmp_path / "base", weights(0))
    folder = tmp_path / "base"
    stem = Q.removesuffix("weight")
    tensors = load_file(folder / "model.safetensors")
    del tensors[Q]
    save_file(
        tensors | {stem + part: torch.ones((4, 4)).to(dtype) for part, dtype in parts.items()}, folder / "model.safetensors"
    )
    with pytest.raises(NotAModel, match=scheme) as raised:
        run(arithmetic(folder, folder), tmp_path / "out")
    assert raised.value.next_step


@pytest.mark.parametrize(
    ("method", "parts", "scheme", "tool"),
    [
        ("eetq", {"weight": torch.int8, "weight_scales": torch.float16}, "EETQ", "load it with transformers and EETQ"),
        ("bitnet", {"weight": torch.uint8, "weight_scale": torch.bfloat16}, "BitNet", "bf16 weights"),
        ("spqr", {"dense_weights": torch.int64, "col_vals": torch.int32}, "SpQR", "spqr_quant"),
        ("vptq", {"indices": torch.int32}, "VPTQ", "vptq"),
        ("aqlm", {"codes": torch.int8}, "AQLM", "aqlm"),
        ("hqq", {"W_q": torch.uint8}, "HQQ", "hqq"),
        ("quanto", {"weight._data": torch.uint8}, "optimum-quanto", "optimum-quanto"),
        ("higgs", {"weight": torch.int16, "scales": torch.float16}, "HIGGS", "flute"),
        ("fp-quant", {"qweight": torch.uint8, "scales": torch.uint8}, "FP-Quant", "fp_quant"),
    ],
)
def test_a_method_that_the_config_names_is_refused_with_the_tool_that_converts_it(
    tmp_path: Path, method: str, parts: dict[str, torch.dtype], scheme: str, tool: str
) -> None:
    write(tmp_path / "base", weights(0), quantization_config={"quant_method": method})
    file = tmp_path / "base" / "model.safetensors"
    stem = Q.removesuffix("weight")
    stored = without(Q)(load_file(file)) | {stem + part: torch.ones((8, 8)).to(dtype) for part, dtype in parts.items()}
    save_file(stored, file)
    with pytest.raises(MergingError, match=scheme) as raised:
        run(arithmetic(tmp_path / "base", tmp_path / "base"), tmp_path / "out")
    assert re.search(tool, raised.value.next_step)
    assert not (tmp_path / "out").exists()


def test_plain_weights_that_a_model_rounds_while_it_runs_keep_that_setting(tmp_path: Path) -> None:
    """BitNet's bf16 checkpoints: without the setting a merge would compute with weights that were trained to be rounded."""
    said = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    write(tmp_path / "base", weights(0), quantization_config=said)
    write(tmp_path / "tuned", weights(1, weights(0)), quantization_config=said)
    run(arithmetic(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))["quantization_config"] == said


@pytest.mark.parametrize(
    ("form", "config", "says"),
    [
        ("gptq", {"quant_method": "gptq", "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ("gptq", {"quant_method": "bitblas"}, "packed by bitblas"),
        ("gptq", {"quant_method": "awq"}, r"AWQ does"),
        ("gptq", None, "no config says which"),
        ("gptq", {"quant_method": "auto-round", "packing_format": "auto_round:exllamav2"}, "no config says which"),
        (
            "awq",
            {"quant_method": "awq", "version": "gemv", "group_size": 32},
            "floating point: 3 groups, padded",
        ),
        ("awq gemv", {"quant_method": "awq", "version": "gemv"}, "how many inputs share a scale"),
        ("awq gemv", {"quant_method": "awq", "version": "gemv", "group_size": 24}, "whole groups of 24"),
        ("awq gemv", {"quant_method": "awq", "version": "gemv", "group_size": 64}, "1 groups, padded"),
        ("awq gemv", {"quant_method": "awq", "version": "gemm"}, "one zero point for each scale|AWQ does|does not divide"),
        ("awq gemv", None, "how many inputs share a scale"),
        ("awq", {"quant_method": "awq", "version": "gemv_fast"}, "gemm and gemv are read"),
        ("awq", {"quant_method": "gptq"}, "as GPTQ has it"),
        ("fp8 blocks", {"quant_method": "fp8", "weight_block_size": [64, 64]}, "as the config's weight_block_size says"),
        ("int4 groups", {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {}}}}, "rotated"),
    ],
)
def test_a_layout_that_the_config_makes_another_is_refused(
    tmp_path: Path, form: str, config: dict[str, Any] | None, says: str
) -> None:
    write(tmp_path / "base", weights(0))
    write(tmp_path / "tuned", weights(1), FORMS[form], quantization_config=config)
    text = arithmetic(tmp_path / "base", tmp_path / "tuned")
    with pytest.raises(MergingError, match=says) as raised:
        run(text, tmp_path / "out")
    assert raised.value.next_step
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    assert not validate(text).ok


def test_awq_of_gemv_without_a_config_is_not_taken_for_gptq(tmp_path: Path) -> None:
    """AutoAWQ's gemv: codes (out, in/8), zero points (out, 1) and scales (out, 8), whatever the number of groups."""
    write(tmp_path / "tuned", weights(1))
    file = tmp_path / "tuned" / "model.safetensors"
    words = torch.full((64, 8), 0x77777777, dtype=torch.int32)
    scales = torch.ones((64, 8), dtype=torch.float16)
    parts = {"qweight": words, "qzeros": words[:, :1].contiguous(), "scales": scales}
    save_file(without(Q)(load_file(file)) | {f"{QUANTISED}.{key}": part for key, part in parts.items()}, file)
    with pytest.raises(MergingError, match="gemv layout, and no config says"):
        open_checkpoint(str(tmp_path / "tuned"))


def test_the_file_beside_an_older_model_says_which_zero_points_it_has(tmp_path: Path) -> None:
    values = write(tmp_path / "tuned", weights(1), FORMS["gptq"], quantization_config=None)
    said = {"bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq"}
    (tmp_path / "tuned" / "quantize_config.json").write_text(json.dumps(said), encoding="utf-8")
    stored = open_checkpoint(str(tmp_path / "tuned")).tensors[Q]
    assert torch.equal(torch.from_numpy(read(stored)), values[Q])


def test_a_file_that_means_nothing_beside_plain_weights_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "plain", weights(1))
    (tmp_path / "plain" / "quantize_config.json").write_text("[", encoding="utf-8")
    assert Q in open_checkpoint(str(tmp_path / "plain")).tensors


@pytest.mark.parametrize("form", ["nf4", "LLM.int8", "gptq"])
def test_a_packed_conv1d_lies_turned(tmp_path: Path, form: str) -> None:
    """transformers turns GPT-2's matrices before it packs them; a square one would merge without a complaint."""
    folder = tmp_path / "model"
    folder.mkdir()
    made = FORMS[form].pack("transformer.h.0.attn.c_proj.weight", torch.randn(64, 64))
    save_file({key: part.contiguous() for key, part in made.stored.items()}, folder / "model.safetensors")
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "quantization_config": FORMS[form].config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(NotAModel, match=r"Conv1D.*turned"):
        open_checkpoint(str(folder))


def test_kinds_of_torchao_that_lie_in_a_gpu_s_order_are_named(tmp_path: Path) -> None:
    write(tmp_path / "tuned", weights(1))
    file = tmp_path / "tuned" / "model.safetensors"
    parts = {"qdata": torch.zeros((64, 32), dtype=torch.int8), "scale": torch.ones(2, 64), "zero_point": torch.ones(2, 64)}
    tensors = without(Q)(load_file(file)) | {f"{QUANTISED}._weight_{key}": part for key, part in parts.items()}
    for metadata, says in (({Q: '{"_type": "Int4Tensor"}'}, "its Int4Tensor"), ({"format": "pt"}, "metadata does not say")):
        save_file(tensors, file, metadata=metadata)
        with pytest.raises(MergingError, match=says):
            open_checkpoint(str(tmp_path / "tuned"))
