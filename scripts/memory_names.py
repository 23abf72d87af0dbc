#!/usr/bin/env python3
"""Copy from the installed transformers what its classes do to tensor names on loading: memory_names.json.

usage: memory_names.py [CLASS ...]      (all classes: about 5 minutes; a few: prints their facts as JSON)
"""

import json
import os
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # a test that imports it keeps its network and its warnings
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.models.auto import modeling_auto
from transformers.pytorch_utils import Conv1D

from benchmarks.matrix.tiny import small

TARGET = Path(__file__).resolve().parent.parent / "mcp_server" / "formats" / "memory_names.json"
DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "depth", "encoder_layers", "decoder_layers", "n_layers")
TASKS = (
    "CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "MASKED_LM",
    "PRETRAINING",
    "SPEECH_SEQ_2_SEQ",
    "",
    "SEQUENCE_CLASSIFICATION",
    "TOKEN_CLASSIFICATION",
    "AUDIO_CLASSIFICATION",
    "IMAGE_CLASSIFICATION",
    "CTC",
)


def classes() -> dict[str, str]:
    """Class name → model_type, the classes that a checkpoint of a language model most often names first."""
    found: dict[str, str] = {}
    for task in TASKS:
        table = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES" if task else "MODEL_MAPPING_NAMES", {})
        for kind, names in table.items():
            for name in names if isinstance(names, (list, tuple)) else (names,):
                found.setdefault(name, kind)
    return found


def shrunk(config: Any, depth: int = 0) -> Any:
    for key in DEPTHS:
        if isinstance(getattr(config, key, None), int):
            try:
                setattr(config, key, 2)
            except Exception:  # noqa: BLE001 - a property without a setter, or one that is checked
                continue
    for value in list(vars(config).values()):
        if hasattr(value, "to_dict") and depth < 3:
            shrunk(value, depth + 1)
    return config


def on_meta(kind: Any) -> Any:
    """The class without memory: of few layers, as it is by default, or with the small numbers of the matrix."""
    failed: Exception | None = None
    for make in (
        lambda: shrunk(kind.config_class()),
        kind.config_class,
        *(partial(small, kind.config_class, n) for n in range(4)),
    ):
        try:
            with torch.device("meta"):
                return kind(make())
        except Exception as error:  # noqa: BLE001 - a class may refuse numbers, or lists of another length, in its own way
            failed = failed or error
    raise failed or RuntimeError(kind)


def facts(name: str, model_type: str) -> dict[str, Any] | None:
    """What one class does; of a class that cannot be made without more packages, the conversions registered for its name."""
    kind = getattr(transformers, name, None)
    try:
        model = on_meta(kind)
    except Exception:  # noqa: BLE001 - whatever it needs is not here
        registered = get_checkpoint_conversion_mapping(name) or get_checkpoint_conversion_mapping(model_type)
        found = {"rules": [rule(r) for r in registered]} if registered else {}
        return found | ({"tied": tied} if (tied := plain_ties(kind)) else {}) or None
    found: dict[str, Any] = {}
    if rules := get_model_conversion_mapping(model, add_legacy=False):
        found["rules"] = [rule(r) for r in rules]
    if conv := sorted({layerless(n) for n, m in model.named_modules() if isinstance(m, Conv1D)}):
        found["conv1d"] = conv
    if turned := sorted({layerless(n) for n, m in model.named_modules() if getattr(m, "is_transposed", False) is True}):
        found["transposed"] = turned
    if tied := ties(model):
        found["tied"] = tied
    stacks = {
        name: [n for n, p in m.named_parameters(recurse=False) if p.dim() == 3 and n.endswith("proj")]
        for name, m in model.named_modules()
    }
    if orders := sorted({tuple(names) for names in stacks.values() if len(names) > 1}):
        found["stacks"] = orders
    return found | prefix(model)


def prefix(model: Any) -> dict[str, Any]:
    """The name of the model under its head, and how names begin in the class: at its top, and under that name.

    transformers puts the prefix before a stored name, or takes it off, where the class then has a tensor of that name.
    """
    inner, names = model.base_model_prefix, list(model.state_dict())
    if not inner or not names:
        return {}
    under = {name.split(".")[1] for name in names if name.startswith(f"{inner}.")}
    own = {name.split(".")[0] for name in names}
    return {"prefix": inner, "own": sorted(own)} | ({"inside": sorted(under)} if under else {})


def ties(model: Any) -> dict[str, str]:
    """Every tensor that the class or one of its parts ties, and to which; those that are named by a pattern are left out."""
    found = {}
    for prefix, part in model.named_modules(remove_duplicate=False):
        for name, source in plain_ties(part).items():
            found[f"{prefix}.{name}" if prefix else name] = f"{prefix}.{source}" if prefix else source
    return found


def plain_ties(part: Any) -> dict[str, str]:
    tied = getattr(part, "_tied_weights_keys", None)
    every = [(a.removesuffix("$"), b.removesuffix("$")) for a, b in (tied.items() if isinstance(tied, dict) else ())]
    return {a: b for a, b in every if all(re.fullmatch(r"[\w.]+\.(weight|bias)", text) for text in (a, b))}


def rule(transform: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "kind": type(transform).__name__,
        "regex": transform.compiled_sources.pattern,
        "to": transform.target_patterns,
        "ops": [
            [
                type(op).__name__,
                {k: v for k, v in vars(op).items() if k in ("dim", "dim0", "dim1", "check_dims") and v is not None},
            ]
            for op in getattr(transform, "operations", [])
        ],
    }
    if transform.scope_prefix is not None:
        found |= {"scope": transform.scope_prefix, "base": transform.base_model_prefix}
    if hasattr(transform, "offset"):
        found["offset"] = transform.offset
    return found


def layerless(name: str) -> str:
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1N", name)


def table(every: dict[str, dict[str, Any]], kinds: dict[str, str]) -> dict[str, Any]:
    """The file: each rule once, classes point to them by number."""
    rules: dict[str, int] = {}
    named: dict[str, Any] = {}
    types: dict[str, str] = {}
    for name, found in every.items():
        entry = dict(found)
        if "rules" in entry:
            entry["rules"] = [rules.setdefault(json.dumps(r, sort_keys=True), len(rules)) for r in entry["rules"]]
        named[name] = entry
        types.setdefault(kinds[name], name)
    return {
        "source": f"transformers {transformers.__version__}",
        "rules": [json.loads(text) for text in rules],
        "classes": named,
        "types": types,
    }


def main() -> int:
    transformers.logging.set_verbosity_error()
    kinds = classes()
    chosen = sys.argv[1:] or list(kinds)
    found = {name: made for name in chosen if (made := facts(name, kinds.get(name, ""))) is not None}
    made = table(found, {name: kinds.get(name, name) for name in found})
    if sys.argv[1:]:
        print(json.dumps(made, indent=1))
        return 0
    lines = ",\n".join(json.dumps(r) for r in made["rules"])
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in made["classes"].items())
    TARGET.write_text(
        f'{{"source": {json.dumps(made["source"])},\n"rules": [\n{lines}\n],\n"classes": {{\n{rows}\n}},\n'
        f'"types": {json.dumps(made["types"])}}}\n',
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
