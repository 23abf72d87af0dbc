"""A causal language model in 8 or 4 bits, quantised while its weights are read.

For measuring what does not fit in 16 bits. Matrices of `torch.nn.Linear` and `torch.nn.Embedding` become codes, symmetric around
zero: 8 bits with a scale for every row, or 4 bits with a scale for every `GROUP` numbers of a row. An adapter's change is added
in float32 before that, block of rows by block of rows, so no more than the codes and one block is ever held. What is neither
(norms, biases, stacks of experts) keeps the arithmetic's dtype. Products are computed in that dtype, a few rows at a
time, or in whole numbers where the processor is quick at that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch

from mcp_server.engine.blocks import Block
from mcp_server.engine.reader import Reader
from mcp_server.engine.updates import adapted_blocks
from mcp_server.errors import Unsupported
from mcp_server.formats.checkpoint import open_checkpoint
from mcp_server.formats.lora import open_adapter
from mcp_server.system.machine import has_tiles_for_bytes
from mcp_server.workers.evaluating import whole_products
from mcp_server.workers.evaluating.few_tokens import MOST_TOKENS, with_quick_count

GROUP: Final = 32
STEP_ELEMENTS: Final = 1 << 21
"""Numbers that are unpacked at once for a product: 8 MB in float32, which the processor's caches hold better than more."""
Array = np.ndarray[Any, Any]


