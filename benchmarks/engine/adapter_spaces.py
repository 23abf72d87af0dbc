"""TIES of two adapters as one adapter: on the weights, on the core of the factors, on a shared subspace, and by PEFT.

    python benchmarks/engine/adapter_spaces.py BASE > benchmarks/engine/adapter_spaces.md

Errors: the running example's two adapters on BASE (SmolLM2-135M-Instruct), every matrix, against the dense TIES of their changes,
‖written − dense‖ ÷ ‖dense‖; `best` is the truncated SVD of the dense change, the least that any adapter of the rank can have.
Seconds: processor time for one 4096 × 4096 and one 14336 × 4096 matrix (those of an 8 B model), two random adapters of rank 16.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from mcp_server.engine.adapter_space import merge_adapters  # noqa: E402
from mcp_server.engine.request import Request  # noqa: E402

Array = np.ndarray[Any, Any]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "taskmaster"
NAMES = ("persona", "tools")
DENSITY = 0.5
SPACES = ("weights", "core", "shared")
LARGE = {"model.layers.0.self_attn.q_proj": (4096, 4096), "model.layers.0.mlp.up_proj": (14336, 4096)}
SIDES_8B = 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)
"""Rows and columns of every linear layer of Llama 3 8 B together."""


def recipe(base: Path, adapters: list[Path]) -> str:
    models = [{"model": f"{base}+{adapter}", "parameters": {"weight": 1.0, "density": DENSITY}} for adapter in adapters]
    return json.dumps({"merge_method": "ties", "base_model": str(base), "models": models, "dtype": "float32"})


def merged(text: str, out: Path, rank: int, space: str) -> float:
    """Processor seconds of this product's merge; the adapter lies in `out`."""
    start = time.process_time()
    request = Request(text, out, out.with_suffix(".journal"), rank=rank, space=space, threads=1, seed=0)  # type: ignore[arg-type]
    merge_adapters(request, lambda *_: None)
    return time.process_time() - start


def changes(folder: Path) -> dict[str, Array]:
    """Module → s·B·A."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    stored = {key: value.float().numpy() for key, value in load_file(folder / "adapter_model.safetensors").items()}
    found = {}
    for key, a in stored.items():
        if key.endswith("lora_A.weight"):
            module = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            rank = config["rank_pattern"].get(module, config["r"])
            scale = config["alpha_pattern"].get(module, config["lora_alpha"]) / (rank**0.5 if config.get("use_rslora") else rank)
            found[module] = scale * stored[key.replace("lora_A", "lora_B")] @ a
    return found


def ties(deltas: list[Array]) -> Array:
    """Trim each to its largest entries, elect signs by the sum, average what agrees."""
    kept = []
    for delta in deltas:
        size = np.abs(delta)
        cut = np.partition(size.ravel(), -int(DENSITY * size.size))[-int(DENSITY * size.size)]
        kept.append(np.where(size >= cut, delta, 0))
    sign = np.sign(sum(kept))
    agree = [np.where((np.sign(part) == sign) & (part != 0), part, 0) for part in kept]
    count = sum((part != 0).astype(np.float32) for part in agree)
    return np.divide(sum(agree), count, out=np.zeros_like(kept[0]), where=count > 0)


def error(found: dict[str, Array], dense: dict[str, Array]) -> float:
    lost = sum(float(((found[module] - value) ** 2).sum()) for module, value in dense.items())
    return float((lost / sum(float((value**2).sum()) for value in dense.values())) ** 0.5)


def best(dense: dict[str, Array], ranks: tuple[int, ...]) -> list[float]:
    """The error of the truncated SVD at each rank."""
    energies = [np.linalg.eigvalsh(v @ v.T if len(v) < v.shape[1] else v.T @ v)[::-1].clip(0) for v in dense.values()]
    whole = sum(float(each.sum()) for each in energies)
    return [float((sum(float(each[rank:].sum()) for each in energies) / whole) ** 0.5) for rank in ranks]


def by_peft(base: Path, adapters: list[Path], out: Path, rank: int) -> float:
    """Processor seconds of `add_weighted_adapter`, without loading."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapters[0], "one")
    model.load_adapter(adapters[1], "two")
    start = time.process_time()
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="ties_svd", svd_rank=rank, density=DENSITY)
    spent = time.process_time() - start
    model.save_pretrained(out, selected_adapters=["both"])
    return spent


