"""What mergekit wrote, held against what went in: every tensor of the base is there and finite, and the small files say so.

mergekit goes by templates of architectures and skips what it takes for optional, so a run can end well without half of a model.
Source of the names: the headers of base and output.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np

from mcp_server.engine.metadata import copy_files, same_bytes
from mcp_server.engine.output_config import name_dtypes
from mcp_server.errors import RunFailed
from mcp_server.formats import tensor_names
from mcp_server.formats.checkpoint import Checkpoint, open_checkpoint
from mcp_server.formats.companions import companions, is_tokenizer_file
from mcp_server.formats.digests import Digests, digest_of, digests_of, piece_digest
from mcp_server.formats.recipe import ModelRef, Recipe
from mcp_server.formats.tensors import DTYPES, StoredTensor
from mcp_server.formats.tied import tied
from mcp_server.system.files import write_text
from mcp_server.system.guard import open_read

_EXPONENT: Final = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
_PIECE: Final = 1 << 24


def finish(recipe: Recipe, partial: Path, *, allow_nonfinite: bool) -> Digests:
    """Check the output, complete its small files and digest all of it. Raises `RunFailed`, naming the tensor."""
    out = open_checkpoint(str(partial))
    donor = donor_of(recipe)
    base = open_checkpoint(donor.base_ref) if donor else None
    if base is not None:
        require_all(recipe, base, out, str(donor))
    digests = {name: _read_once(name, tensor, allow_nonfinite=allow_nonfinite) for name, tensor in out.tensors.items()}
    _correct_config(partial, out)
    if base is not None:
        named = recipe.tokenizer_from is not None
        lacking = [n for n in companions(base.folder) if not (partial / n).exists() and not (named and is_tokenizer_file(n))]
        copy_files(dict.fromkeys(lacking, base.folder), partial)
    return digests_of(partial, digests)


def donor_of(recipe: Recipe) -> ModelRef | None:
    """The model whose tensors the output must have: the base, else the first source; of several stages the first folder."""
    return next((ref for ref in recipe.references() if Path(ref.base).is_dir()), None)


def require_all(recipe: Recipe, base: Checkpoint, out: Checkpoint, whose: str) -> None:
    """Raise `RunFailed` when the output lacks a tensor of the base. Slices change the layers, a mixture its feed-forward."""
    sliced = recipe.sliced or any(stage.sliced for stage in recipe.stages)
    stack = tensor_names.main_stack(tensor_names.stacks(base.tensors)) if sliced else None
    mixture = recipe.kind == "moe" or any(stage.kind == "moe" for stage in recipe.stages)
    missing = []
    for name, tensor in base.tensors.items():
        layer = tensor_names.split_layer(name)
        if name in out.tensors or tensor_names.is_buffer(name, tensor.shape) or tensor.dtype not in DTYPES:
            continue
        if (stack and layer and layer[0] == stack) or (mixture and ".mlp." in name):
            continue
        if tensor_names.is_head(name) and tied(out.config):
            continue
        missing.append(name)
    if missing:
        raise RunFailed(
            f"mergekit left out {len(missing)} of the {len(base.tensors)} tensors of {whose}, such as {missing[0]}; nothing is "
            "published",
            "use a method of the streaming engine (engine 'stream'), which merges every tensor by name",
            tensors=missing[:20],
        )


def _read_once(name: str, tensor: StoredTensor, *, allow_nonfinite: bool) -> dict[str, Any] | None:
    """The digest of a tensor, whose values have to be finite; None for one that is stored in several places."""
    if tensor.packed is not None:
        return None
    kind, mask = _EXPONENT.get(tensor.dtype, (np.uint8, 0))
    pieces = []
    with open_read(tensor.file) as file:
        file.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            bits = np.frombuffer(file.read(min(left, _PIECE)), kind)
            pieces.append(piece_digest(bits.data))
            if mask and not allow_nonfinite and (count := int(((bits & kind(mask)) == mask).sum())):
                raise RunFailed(
                    f"{name} of the output holds {count} values that are infinite or not a number ({DTYPES[tensor.dtype]}); "
                    "nothing is published",
                    "write bfloat16 or float32 (`dtype:`), or lower the weights",
                    tensor=name,
                )
            left -= bits.nbytes
    return digest_of(pieces, _PIECE)


def _correct_config(partial: Path, out: Checkpoint) -> None:
    """Every dtype key names what is stored, and no flag ties a head that differs from the embedding."""
    config = dict(out.config)
    name_dtypes(config, [DTYPES[tensor.dtype] for tensor in out.tensors.values() if tensor.dtype in _EXPONENT])
    heads = [name for name in out.tensors if tensor_names.is_head(name)]
    words = [name for name in out.tensors if tensor_names.is_word_embedding(name)]
    if heads and words and tied(config) is not False:
        places = [(t.file, t.offset, t.nbytes) for t in (out.tensors[heads[0]], out.tensors[words[0]])]
        if not same_bytes(*places):
            config["tie_word_embeddings"] = False
    if config != out.config:
        write_text(partial / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
