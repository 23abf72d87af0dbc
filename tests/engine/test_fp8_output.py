"""Merges stored in FP8 as one of their models is: unchanged blocks are its bytes, changed ones are quantised anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mcp_server.engine.merge import Work
from mcp_server.engine.request import Request
from mcp_server.errors import BadInput, MergingError, Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.jobs.engines import choose
from mcp_server.schemas.job import MergeRequest
from mcp_server.steps.estimate import estimate
from mcp_server.steps.estimate.budget import METADATA_BYTES
from mcp_server.steps.validate import validate
from mcp_server.steps.verify import verify
from tests.engine.packers import FORMS, Form, Packed, Tensors, fp8
from tests.engine.synthetic import run
from tests.engine.test_quantised import NAMES, arithmetic, weights, write, write_adapter


def half_scales(name: str, weight: torch.Tensor) -> Packed:
    """Scales in bfloat16, as compressed-tensors stores them."""
    packed = fp8(name, weight, grid=(32, 32))
    packed.stored[f"{name}_scale"] = packed.stored[f"{name}_scale"].bfloat16()
    codes, scale = packed.stored[name].float(), packed.stored[f"{name}_scale"].float()
    return Packed(
        packed.stored, codes * scale.repeat_interleave(32, 0)[: len(weight)].repeat_interleave(32, 1)[:, : weight.shape[1]]
    )


def powers(name: str, weight: torch.Tensor) -> Packed:
    """DeepSeek's ue8m0: float32 scales that are powers of two."""
    scale = torch.full((-(-weight.shape[0] // 32), weight.shape[1] // 32), 2.0**-6)
    codes = (weight / 2.0**-6).clamp(-448, 448).to(torch.float8_e4m3fn)
    return Packed({name: codes, f"{name}_scale_inv": scale}, codes.float() * 2.0**-6)


FP8 = {
    name: FORMS[name] for name in ("fp8 one scale", "fp8 rows", "fp8 blocks", "fp8 edges", "mxfp8")
} | {
    "bf16 scales": Form("FP8 (e4m3)", half_scales),
    "ue8m0": Form("FP8 (e4m3)", powers, {"quant_method": "fp8", "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}),
}  # fmt: skip


@pytest.fixture
def blocks_of_16_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own blocks, smaller than those of the scales: their largest value is in another one."""
    monkeypatch.setattr("mcp_server.engine.blocks.BLOCK_ELEMENTS", 16 * 64)


def parts(folder: Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scale) as they are stored."""
    tensors = load_file(folder / "model.safetensors")
    scale = tensors.get(f"{name}_scale_inv", tensors.get(f"{name}_scale"))
    assert scale is not None
    return tensors[name], scale


def spread(scale: torch.Tensor, shape: torch.Size, block: tuple[int, int]) -> torch.Tensor:
    """The scale of every value."""
    number = torch.exp2(scale.double() - 127) if scale.dtype == torch.uint8 else scale.double()
    grid = number.reshape(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    return grid.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]


def blocks(values: torch.Tensor, block: tuple[int, int]) -> list[torch.Tensor]:
    return [part for rows in values.split(block[0]) for part in rows.split(block[1], 1)]


def block_of(folder: Path, name: str) -> tuple[int, int]:
    packed = open_checkpoint(str(folder)).tensors[name].packed
    assert packed is not None
    return packed.block  # type: ignore[attr-defined, no-any-return]


def half_step(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Half of the distance between E4M3 numbers at a value, in float64."""
    exponent = torch.floor(torch.log2((value / scale).abs().clamp(2.0**-6, 448)))
    return torch.exp2(exponent - 3) * scale / 2


def test_values_are_the_nearest_codes_at_the_scale_of_their_block(tmp_path: Path, blocks_of_16_rows: None) -> None:
    for label, form in FP8.items():
        torch.manual_seed(0)
        folder = tmp_path / label.replace(" ", "_")
        base = write(folder / "base", weights(0), form)
        tuned = write(folder / "tuned", weights(1, weights(0)), form)
        deltas = write_adapter(folder / "adapter", 3)
        text = arithmetic(folder / "base", folder / "tuned", f"{folder / 'base'}+{folder / 'adapter'}")
        run(text, folder / "out", output_format="fp8")
        for name in NAMES:
            codes, scale = parts(folder / "out", name)
            assert (codes.dtype, scale.dtype) == (torch.float8_e4m3fn, parts(folder / "base", name)[1].dtype), label
            want = base[name].double() + 0.5 * (tuned[name].double() - base[name].double()) + 0.5 * deltas[name]
            block = block_of(folder / "base", name)
            wide = spread(scale, codes.shape, block)
            error = (codes.double() * wide - want).abs()
            assert (error <= half_step(want, wide) * 1.001).all(), (label, name)
            for top, step in zip(blocks(want.abs(), block), blocks(wide, block), strict=True):
                ratio = float(top.max() / 448 / step.max())
                assert (0.5 < ratio <= 1) if label in ("mxfp8", "ue8m0") else abs(ratio - 1) < 2**-8, (label, name)


def test_blocks_that_no_source_changes_keep_their_bytes(tmp_path: Path, blocks_of_16_rows: None) -> None:
    """A tensor that all sources share, an adapter's untouched blocks, and one changed block among unchanged ones."""
    form = FP8["fp8 blocks"]
    plain = weights(0)
    write(tmp_path / "base", plain, form)
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    changed = tensors[NAMES[0]].clone()
    changed[32:64, :32] = (changed[32:64, :32].float() * 0.5).to(changed.dtype)
    (tmp_path / "tuned").mkdir()
    save_file(tensors | {NAMES[0]: changed}, tmp_path / "tuned" / "model.safetensors")
    (tmp_path / "tuned" / "config.json").write_text((tmp_path / "base" / "config.json").read_text("utf-8"), encoding="utf-8")
    for method in ("ties", "linear", "slerp"):
        body: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
        entries = [{"model": str(tmp_path / "tuned"), "parameters": {"weight": 0.7, "density": 0.5}}]
        body |= {"base_model": str(tmp_path / "base"), "models": entries}
        if method == "linear":
            body = {"merge_method": "linear", "models": [{"model": str(tmp_path / n), "parameters": {"weight": w}} for n, w in
                                                         (("base", 0.3), ("tuned", 0.7))]}  # fmt: skip
        if method == "slerp":
            body = {"merge_method": "slerp", "base_model": str(tmp_path / "base"), "parameters": {"t": 0.5}, "models": [
                {"model": str(tmp_path / "base")}, {"model": str(tmp_path / "tuned")}]}  # fmt: skip
        run(json.dumps(body), tmp_path / method, output_format="fp8")
        out = load_file(tmp_path / method / "model.safetensors")
        assert set(out) == set(tensors)
        moved = {name for name in tensors if not torch.equal(out[name].view(torch.uint8), tensors[name].view(torch.uint8))}
        assert moved == {NAMES[0], f"{NAMES[0]}_scale_inv"}, method
        same = (out[NAMES[0]].view(torch.uint8) == tensors[NAMES[0]].view(torch.uint8)).clone()
        same[32:64, :32] = True
        if method == "slerp":  # which scales all of a changed tensor
            continue
        assert same.all(), method
        scales = out[f"{NAMES[0]}_scale_inv"] == tensors[f"{NAMES[0]}_scale_inv"]
        assert scales.tolist() == [[True, True], [False, True]], method


def test_the_config_keeps_its_quantisation_and_transformers_reads_what_was_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 50, "tie_word_embeddings": False}  # fmt: skip
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"]}  # fmt: skip
    values: dict[str, Tensors] = {}
    for seed, label in enumerate(("base", "tuned")):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape)).bfloat16()
        torch.manual_seed(seed)
        model.save_pretrained(tmp_path / label)
        stored = load_file(tmp_path / label / "model.safetensors")
        values[label] = {}
        for name in list(stored):
            values[label][name] = stored[name].double()
            if "proj" in name:
                made = fp8(name, stored[name].float(), grid=(128, 128), suffix="_scale_inv")
                stored |= made.stored
                values[label][name] = made.value.double()
        save_file(stored, tmp_path / label / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((tmp_path / label / "config.json").read_text("utf-8"))
        (tmp_path / label / "config.json").write_text(json.dumps(config | {"quantization_config": said}), encoding="utf-8")
    run(arithmetic(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", output_format="fp8", shard_bytes=300_000)
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert (config["quantization_config"], config["dtype"]) == (said, "bfloat16")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text("utf-8"))["weight_map"]
    scaled = [name for name in index if name.endswith("_scale_inv")]
    assert len(scaled) == 14
    assert all(index[name] == index[name.removesuffix("_scale_inv")] for name in scaled)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        quantization_config=transformers.FineGrainedFP8Config(**said | {"dequantize": True}),
        dtype=torch.float32,
    )
    for name, value in loaded.state_dict().items():
        want = (values["base"][name] + values["tuned"][name]) / 2
        spare = 0.5 * 2**-3 * want.abs() + 2**-9 * want.abs().max() / 4 + 2**-8 * want.abs()
        assert ((value.double() - want).abs() <= spare).all(), name


def test_a_16_bit_base_takes_the_layout_of_its_fp8_source(tmp_path: Path) -> None:
    write(tmp_path / "base", weights(0))
    tuned = write(tmp_path / "tuned", weights(1, weights(0)), FP8["fp8 edges"])
    found = run(arithmetic(tmp_path / "base", tmp_path / "tuned", weight=1.0), tmp_path / "out", output_format="fp8")
    assert f"the output is stored in FP8 as {tmp_path / 'tuned'} is" in found["warnings"]
    for name in NAMES:
        codes, scale = parts(tmp_path / "out", name)
        wide = spread(scale, codes.shape, (48, 40))
        assert ((codes.double() * wide - tuned[name].double()).abs() <= half_step(tuned[name].double(), wide) * 1.001).all(), name
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    assert config["quantization_config"] == FP8["fp8 edges"].config


def test_scales_of_activations_are_copied_and_named(tmp_path: Path) -> None:
    base = write(tmp_path / "base", weights(0), FP8["fp8 rows"])
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    beside = {NAMES[0].replace("weight", "input_scale"): torch.tensor(0.25)}
    save_file(tensors | beside, tmp_path / "base" / "model.safetensors")
    write(tmp_path / "tuned", weights(1, weights(0)), FP8["fp8 rows"])
    found = run(arithmetic(tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", output_format="fp8")
    out = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: out[name] for name in beside} == beside
    assert any("scales of activations" in warning for warning in found["warnings"])
    assert set(out) == {*tensors, *beside}
    assert base.keys() <= out.keys()


def test_a_killed_merge_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Also when the codes of a tensor reached the disk and its scales did not."""
    write(tmp_path / "base", weights(0), FP8["fp8 blocks"])
    write(tmp_path / "tuned", weights(1, weights(0)), FP8["fp8 blocks"])
    text = arithmetic(tmp_path / "base", tmp_path / "tuned")
    run(text, tmp_path / "whole", output_format="fp8", seed=1)
    run(text, tmp_path / "out", output_format="fp8", seed=1)
    journal = tmp_path / "out.journal"
    lines = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
    numbers = {int(n): e for line in lines[1:] for n, e in line["tensors"].items()}
    plan = Work.of(Request(text, tmp_path / "out", tmp_path / "x.journal", output_format="fp8")).plan
    lost = {n for n, tensor in enumerate(plan.tensors) if tensor.how == "scales"}
    kept = {n: e for n, e in numbers.items() if n not in lost}
    journal.write_text("".join(json.dumps(line) + "\n" for line in (lines[0], {"tensors": kept})), encoding="utf-8")
    assert run(text, tmp_path / "out", output_format="fp8", seed=1)["resumed"] is True
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def small(folder: Path, form: str | None, **config: Any) -> Path:
    write(folder, weights(0), *([FORMS[form]] if form else []), **config)
    return folder


@pytest.mark.parametrize(
    ("base", "tuned", "says"),
    [
        (None, None, "none is in FP8 .*not quantised"),
        ("nf4", "nf4", "none is in FP8 .*bitsandbytes nf4"),
        ("fp8 e5m2", None, "none is in FP8 .*FP8 .e5m2."),
        ("torchao fp8", None, "none is in FP8"),
        ("gptq", "awq", "none is in FP8 .*GPTQ int4"),
    ],
)
def test_without_an_fp8_model_it_is_refused(tmp_path: Path, base: str | None, tuned: str | None, says: str) -> None:
    text = arithmetic(small(tmp_path / "base", base), small(tmp_path / "tuned", tuned))
    with pytest.raises(Unsupported, match=says):
        run(text, tmp_path / "out", output_format="fp8")
    assert not (tmp_path / "out").exists()


def test_slices_and_other_packings_beside_fp8_are_refused(tmp_path: Path) -> None:
    small(tmp_path / "fp8", "fp8 blocks")
    part = {"sources": [{"model": str(tmp_path / "fp8"), "layer_range": [0, 1]}]}
    sliced = json.dumps({"merge_method": "passthrough", "slices": [part, part], "dtype": "bfloat16"})
    write(tmp_path / "mixed", weights(0), FORMS["fp8 blocks"], FORMS["int4 groups"])
    beside = arithmetic(tmp_path / "mixed", tmp_path / "fp8")
    for text, says in ((sliced, "slices number the layers anew"), (beside, "compressed-tensors int4, which is not written")):
        with pytest.raises(MergingError, match=says):
            run(text, tmp_path / "out", output_format="fp8")
    assert not (tmp_path / "out").exists()


def test_an_fp8_embedding_stays_in_fp8_and_tiny_rows_keep_their_numbers(tmp_path: Path) -> None:
    names = ["model.embed_tokens.weight", *NAMES]
    plain = weights(0)
    write(tmp_path / "base", plain, FP8["fp8 rows"], packed=names)
    write(tmp_path / "tuned", plain | {NAMES[0]: torch.cat([torch.full((1, 64), 1e-30), plain[NAMES[0]][1:]])}, packed=names)
    run(arithmetic(tmp_path / "base", tmp_path / "tuned", weight=1.0), tmp_path / "out", output_format="fp8")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.get_tensor("model.embed_tokens.weight").dtype == torch.float8_e4m3fn
    codes, scale = parts(tmp_path / "out", NAMES[0])
    row = codes[0].double() * scale.reshape(-1)[0].double()
    assert torch.allclose(row, torch.full((64,), 1e-30, dtype=torch.float64), rtol=2**-4)


def test_every_code_is_the_nearest(tmp_path: Path) -> None:
    """Numbers of all magnitudes against torch's own conversion, ties and subnormals among them."""
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    known = grid[torch.isfinite(grid)].unique()
    middles = (known[1:] + known[:-1]) / 2
    edges = torch.cat([known, middles, middles * (1 + 2**-20), middles * (1 - 2**-20)])
    several = torch.cat([edges, torch.rand(4096 - len(edges)) * 900 - 448])
    values = several.clamp(-448, 448).reshape(64, 64).clone()
    values[0, 0] = 448
    one = partial(fp8, grid=())
    write(tmp_path / "base", weights(0), Form("FP8 (e4m3)", one))
    tensors = load_file(tmp_path / "base" / "model.safetensors") | {NAMES[0]: values}
    tensors.pop(f"{NAMES[0]}_scale")
    (tmp_path / "tuned").mkdir()
    save_file(tensors, tmp_path / "tuned" / "model.safetensors")
    (tmp_path / "tuned" / "config.json").write_text((tmp_path / "base" / "config.json").read_text("utf-8"), encoding="utf-8")
    entries = [
        {"model": str(tmp_path / name), "parameters": {"weight": weight}} for name, weight in (("base", 0.0), ("tuned", 1.0))
    ]
    linear = {"merge_method": "linear", "models": entries}
    run(json.dumps(linear), tmp_path / "out", output_format="fp8")
    codes, scale = parts(tmp_path / "out", NAMES[0])
    assert scale.item() == 1.0
    assert torch.equal(codes.float(), values.to(torch.float8_e4m3fn).float())


def edited(out: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Another content under the same header, and no record of digests that would give it away."""
    record = json.loads((out / "merge_provenance.json").read_text("utf-8"))
    (out / "merge_provenance.json").write_text(json.dumps(record | {"digests": None}), encoding="utf-8")
    tensors = load_file(out / "model.safetensors")
    save_file(change(tensors), out / "model.safetensors", metadata={"format": "pt"})


def verdicts(out: Path) -> dict[bool, tuple[str, str]]:
    found = {full: verify(out, full=full) for full in (False, True)}
    said = {full: next(check.detail for check in v.checks if check.name == "recomputed") for full, v in found.items()}
    return {full: (v.verdict, said[full]) for full, v in found.items()}


@pytest.mark.parametrize("label", ["fp8 rows", "fp8 blocks", "mxfp8", "bf16 scales"])
def test_verify_computes_codes_and_scales_again(tmp_path: Path, label: str) -> None:
    torch.manual_seed(0)
    write(tmp_path / "base", weights(0), FP8[label])
    write(tmp_path / "tuned", weights(1, weights(0)), FP8[label])
    write_adapter(tmp_path / "adapter", 3)
    text = arithmetic(tmp_path / "base", tmp_path / "tuned", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}")
    run(text, tmp_path / "out", output_format="fp8")
    for full in (False, True):
        found = verify(tmp_path / "out", full=full)
        assert found.verdict == "verified", found
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "stored in FP8 as one of the sources has them" in card
    scale = next(name for name in load_file(tmp_path / "out" / "model.safetensors") if name.startswith(f"{NAMES[0]}_scale"))

    def one_step(tensors: Tensors) -> Tensors:
        codes = tensors[NAMES[0]].view(torch.uint8).clone()
        codes[1, 1] ^= 2
        return tensors | {NAMES[0]: codes.view(torch.float8_e4m3fn)}

    def twice(tensors: Tensors) -> Tensors:
        wider = tensors[scale] + 1 if tensors[scale].dtype == torch.uint8 else tensors[scale] * 2.5
        factor = 2.0 if tensors[scale].dtype == torch.uint8 else 2.5
        codes = (tensors[NAMES[0]].float() / factor).to(torch.float8_e4m3fn)
        return tensors | {scale: wider, NAMES[0]: codes}

    for number, (change, says) in enumerate([(one_step, "values differ"), (twice, NAMES[0])]):
        damaged = tmp_path / f"damaged{number}"
        shutil.copytree(tmp_path / "out", damaged)
        edited(damaged, change)
        for full, (verdict, said) in verdicts(damaged).items():
            assert (verdict, says in said) == ("failed", True), (full, said)


def test_verify_finds_blocks_that_were_quantised_anew_without_need(tmp_path: Path) -> None:
    """The base's own scales are not tight, so codes at a tight scale hold nearly the same numbers and are another file."""
    torch.manual_seed(0)
    plain = weights(0)
    base = write(tmp_path / "base", plain, FP8["fp8 blocks"])
    write(tmp_path / "tuned", plain | {NAMES[1]: plain[NAMES[1]] * 1.1}, FP8["fp8 one scale"])
    write_adapter(tmp_path / "adapter", 3)
    one = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file({k: v for k, v in one.items() if "layers.1.mlp" in k}, tmp_path / "adapter" / "adapter_model.safetensors")
    run(arithmetic(tmp_path / "base", f"{tmp_path / 'base'}+{tmp_path / 'adapter'}"), tmp_path / "out", output_format="fp8")
    assert verify(tmp_path / "out", full=True).verdict == "verified"

    def anew(tensors: Tensors) -> Tensors:
        value = base[NAMES[0]]
        scale = torch.stack([torch.stack([b.abs().max() for b in rows.split(32, 1)]) for rows in value.split(32)]) / 448
        codes = (value / spread(scale, value.shape, (32, 32))).to(torch.float8_e4m3fn)
        return tensors | {NAMES[0]: codes, f"{NAMES[0]}_scale_inv": scale}

    edited(tmp_path / "out", anew)
    for verdict, said in verdicts(tmp_path / "out").values():
        assert verdict == "failed"
        assert NAMES[0] in said


def test_estimate_knows_the_bytes_and_bounds_the_memory(tmp_path: Path) -> None:
    write(tmp_path / "base", weights(0), FP8["fp8 blocks"])
    write(tmp_path / "tuned", weights(1, weights(0)), FP8["fp8 blocks"])
    text = arithmetic(tmp_path / "base", tmp_path / "tuned")
    cost = estimate(text, output_format="fp8", ram_gib=2).engines
    found = run(text, tmp_path / "out", output_format="fp8", threads=1)
    written = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert [*cost] == ["stream"]
    assert cost["stream"].disk_bytes - METADATA_BYTES == written == found["bytes"]
    assert cost["stream"].peak_anon_bytes > estimate(text, ram_gib=2).engines["stream"].peak_anon_bytes - (1 << 20)


def test_validate_and_launch_refuse_it_before_anything_is_written(tmp_path: Path) -> None:
    text = arithmetic(small(tmp_path / "base", None), small(tmp_path / "tuned", "nf4"))
    said = [(f.code, f.severity) for f in validate(text, output_format="fp8").findings if f.severity == "error"]
    assert said == [("MM505", "error")]
    assert validate(text).ok
    assert "MM505" in validate(text).skipped
    asked = {"recipe": text, "out": str(tmp_path / "out"), "output_format": "fp8"}
    with pytest.raises(Unsupported, match="none is in FP8"):
        choose(MergeRequest.of(asked))
    for beside in ({"engine": "mergekit"}, {"output": "adapter"}):
        with pytest.raises(BadInput, match="--output-format fp8"):
            choose(MergeRequest.of(asked | beside))
    with pytest.raises(BadInput, match="output_format"):
        MergeRequest.of(asked | {"output_format": "fp4"})
    write(tmp_path / "fp8", weights(0), FP8["fp8 blocks"])
    assert validate(arithmetic(tmp_path / "fp8", tmp_path / "tuned"), output_format="fp8").ok