def large(folder: Path) -> tuple[Path, list[Path]]:
    """A base of which only the shapes are there, and two random adapters."""
    (folder / "large").mkdir()
    base = folder / "large" / "base"
    adapters = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stored = {}
        for module, (rows, columns) in LARGE.items():
            stored[f"base_model.model.{module}.lora_A.weight"] = torch.randn(16, columns) * 0.02
            stored[f"base_model.model.{module}.lora_B.weight"] = torch.randn(rows, 16) * 0.02
        place = folder / "large" / str(seed)
        place.mkdir()
        save_file(stored, place / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "up_proj"], "bias": "none",
                  "base_model_name_or_path": str(base)}  # fmt: skip
        (place / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        adapters.append(place)
    return base, adapters


def peft_on_one_matrix(rank: int) -> float:
    """ties_svd of two adapters on a single layer of 4096 × 4096."""
    model = torch.nn.Sequential(torch.nn.Linear(4096, 4096, bias=False))
    config = LoraConfig(r=16, lora_alpha=32, target_modules=["0"], init_lora_weights=False)
    tuned = get_peft_model(model, config, "one")
    tuned.add_adapter("two", config)
    start = time.process_time()
    tuned.add_weighted_adapter(["one", "two"], [1.0, 1.0], "both", combination_type="ties_svd", svd_rank=rank, density=DENSITY)
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    base = Path(sys.argv[1])
    adapters = [EXAMPLES / name for name in NAMES]
    each = [changes(adapter) for adapter in adapters]
    dense = {module: ties([deltas[module] for deltas in each]) for module in each[0]}
    ranks = (8, 16, 32)
    print("# TIES of two adapters as one adapter\n")
    print("Written by `python benchmarks/engine/adapter_spaces.py BASE`; what is measured stands at its head.\n")
    print("| way | " + " | ".join(f"error, rank {rank}" for rank in ranks) + " | CPU s (135 M, rank 16) |")
    print("|---" * (len(ranks) + 2) + "|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for space in SPACES:
            cells, seconds = [], 0.0
            for rank in ranks:
                out = folder / f"{space}{rank}"
                spent = merged(recipe(base, adapters), out, rank, space)
                seconds = spent if rank == 16 else seconds
                cells.append(f"{error(changes(out), dense):.3f}")
            print(f"| `--space {space}` | {' | '.join(cells)} | {seconds:.1f} |", flush=True)
        print(f"| best of its rank | {' | '.join(f'{least:.3f}' for least in best(dense, ranks))} | |")
        seconds = by_peft(base, adapters, folder / "peft", 16)
        print(f"| PEFT `ties_svd` | | {error(changes(folder / 'peft' / 'both'), dense):.3f} | | {seconds:.1f} |", flush=True)
        print("\n| way | CPU s, two matrices of 8 B shape, rank 32 | MB of an 8 B adapter in bf16, rank 16, 32 |")
        print("|---|---|---|")
        empty, random = large(folder)
        megabytes = ", ".join(f"{2 * rank * SIDES_8B / 1e6:.0f}" for rank in (16, 32))
        for space in SPACES:
            spent = merged(recipe(empty, random), folder / f"large-{space}", 32, space)
            print(f"| `--space {space}` | {spent:.1f} | {megabytes} |", flush=True)
        print(f"| PEFT `ties_svd` (the 4096 × 4096 matrix alone) | {peft_on_one_matrix(32):.1f} | {megabytes} |")


if __name__ == "__main__":
    main()
