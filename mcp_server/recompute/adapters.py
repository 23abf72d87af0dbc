"""What a PEFT adapter makes of the weights of its base, by PEFT 0.21's definitions, in float64.

    LoRA        W + s·B·A; s = alpha ÷ r, ÷ √r when rank-stabilised; both may differ by module (rank_pattern, alpha_pattern)
    DoRA        m ⊙ (W + s·B·A) ÷ its row norms
    LoHa        W + s·(w1_a·w1_b) ⊙ (w2_a·w2_b);  LoKr  W + s·w1 ⊗ w2;  IA³  W ⊙ l
    VeRA        W + (b ⊙ B)·(d ⊙ A): vectors per module, and for all of them the first rows of one B, the first columns of one A
    whole       trained biases and modules_to_save replace the base's tensor; trained tokens replace rows of the embedding

Conv1D layers and embeddings store a weight as (in, out), so their update is turned. Anything else is left in `unknown`, with why.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_server.errors import NotAModel
from mcp_server.formats.safetensors import read_header
from mcp_server.formats.tensor_names import is_head
from mcp_server.formats.tensors import StoredTensor, read_json, stored_tensors
from mcp_server.recompute.products import hadamard, kronecker
from mcp_server.recompute.reading import read_rows, rows_of, same_values
from mcp_server.recompute.spelling import nearest, plain
from mcp_server.recompute.stacks import Place, places, update

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_PART: Final = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l|hada_w1_a|hada_w1_b"
    r"|hada_w2_a|hada_w2_b|lokr_w1|lokr_w1_a|lokr_w1_b|lokr_w2|lokr_w2_a|lokr_w2_b|vera_lambda_b|vera_lambda_d"
    r"|(?:token_adapter\.)?trainable_tokens_delta)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?P<tail>\.weight|\.bias)?$"
)
_SHARED: Final = re.compile(r"(?:.*\.)?(vera_[AB])(?:\.[^.]+)?$")
_TURNED_KINDS: Final = frozenset({"gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer"})
_TURNED_NAMES: Final = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_NOT_ADDED: Final = (
    "use_qalora", "layer_replication", "alora_invocation_tokens", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config", "tdora_config",
)  # fmt: skip
_TOKENS: Final = "trainable_tokens_delta"
TIED_HEAD: Final = "lm_head.weight"
"""How a head is called here that a model does not store, as it is its embedding."""


@dataclass
class Parts:
    """What an adapter stores for one weight of the base."""

    module: str
    stored: dict[str, StoredTensor] = field(default_factory=dict)
    place: Place | None = None
    """Of experts: which part of the factors this is."""
    parameter: str = ""
    """The full name of the parameter that was adapted, where it is not the module's weight."""


@dataclass
class Adapter:
    """`parts` and `replaced` by the base's tensor name, `shared` for all; `unknown`: what cannot be computed here, and why."""

    folder: Path
    config: dict[str, Any]
    model_type: str
    parts: dict[str, Parts] = field(default_factory=dict)
    replaced: dict[str, StoredTensor] = field(default_factory=dict)
    shared: dict[str, StoredTensor] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    one_with: dict[str, list[str]] = field(default_factory=dict)
    """Tensor → others that are one with it, whose updates change it too (adapter_keeps_ties)."""

    @property
    def touched(self) -> set[str]:
        return {*self.parts, *self.replaced, *(name for name in self.unknown if name)}


def read_adapter(folder: Path, base: dict[str, StoredTensor], model_type: str) -> Adapter:
    """Match an adapter's tensors to the base's; what matches nothing is `unknown`. Raises `NotAModel` without safetensors."""
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise NotAModel(f"{folder} has no adapter_model.safetensors", "save the adapter with save_pretrained()")
    config, header = read_json(folder / "adapter_config.json"), read_header(file)
    adapter = Adapter(folder, config, model_type)
    if odd := [key for key in _NOT_ADDED if config.get(key)]:
        adapter.unknown[""] = f"its config sets {odd[0]}"
    nested: dict[tuple[str, int], Parts] = {}
    for key, stored in stored_tensors(file, header).items():
        name = plain(key)
        if ".original_module." in name:  # the base's own, beside the copy that was trained
            continue
        if found := _PART.match(name):
            part = found["part"].removeprefix("token_adapter.")
            part += ".bias" if found["tail"] == ".bias" else ""
            target = _target(found["module"], base)
            if target is None and config.get("target_parameters"):
                depth = key.split(".").count("base_layer")
                nested.setdefault((found["module"], depth), Parts(found["module"])).stored[part] = stored
            elif target is None:
                adapter.unknown[key] = "no tensor of the base has that module's name"
            else:
                adapter.parts.setdefault(target, Parts(found["module"])).stored[part] = stored
        elif found := _SHARED.match(name):
            adapter.shared[found[1]] = stored
        elif (target := _replaced(_saved(name), config, base)) is not None:
            adapter.replaced[target] = stored
        else:
            adapter.unknown[key] = "no tensor of the base has that name"
    _add_stacks(adapter, nested, base)
    _add_copies(adapter, stored_tensors(file, header))
    return adapter


