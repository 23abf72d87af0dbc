"""Load a model for measuring: a folder, or `base+adapter` with the adapter folded into the weights in memory.

The fold is the product's own (`mcp_server.formats.lora` reads the adapter): ΔW = scale·B·A in float32, added to the base
weight in float32, rounded once to the base's dtype. So a source is measured with the weights that a merge of it would see,
and not with PEFT's fold, which multiplies in the base's dtype.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcp_server.errors import BadInput, DoesNotFit, Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.refs import not_here, resolve_ref
from mcp_server.steps.evaluate.held import BITS, first_that_fits, needed_bytes, room
from mcp_server.system.machine import gib, multiplies_bfloat16


@dataclass(frozen=True)
class ModelRef:
    """A full model, and the adapter folded into it, if any."""

    folder: Path
    adapter: Path | None = None

    def __str__(self) -> str:
        return f"{self.folder}+{self.adapter}" if self.adapter else str(self.folder)


def find_model(ref: str, base: str | None = None) -> ModelRef:
    """`ref` is a folder, a cached hub id, `base+adapter`, or an adapter alone (then `base`, or the base its config names)."""
    first, _, second = ref.partition("+")
    folder = Path(resolve_ref(first, Path.cwd()))
    if second:
        return ModelRef(folder, Path(resolve_ref(second, Path.cwd())))
    if not folder.is_dir():
        raise not_here(ref, first, None, folder)
    if not (folder / "adapter_config.json").is_file():
        return ModelRef(folder)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    named = base or config.get("base_model_name_or_path")
    if not named:
        raise BadInput(f"{ref} is an adapter and names no base", "give it as BASE+ADAPTER")
    return ModelRef(Path(resolve_ref(str(named).partition("+")[0], folder)), folder)


def check_fits(ref: ModelRef, held: str) -> None:
    """Raise `DoesNotFit` when the weights cannot be in memory as `held`; a killed worker would explain nothing."""
    need, have = needed_bytes(ref.folder, held), room()
    if need > have:
        bits = f" in {BITS[held]} bits" if held in BITS else ""
        raise DoesNotFit(
            f"measuring {ref} needs about {gib(need)}{bits}, {gib(have)} are available",
            "serve the model elsewhere and evaluate it with backend=openai and its endpoint, or free memory",
        )


def choose_held(refs: Iterable[ModelRef], wanted: str) -> str:
    """How the weights of all these models are held, one at a time, so that they can be compared: as `wanted`, or for `auto` the
    first that fits of the fastest dtype, bfloat16, 8 bits and 4 bits. Where nothing does it is the last: `check_fits` says so."""
    plain = choose_dtype(wanted)
    if wanted != "auto" or plain == "float16":
        return plain
    return first_that_fits((ref.folder for ref in refs), plain, room())


def choose_dtype(wanted: str) -> str:
    """`auto`: bfloat16 where the processor multiplies it (4× faster prefill than float32 measured), else float32."""
    if wanted != "auto":
        return wanted
    import torch

    if torch.cuda.is_available():
        return "bfloat16"
    return "bfloat16" if multiplies_bfloat16() else "float32"


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left", local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(ref: ModelRef, dtype: str) -> Any:
    """The model in evaluation mode, adapter folded. Pickle weights and remote code are refused."""
    import torch

    if dtype in BITS:
        from mcp_server.workers.evaluating import quantised

        return quantised.load(ref, BITS[dtype], getattr(torch, choose_dtype("auto")))
    from transformers import AutoModelForCausalLM

    from mcp_server.workers.evaluating.few_tokens import use_for_few_tokens

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(
        str(ref.folder), dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    if ref.adapter is not None:
        fold(model, ref)
    model = model.to(device=device, dtype=getattr(torch, dtype)).eval()
    if device == "cpu":
        use_for_few_tokens(model)
    return model


def fold(model: Any, ref: ModelRef) -> None:
    """Add the adapter to the model's weights in place. Raises our errors when it does not belong to the base."""
    import torch

    from mcp_server.engine.reader import Reader
    from mcp_server.engine.updates import adapted
    from mcp_server.formats.lora import open_adapter

    checkpoint = open_checkpoint(str(ref.folder))
    adapter = open_adapter(str(ref.adapter), checkpoint.tensors, checkpoint.config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    odd = sorted(set(adapter.changes) - set(parameters)) or (sorted(adapter.changes)[:1] if adapter.untied else [])
    if odd:
        raise Unsupported(
            f"{ref.adapter} changes {odd[0]}, which the loaded model holds under another name or together with others",
            "merge it with `model-merging merge` (passthrough of BASE+ADAPTER), then evaluate the merged model",
        )
    reader = Reader()
    with torch.no_grad():
        for name, change in adapter.changes.items():
            weight = parameters[name]
            weight.copy_(torch.from_numpy(adapted(checkpoint.tensors[name], change, reader)).to(weight.dtype))
    reader.close()


def use_threads(wanted: int | None) -> int:
    """Set torch's threads: as asked, else the processors that this process may use."""
    import torch

    count = wanted or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1))
    torch.set_num_threads(count)
    return count