class Codes(torch.nn.Module):
    """A matrix of `rows` × `columns` in 8 or 4 bits."""

    def __init__(self, rows: int, columns: int, bits: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.bits = 4 if bits == 4 and columns % GROUP == 0 else 8
        width, kind = (columns // 2, torch.uint8) if self.bits == 4 else (columns, torch.int8)
        self.register_buffer("codes", torch.empty(rows, width, dtype=kind))
        self.register_buffer("scales", torch.empty(rows, columns // GROUP if self.bits == 4 else 1, dtype=torch.float32))

    def take(self, row: int, values: Array) -> None:
        """Quantise rows `row` … of float32 numbers."""
        groups = values.reshape(len(values), self.scales.shape[1], -1)
        most = 7 if self.bits == 4 else 127
        scales = np.abs(groups).max(axis=2) / most
        whole = np.rint(groups / np.where(scales == 0, 1, scales)[:, :, None]).astype(np.int8).reshape(len(values), -1)
        if self.bits == 4:
            halves = (whole + 8).astype(np.uint8).reshape(len(values), -1, 2, GROUP // 2)
            whole = (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(values), -1)
        self.codes[row : row + len(values)] = torch.from_numpy(whole)
        self.scales[row : row + len(values)] = torch.from_numpy(scales)

    def numbers(self, ids: Any, dtype: Any) -> Any:
        """Chosen rows as numbers again."""
        codes, scales = self.codes[ids], self.scales[ids]
        out = torch.empty(len(codes), self.columns, dtype=dtype)
        self._unpack(codes, scales, out)
        return out.mul_(scales.to(dtype)) if self.bits == 8 else out

    def product(self, x: Any) -> Any:
        """(…, columns) times the matrix's transpose: (…, rows).

        A few rows are unpacked at a time, always into the same memory, and stand on the left: few tokens times many rows the
        other way round takes twice as long in the libraries that torch calls.
        """
        asked = x.reshape(-1, self.columns)
        if self.bits == 8 and x.dtype == torch.bfloat16 and len(asked) <= MOST_TOKENS and has_tiles_for_bytes():
            return whole_products.product(self.codes, self.scales, asked).view(*x.shape[:-1], self.rows)
        tokens = with_quick_count(asked).T
        out = torch.empty(self.rows, tokens.shape[1], dtype=x.dtype)
        step = max(1, STEP_ELEMENTS // self.columns)
        unpacked = _unpacked(max(STEP_ELEMENTS, self.columns), x.dtype)
        for row in range(0, self.rows, step):
            rows = slice(row, min(row + step, self.rows))
            part = unpacked[: (rows.stop - row) * self.columns].view(-1, self.columns)
            self._unpack(self.codes[rows], self.scales[rows], part)
            torch.mm(part, tokens, out=out[rows])
        if self.bits == 8:
            out *= self.scales.to(x.dtype)
        return out.T[: len(asked)].contiguous().view(*x.shape[:-1], self.rows)

    def _unpack(self, codes: Any, scales: Any, out: Any) -> None:
        """Fill `out` with numbers: of 8 bits the codes themselves, whose scale is a row's and can follow the product."""
        if self.bits == 8:
            out.copy_(codes)
            return
        packed = codes.reshape(len(codes), -1, GROUP // 2)
        halves = out.view(len(codes), -1, 2, GROUP // 2)
        halves[:, :, 0].copy_(packed & 15)
        halves[:, :, 1].copy_(packed >> 4)
        out.view(len(codes), -1, GROUP).sub_(8).mul_(scales.to(out.dtype)[:, :, None])


@functools.lru_cache(maxsize=1)
def _unpacked(elements: int, dtype: Any) -> Any:
    """Memory for numbers on the way to a product. Made once: freed and made again beside keys and values that stay, it left half
    a GiB of holes in an 8 B model's heap."""
    with torch.inference_mode(False):  # made in that mode it could not be filled outside of it
        return torch.empty(elements, dtype=dtype)


class QuantisedLinear(torch.nn.Module):
    def __init__(self, codes: Codes, bias: Any) -> None:
        super().__init__()
        self.codes, self.bias = codes, bias

    def forward(self, x: Any) -> Any:
        out = self.codes.product(x)
        return out if self.bias is None else out + self.bias


class QuantisedEmbedding(torch.nn.Module):
    def __init__(self, codes: Codes, dtype: Any) -> None:
        super().__init__()
        self.codes, self.dtype = codes, dtype

    def forward(self, ids: Any) -> Any:
        return self.codes.numbers(ids.reshape(-1), self.dtype).reshape(*ids.shape, -1)


def load(ref: Any, bits: int, dtype: Any) -> Any:
    """The model of `ref` in evaluation mode. Raises `Unsupported` where its class names weights otherwise than its files."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(str(ref.folder), local_files_only=True)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # packed weights are unpacked as they are read
    with _weightless():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.tie_weights()
    if (ref.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(ref.folder), local_files_only=True)
    _fill(model, ref, bits, dtype)
    model.tie_weights = lambda *_, **__: None  # ties are shared codes now
    return model.eval()


@contextmanager
def _weightless() -> Iterator[None]:
    """Parameters made in here hold no memory; buffers, such as rotary frequencies, are computed as usual."""
    plain = torch.nn.Module.register_parameter

    def register(module: Any, name: str, parameter: Any) -> None:
        plain(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(parameter.to("meta"), requires_grad=False)

    torch.nn.Module.register_parameter = register
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = plain


def _fill(model: Any, ref: Any, bits: int, dtype: Any) -> None:
    """Give every parameter its values and put codes in the place of matrices; tied parameters share theirs."""
    checkpoint = open_checkpoint(str(ref.folder))
    adapter = open_adapter(str(ref.adapter), checkpoint.tensors, checkpoint.config) if ref.adapter is not None else None
    changes = adapter.changes if adapter is not None else {}
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    known = {name for names in places.values() for name in names}
    missing = [names[0] for names in places.values() if not set(names) & set(checkpoint.tensors)]
    odd = missing or sorted(set(changes) - known) or (sorted(changes)[:1] if adapter is not None and adapter.untied else [])
    if odd:
        raise Unsupported(
            f"{ref} cannot be held in {bits} bits here: its class and its files have different names for {odd[0]}",
            "free memory, or serve it elsewhere and evaluate it with --endpoint",
        )
    reader = Reader()
    for names in places.values():
        stored = checkpoint.tensors[next(name for name in names if name in checkpoint.tensors)]
        blocks = adapted_blocks(stored, next((changes[name] for name in names if name in changes), None), reader)
        modules = [model.get_submodule(name.rpartition(".")[0]) for name in names]
        if all(type(module) in (torch.nn.Linear, torch.nn.Embedding) for module in modules) and len(stored.shape) == 2:
            codes = Codes(*stored.shape, bits)
            for block, values in blocks:
                codes.take(block.row, values.reshape(block.rows, block.columns))
            for name, module in zip(names, modules, strict=True):
                _put(model, name.rpartition(".")[0], module, codes, dtype)
        else:
            whole = torch.nn.Parameter(_whole(stored.shape, blocks, dtype), requires_grad=False)
            for name, module in zip(names, modules, strict=True):
                module._parameters[name.rpartition(".")[2]] = whole
    reader.close()


def _put(model: Any, name: str, module: Any, codes: Codes, dtype: Any) -> None:
    new = QuantisedLinear(codes, module.bias) if isinstance(module, torch.nn.Linear) else QuantisedEmbedding(codes, dtype)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


def _whole(shape: tuple[int, ...], blocks: Iterator[tuple[Block, Array]], dtype: Any) -> Any:
    found = torch.empty(shape, dtype=dtype)
    flat = found.view(-1)
    for block, values in blocks:
        flat[block.start : block.start + block.count] = torch.from_numpy(values)
    return found
