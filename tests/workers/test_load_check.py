"""Loading over a base that itself cannot be loaded here says nothing; over one that can, it says what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from mcp_server.errors import DoesNotFit
from mcp_server.schemas.job import EvaluateRequest
from mcp_server.steps.evaluate import held as held_module
from mcp_server.workers import load_check
from mcp_server.workers.evaluating.models import ModelRef, choose_dtype, choose_held
from mcp_server.workers.load_check import attempt
from mcp_server.workers.protocol import Job
from tests.engine.packers import FORMS
from tests.engine.test_quantised import write_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers for an old name
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed"}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load") / "base"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=True)).save_pretrained(folder)
    write_adapter(folder.parent / "adapter", 1)
    return folder


def configured(folder: Path, out: Path, **settings: object) -> Path:
    shutil.copytree(folder, out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    (out / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    return out


def loads(folder: Path, adapter: Path | None = None, base: Path | None = None) -> tuple[bool | None, str]:
    return attempt(LlamaForCausalLM, ModelRef(folder, adapter), base, "float32", 2)


def test_an_adapter_runs_on_packed_weights_that_transformers_can_unpack(base: Path, tmp_path: Path) -> None:
    settings = PACKED | {"config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}}, "ignore": ["lm_head"]}
    packed = configured(base, tmp_path / "packed", quantization_config=settings, dtype="bfloat16")
    stored = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        is_matrix = tensor.dim() == 2 and "embed" not in name
        stored |= FORMS["int4 groups"].pack(name, tensor.float()).stored if is_matrix else {name: tensor.bfloat16()}
    save_file(stored, packed / "model.safetensors", metadata={"format": "pt"})
    passed, said = loads(packed, base.parent / "adapter")
    assert (passed, "continues" in said) == (True, True), said


@pytest.mark.parametrize("with_adapter", [True, False])
def test_a_base_that_does_not_load_here_decides_nothing(base: Path, tmp_path: Path, with_adapter: bool) -> None:
    odd = configured(base, tmp_path / "odd", quantization_config={"quant_method": "eetq", "weights": "int8"})
    found = loads(odd, base.parent / "adapter") if with_adapter else loads(odd, base=odd)
    assert (found[0], "alone" in found[1] or "not installed" in found[1]) == (None, True)


def test_an_adapter_that_fits_no_module_of_a_sound_base_does_not_load(base: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(base.parent / "adapter", tmp_path / "adapter")
    factors = load_file(adapter / "adapter_model.safetensors")
    cut = {name: tensor[:, :-1].contiguous() if ".lora_A." in name else tensor for name, tensor in factors.items()}
    save_file(cut, adapter / "adapter_model.safetensors")
    passed, said = loads(base, adapter)
    assert (passed, "PEFT refuses it" in said, "size mismatch" in said) == (False, True, True)


def test_scores_that_are_not_finite_are_the_merges_fault_only_when_the_base_has_none(base: Path, tmp_path: Path) -> None:
    broken = configured(base, tmp_path / "broken")
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * torch.nan}, broken / "model.safetensors")
    assert loads(broken, base=base)[0] is False
    assert loads(broken, base=broken)[0] is None


@pytest.mark.parametrize(("held", "said"), [("int8", "int8"), ("int4", "int4"), (None, "needs about")])
def test_what_fits_in_fewer_bits_only_is_loaded_and_run_in_these(
    held: str | None, said: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is as small as what this many bits need; none at all is no answer, and no fault of the merge."""
    have = held_module.needed_bytes(base, held) if held else held_module.needed_bytes(base, "int4") - 1
    monkeypatch.setattr(held_module, "available_bytes", lambda: have)
    monkeypatch.setattr(held_module, "anon_bytes", lambda: 0)
    monkeypatch.setattr(load_check, "quiet", lambda **_: None)  # it sets this process's environment
    (tmp_path / "job").mkdir()
    request = {"kind": "load_check", "parameters": {"out": str(base), "tokens": 2}}
    (tmp_path / "job" / "request.json").write_text(json.dumps(request), encoding="utf-8")
    job = Job(tmp_path / "job")
    if held is None:
        with pytest.raises(DoesNotFit, match=f"{said} .* in 4 bits"):
            load_check.main(job)
        return
    found = load_check.main(job)
    assert found["loads"] is True, found
    assert said in found["detail"]


@pytest.mark.parametrize("held", ["int8", "int4", None])
def test_an_evaluation_says_before_it_starts_in_how_few_bits(
    held: str | None, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is said before is what the worker then takes."""
    have = held_module.needed_bytes(base, held or "float32")
    monkeypatch.setattr(held_module, "available_bytes", lambda: have)
    monkeypatch.setattr(held_module, "anon_bytes", lambda: 0)
    told = held_module.few_bits(EvaluateRequest(out=str(base)), {"base": str(base), "merged": str(base)})
    assert choose_held([ModelRef(base)], "auto") == (held or choose_dtype("auto"))
    assert told.startswith(f"weights in {held_module.BITS[held]} bits, because 16 bits need about") if held else told == ""
