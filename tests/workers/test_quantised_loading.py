"""Models that are held in 8 and 4 bits: the numbers are the rounded ones, adapters are in them, ties stay, memory is kept."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import memory_group
from tests.workers.test_evaluate_worker import ROOT, place, run

__all__ = ["memory_group", "place"]
pytestmark = pytest.mark.slow

AGAINST_NUMPY = """
import json, sys, warnings
from pathlib import Path
import numpy as np, torch
from transformers import AutoModelForCausalLM
from mcp_server.steps.evaluate.held import BITS
from mcp_server.workers.evaluating import models

models.choose_dtype = lambda wanted: "float32"  # bfloat16 would hide a difference behind its own rounding

def rounded(weight, bits):
    table = weight.double().numpy()
    if bits == 4 and table.shape[1] % 32 == 0:
        groups, most = table.reshape(len(table), -1, 32), 7
    else:
        groups, most = table.reshape(len(table), 1, -1), 127
    scale = np.abs(groups).max(-1, keepdims=True) / most
    scale = np.where(scale == 0, 1, scale)
    return torch.from_numpy((np.rint(groups / scale) * scale).reshape(table.shape)).float()

base, adapter, folded = map(Path, sys.argv[1:])
ids, found = torch.arange(3, 40)[None], {}
for ref, same in ((models.ModelRef(base), base), (models.ModelRef(base, adapter), folded)):
    for held, bits in BITS.items():
        plain = AutoModelForCausalLM.from_pretrained(same, dtype=torch.float32)
        with torch.no_grad():
            for module in {m.weight: m for m in plain.modules() if type(m) in (torch.nn.Linear, torch.nn.Embedding)}.values():
                module.weight.copy_(rounded(module.weight, bits))
            mine = models.load_model(ref, held)
            want, have = plain(ids).logits, mine(ids).logits.float()
        found[f"{same.name} {held}"] = [float((want - have).abs().max()), float(want.abs().max())]
        assert mine.get_output_embeddings().codes is mine.get_input_embeddings().codes
print(json.dumps(found))
"""

BIG = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from tests.workers.tiny_language_model import tokenizer
config = LlamaConfig(vocab_size=96, hidden_size=1024, intermediate_size=4096, num_hidden_layers=18, num_attention_heads=8,
                     max_position_embeddings=512, bos_token_id=1, eos_token_id=2)
with torch.device("meta"):
    model = LlamaForCausalLM(config)
model = model.to_empty(device="cpu").to(torch.bfloat16)
for parameter in model.parameters():
    parameter.data.uniform_(-0.02, 0.02)
model.save_pretrained(sys.argv[1])
tokenizer().save_pretrained(sys.argv[1])
"""


def python(text: str, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run([sys.executable, "-c", text, *words], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_scores_are_those_of_the_rounded_weights(place: Path) -> None:
    """Against transformers with weights that numpy rounded in float64; for the adapter, PEFT's fold."""
    found: dict[str, Any] = json.loads(
        python(AGAINST_NUMPY, str(place / "base"), str(place / "adapter"), str(place / "folded")).splitlines()[-1]
    )
    assert len(found) == 4
    for difference, largest in found.values():
        assert difference < 1e-3 * largest


def test_an_evaluation_in_8_bits_says_so(place: Path, tmp_path: Path) -> None:
    status, found = run(
        "evaluate", tmp_path / "job", tmp_path / "home", suites=["echo"], suite_folders=[str(place / "suites")], limit=2,
        base=str(place / "base"), sources={"tuned": str(place / "adapter")}, dtype="int8",
    )  # fmt: skip
    assert status == 0
    assert found["numerics"].startswith("int8-")
    assert any("held in 8 bits, base, sources and merge alike" in note for note in found["notes"])


def test_what_does_not_fit_in_16_bits_is_measured_in_fewer_within_the_limit(tmp_path: Path, memory_group: Any) -> None:
    """300 million parameters, 600 MB in bfloat16, in a memory cgroup of 1.3 GB, of which Python and torch take 0.9."""
    model = tmp_path / "model"
    python(BIG, str(model))
    procs = memory_group(1_300_000_000)
    job = tmp_path / "job"
    job.mkdir()
    parameters = {"suites": ["perplexity"], "limit": 1, "base": str(model), "sources": {}, "threads": 1}
    (job / "request.json").write_text(json.dumps({"kind": "evaluate", "parameters": parameters}), encoding="utf-8")
    start = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.executable, sys.argv[2:])"
    worker = [sys.executable, "-P", "-m", "mcp_server.workers.evaluate", str(job)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODEL_MERGING_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", start, str(procs), *worker], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads((job / "result.json").read_text(encoding="utf-8"))
    assert found["numerics"].startswith("int8-")
    assert found["capabilities"]["general language"]["base"] > 0