def _add_copies(adapter: Adapter, stored: dict[str, StoredTensor]) -> None:
    """Trained tokens are stored for every module that shares an embedding, which the base may hold once."""
    known = [parts for parts in adapter.parts.values() if _TOKENS in parts.stored]
    for key in [key for key in adapter.unknown if key.endswith(f".{_TOKENS}")]:
        for parts in known:
            one = parts.stored[_TOKENS]
            if stored[key].shape == one.shape and same_values(stored[key], one, full=True):
                module = plain(key).removesuffix(f".{_TOKENS}").removesuffix(".token_adapter")
                adapter.parts[f"{module}.weight"] = Parts(parts.module, {_TOKENS: stored[key]})
                del adapter.unknown[key]
                break


def _add_stacks(adapter: Adapter, nested: dict[tuple[str, int], Parts], base: dict[str, StoredTensor]) -> None:
    """Updates of stacks of experts, which wrap the parameters of one module one around the other."""
    targets = [str(target) for target in adapter.config["target_parameters"]] if nested else []
    for (module, depth), parts in nested.items():
        wrapped = sum(other == module for other, _ in nested)
        factors = (parts.stored.get("lora_A"), parts.stored.get("lora_B"))
        found = None
        if factors[0] is not None and factors[1] is not None and len(parts.stored) == 2:
            both = (factors[0], factors[1])
            inside = wrapped - 1 - depth  # the first parameter that a module defines is wrapped first
            found = places(module, inside, wrapped, both, targets, base, lambda n: nearest(n, base))
        for name, place in found[1].items() if found is not None else ():
            own = place if len(base[name].shape) == 3 or place.expert is not None else None
            adapter.parts[name] = Parts(module, parts.stored, own, found[0] if found else "")
        if found is None:
            adapter.unknown[f"{module}.lora_A"] = "it is not known which parameter of the base it changes"


def _saved(name: str) -> str:
    return re.sub(r"\.modules_to_save(\.(?!weight$|bias$)[^.]+)?(?=\.)", "", name)


def _replaced(name: str, config: dict[str, Any], base: dict[str, StoredTensor]) -> str | None:
    """The tensor that a trained one replaces. BERT's heads share a bias with their decoder, unless that is saved whole."""
    if name.endswith(".decoder.bias"):
        return name if config.get("modules_to_save") else nearest(name.replace(".decoder.bias", ".bias"), base)
    return nearest(name, base) or (TIED_HEAD if is_head(name) and TIED_HEAD in base else None)


def _target(module: str, base: dict[str, StoredTensor]) -> str | None:
    found = nearest(f"{module}.weight", base) or nearest(module, base)
    found = found or nearest(f"{module}.weight".replace(".mlp.", ".block_sparse_moe."), base)  # Mixtral, in memory
    return TIED_HEAD if found is None and is_head(f"{module}.weight") and TIED_HEAD in base else found


def adapted_rows(
    adapter: Adapter, name: str, shape: tuple[int, ...], base: Array, span: tuple[int, int], whole: StoredTensor | None = None
) -> tuple[Array, Array]:
    """(adapted rows, how large the terms that make them are) of the base's rows `span`. Raises `CannotCompute`.

    `whole` is the base's tensor as it is stored, for updates that measure columns of it.
    """
    import numpy as np

    if adapter.unknown and ("" in adapter.unknown or not _is_owned(adapter, name)):
        key, why = next(iter(adapter.unknown.items()))  # what is not understood may change any tensor
        raise CannotCompute(f"{key}: {why}" if key else why)
    rows, terms = base, np.abs(base)
    if name in adapter.replaced:
        rows = read_rows(_shaped(adapter.replaced[name], shape), *span)
        terms = np.abs(rows)
    parts = adapter.parts.get(name)
    if parts is not None:
        rows, added = _update(adapter, parts, shape, rows, span, whole)
        terms = terms + added
    for twin in adapter.one_with.get(name, ()):
        if (theirs := adapter.parts.get(twin)) is not None:
            rows, added = _update(adapter, theirs, shape, rows, span, whole)
            terms = terms + added
    layer = adapter.parts.get(f"{name.removesuffix('bias')}weight") if name.endswith("bias") else None
    if layer is not None and (factor := layer.stored.get("ia3_l")) is not None and factor.shape[1:] == (1,):
        rows = rows * _whole(factor).reshape(-1)  # IA³ multiplies what the layer puts out, its bias with it
        terms = np.abs(rows)
    if layer is not None and (bias := layer.stored.get("lora_B.bias")) is not None:
        added = scale_of(adapter, layer, layer.stored["lora_A"].shape[0]) * read_rows(bias, 0, 1)
        rows, terms = rows + added, terms + np.abs(added)
    return rows, terms


