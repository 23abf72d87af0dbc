"""The measurement of a QLoRA's base: its 4-bit copy is one that this product reads as bitsandbytes does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

from mcp_server.formats.checkpoint import open_checkpoint
from tests.engine.test_unpack import read

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore")
def test_the_copy_that_is_packed_is_the_one_that_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples" / "qlora_base"), *sys.path])
    from measure import pack, unpacked

    torch.manual_seed(0)
    # whole blocks of 64 a row: bitsandbytes 0.50.2 unpacks rows of 96 or 32 with the scales of others where there is AVX-512
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, vocab_size=50
    )
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "base")
    pack(tmp_path / "base", tmp_path / "copy")
    copy = open_checkpoint(str(tmp_path / "copy"))
    packed = [name for name, tensor in copy.tensors.items() if tensor.packed]
    assert (len(packed), copy.packed_as) == (7, ("bitsandbytes nf4",))
    trained = dict(unpacked(tmp_path / "base").named_parameters())
    for name in packed:
        assert torch.equal(torch.from_numpy(read(copy.tensors[name])).bfloat16().float(), trained[name].detach()), name