def _is_owned(adapter: Adapter, name: str) -> bool:
    return (
        name in adapter.parts or name in adapter.replaced or not adapter.parts.keys().isdisjoint(adapter.one_with.get(name, ()))
    )


class CannotCompute(Exception):
    """Why a value cannot be computed again here."""


def _shaped(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    if tensor.shape != shape:
        raise CannotCompute(f"the adapter stores it as {list(tensor.shape)}, the base as {list(shape)}")
    return tensor


def _update(
    adapter: Adapter, parts: Parts, shape: tuple[int, ...], rows: Array, span: tuple[int, int], whole: StoredTensor | None
) -> tuple[Array, Array]:
    import numpy as np

    held = parts.stored
    if parts.place is not None:
        return _stack(adapter, parts, parts.place, shape, rows, span)
    names = {name for name in held if not name.endswith(".bias")}
    if _TOKENS in names:
        rows = _tokens(adapter, parts, rows, span)
        names.discard(_TOKENS)
        if not names:
            return rows, np.abs(rows)
    if names == {"ia3_l"}:
        factor = _whole(held["ia3_l"])
        result = rows * (factor[span[0] : span[1]] if factor.shape[0] == rows_of(shape)[0] and factor.shape[1] == 1 else factor)
        return result, np.abs(result)
    if names in ({"lora_A", "lora_B"}, {"lora_embedding_A", "lora_embedding_B"}, {"lora_A", "lora_B", "lora_magnitude_vector"}):
        embedding = "lora_embedding_A" in names
        a, b = (held[f"lora_{'embedding_' if embedding else ''}{letter}"] for letter in "AB")
        turned = is_turned(adapter, parts, shape, embedding=embedding)
        scale = scale_of(adapter, parts, a.shape[0])
        delta, size = _product(a, b, scale, shape, span, turned=turned)
        if "lora_magnitude_vector" not in names:
            return rows + delta, size
        if len(shape) != 2 or (turned and whole is None):
            raise CannotCompute("DoRA on a convolution, or on columns of a weight that is not here")
        moved, magnitude = rows + delta, _whole(held["lora_magnitude_vector"]).reshape(-1)
        if turned and whole is not None:
            everything = (0, shape[0])
            changed = _whole(whole) + _product(a, b, scale, shape, everything, turned=True)[0]
            factor = (magnitude / np.linalg.norm(changed, axis=0))[None]
        else:
            factor = magnitude[span[0] : span[1], None] / np.linalg.norm(moved, axis=1, keepdims=True)
        return factor * moved, np.abs(factor) * (np.abs(rows) + size)
    delta, size = _vera(adapter, parts, shape) if names == {"vera_lambda_b", "vera_lambda_d"} else _dense(adapter, parts, shape)
    return rows + delta[span[0] : span[1]], size[span[0] : span[1]]


def _stack(
    adapter: Adapter, parts: Parts, place: Place, shape: tuple[int, ...], rows: Array, span: tuple[int, int]
) -> tuple[Array, Array]:
    a, b = (parts.stored[f"lora_{letter}"] for letter in "AB")
    rank = a.shape[0] // place.experts
    scale = scale_of(adapter, parts, rank)
    made = update(place, _whole(a), _whole(b), scale, shape, span, adapter.model_type)
    if made is None:
        raise CannotCompute("the stack is square, and its kind does not tell which way it lies")
    return rows + made[0], made[1]


def _product(
    a: StoredTensor, b: StoredTensor, scale: float, shape: tuple[int, ...], span: tuple[int, int], *, turned: bool
) -> tuple[Array, Array]:
    """Rows of s·B·A and of s·|B|·|A|."""
    import numpy as np

    rows, width = rows_of(shape)
    wide, tall = _whole(a), _whole(b)  # convolutions: A is (r, in·k·k), B is (out, r)
    left, right = (wide.T, tall.T) if turned else (tall, wide)
    if left.shape[1] != right.shape[0] or (left.shape[0], right.shape[1]) != (rows, width):
        raise CannotCompute(f"factors of {list(b.shape)} and {list(a.shape)} do not make {list(shape)}")
    part = left[span[0] : span[1]]
    return scale * (part @ right), abs(scale) * (np.abs(part) @ np.abs(right))


def _dense(adapter: Adapter, parts: Parts, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The whole update of LoHa or LoKr, and Σ of the magnitudes that make it."""
    import numpy as np

    held = {name: _whole(tensor) for name, tensor in parts.stored.items()}
    sizes = {name: np.abs(part) for name, part in held.items()}
    kind = str(adapter.config.get("peft_type", "")).upper()
    if set(held) == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
        delta, size = hadamard(held), hadamard(sizes)
        rank = held["hada_w1_b"].shape[0]
    elif all(name.startswith("lokr_") for name in held):
        delta, size = kronecker(held), kronecker(sizes)
        rank = int(_pattern(adapter.config.get("rank_pattern"), (parts.module,), adapter.config.get("r") or 8))
    else:
        raise CannotCompute(f"a {kind or 'strange'} update of {', '.join(sorted(held))} is not computed here")
    alpha = float(_pattern(adapter.config.get("alpha_pattern"), (parts.module,), adapter.config.get("alpha", 8)))
    if delta.size != math.prod(shape):
        raise CannotCompute(f"its update has {delta.size} values, the weight {math.prod(shape)}")
    scale, form = alpha / rank, rows_of(shape)
    return scale * delta.reshape(form), abs(scale) * size.reshape(form)


def _vera(adapter: Adapter, parts: Parts, shape: tuple[int, ...]) -> tuple[Array, Array]:
    import numpy as np

    if set(adapter.shared) != {"vera_A", "vera_B"}:
        raise CannotCompute("the adapter does not hold the matrices that its modules share")
    b, d = (_whole(parts.stored[f"vera_lambda_{letter}"]).reshape(-1) for letter in "bd")
    height, width = rows_of(shape)
    turned = height != len(b) or (height == width and _stores_turned(adapter, parts))
    outputs, inputs = (width, height) if turned else (height, width)
    wide, tall = _whole(adapter.shared["vera_A"]), _whole(adapter.shared["vera_B"])
    if len(b) != outputs or tall.shape[0] < outputs or wide.shape[1] < inputs:
        raise CannotCompute(f"its vectors and matrices do not make {list(shape)}")
    left, right = b[:, None] * tall[:outputs], d[:, None] * wide[:, :inputs]
    delta, size = left @ right, np.abs(left) @ np.abs(right)
    return (delta.T, size.T) if turned else (delta, size)


def _tokens(adapter: Adapter, parts: Parts, rows: Array, span: tuple[int, int]) -> Array:
    listed = adapter.config.get("trainable_token_indices")
    listed = listed if listed is not None else adapter.config.get("token_indices")
    if isinstance(listed, dict):
        listed = next((v for k, v in listed.items() if parts.module == k or parts.module.endswith(f".{k}")), None)
    values = _whole(parts.stored[_TOKENS])
    if not isinstance(listed, list) or len(listed) != len(values):
        raise CannotCompute("its config does not say which tokens were trained")
    changed = rows.copy()
    for index, value in zip(listed, values, strict=True):
        if span[0] <= index < span[1]:
            changed[index - span[0]] = value
    return changed


def _whole(tensor: StoredTensor) -> Array:
    return read_rows(tensor, 0, rows_of(tensor.shape)[0])


def is_turned(adapter: Adapter, parts: Parts, shape: tuple[int, ...], *, embedding: bool) -> bool:
    """Whether the layer stores its weight as (in, out). The layer's own kind decides where the shape does not."""
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    a, b = (parts.stored[name] for name in names)
    straight, turned = (b.shape[0], rows_of(a.shape)[1]), (rows_of(a.shape)[1], b.shape[0])
    if straight != turned:
        return rows_of(shape) == turned
    return embedding or _stores_turned(adapter, parts)


def _stores_turned(adapter: Adapter, parts: Parts) -> bool:
    return adapter.model_type in _TURNED_KINDS and parts.module.rpartition(".")[2] in _TURNED_NAMES


def scale_of(adapter: Adapter, parts: Parts, rank: int) -> float:
    """alpha ÷ r, or ÷ √r. PEFT's default for a missing lora_alpha is 8."""
    names = (parts.module, parts.parameter) if parts.parameter else (parts.module,)
    alpha = float(_pattern(adapter.config.get("alpha_pattern"), names, adapter.config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)


def _pattern(patterns: Any, names: tuple[str, ...], default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of one of the names, at a dot. Only plain names and `.*` are read here."""
    for key, value in patterns.items() if isinstance(patterns, dict) else ():
        shown = key.removeprefix("^")
        strange = re.fullmatch(r"[\w.*+?^$\\|()\[\]{},:!=-]{1,200}", shown) is None
        if strange or len(re.findall(r"[*+{]", shown)) > 3 or re.search(r"\)[*+{]", shown):
            raise CannotCompute(f"the pattern {key[:60]!r} is not read here")
        try:
            found = any(re.match(rf"(.*\.)?({key})$", name) for name in names)
        except re.error as error:
            raise CannotCompute(f"the pattern {key[:60]!r} is none") from error
        if found:
            return value
    return default
