#!/usr/bin/env python3
"""Merge adapters of several kinds into a tiny model of every class, and hold the result against PEFT, merged and running.

usage: adapters.py [--only WORD...] [--kinds KIND...] [--rows FILE]

PEFT makes each adapter on the class (noise in every trained number), saves it, runs it on a few tokens and merges it with
merge_and_unload. The streaming engine merges base+adapter from the files alone. Every stored tensor must be PEFT's; where PEFT's
merge differs from PEFT running (LoRA on a tied embedding), the outputs must be those of PEFT running. Nothing of the comparison
shares code with the engine. `--rows` keeps results as JSON lines, and a second run with the same file goes on.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before transformers is imported; not where a test imports this
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import peft
import torch
from transformers.pytorch_utils import Conv1D

from benchmarks.matrix.processes import add_jobs, each
from benchmarks.matrix.run import SECONDS, deadline, tensors
from benchmarks.matrix.tiny import classes, tiny
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import MergingError
from mcp_server.formats.recipe import KEEPS_TIES
from mcp_server.steps.validate import validate

WEIGHTS = (0.5, 0.3)
NOISE = 0.1
TOLERANCE = 2e-5
"""Of stored tensors in float32, absolute and relative."""
OUTPUTS = 2e-3
"""Of a model's outputs, relative to their largest: what changes by less is rounding in other orders."""

Made = Callable[[torch.nn.Module], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="WORD", default=[""], help="model types that hold one of these words")
    parser.add_argument("--types", nargs="*", metavar="TYPE", help="exactly these model types")
    parser.add_argument("--kinds", nargs="*", metavar="KIND", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--rows", type=Path)
    add_jobs(parser)
    args = parser.parse_args()
    rows = read_rows(args.rows)
    known, started = {(row["type"], row["kind"]) for row in rows}, time.monotonic()
    wanted = [
        (kind, name, left)
        for kind, name in classes()
        if (left := [made for made in args.kinds if (kind, made) not in known])
        and any(word in kind for word in args.only)
        and not (args.types and kind not in args.types)
    ]
    for found in each(of_class, wanted, args.jobs):
        rows += found
        for row in found:
            if row["result"] != "none":
                print(f"{row['type']:28} {row['kind']:11} {row['result']:8} {row['says'][:230]}", flush=True)
        if args.rows:
            with args.rows.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
    print(f"{dict(Counter(row['result'] for row in rows))} in {time.monotonic() - started:.0f} s")
    return int(any(row["result"] in ("wrong", "misled", "broke") for row in rows))


def read_rows(file: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file and file.exists() else []


def of_class(wanted: tuple[str, str, list[str]]) -> list[dict[str, Any]]:
    return one_class(*wanted)


def one_class(kind: str, name: str, kinds: list[str]) -> list[dict[str, Any]]:
    """A row for each kind of adapter; `none` where the class has nothing that such an adapter changes."""
    row = {"type": kind, "class": name}
    try:
        with deadline(SECONDS):
            model = tiny(kind, name)
    except TimeoutError:
        model = None
    if model is None:
        return [row | {"kind": made, "result": "none", "says": "not made tiny"} for made in kinds]
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.02)
    rows = []
    with tempfile.TemporaryDirectory(prefix="matrix-", ignore_cleanup_errors=True) as folder:
        try:
            model.save_pretrained(Path(folder) / "made")
            model = type(model).from_pretrained(Path(folder) / "made").eval()
            model.save_pretrained(Path(folder) / "base")
        except Exception as error:  # noqa: BLE001
            return [
                row | {"kind": made, "result": "none", "says": f"transformers does not save and load it: {error}"}
                for made in kinds
            ]
        for made in kinds:
            with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as place, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    with deadline(SECONDS):
                        result, says = one_adapter(model, KINDS[made], Path(folder) / "base", Path(place), two=made == "two")
                except TimeoutError:
                    result, says = "none", f"took more than {SECONDS} s"
                except Exception as error:  # noqa: BLE001 - the matrix is for finding whatever goes wrong
                    result, says = "broke", f"{type(error).__name__}: {error}"
            rows.append(row | {"kind": made, "result": result, "says": says.replace(place, "").replace(folder, "")})
    del model
    gc.collect()
    return rows


def one_adapter(model: Any, make: Made, base: Path, place: Path, *, two: bool = False) -> tuple[str, str]:
    """(right | runs | refused | misled | wrong | none, what was said)."""
    names = ("one", "two") if two else ("one",)
    theirs, running = [], None
    for seed, name in enumerate(names):
        try:
            adapted = trained(copy.deepcopy(model), make, seed)
            if adapted is None:
                return "none", "nothing to adapt"
            adapted.save_pretrained(place / name)
        except Exception as error:  # noqa: BLE001 - PEFT refuses in its own ways
            return "none", f"PEFT does not make it: {type(error).__name__}: {str(error)[:150]}"
        running = outputs(adapted) if not two else None
        try:
            adapted.merge_and_unload().save_pretrained(place / f"peft-{name}")
            theirs.append(tensors(place / f"peft-{name}"))
        except Exception as error:  # noqa: BLE001
            if running is None:
                return "none", f"PEFT does not merge it: {type(error).__name__}: {str(error)[:150]}"
    recipe = recipe_of(base, [place / name for name in names])
    checked = validate(recipe)
    errors = [finding.message for finding in checked.findings if finding.severity == "error"]
    try:
        merge(Request(recipe, place / "out", place / "journal", threads=1), lambda *_: None)
    except MergingError as error:
        return ("refused" if errors else "misled"), error.message + ("" if errors else " (validate found nothing)")
    if errors:
        return "misled", f"validate refuses what merges: {errors[0]}"
    out = tensors(place / "out")
    if two:
        start = tensors(base)
        wanted = {key: added(value, [other[key] for other in theirs]) for key, value in start.items()}
        if fault := differ(wanted, out):
            fault = differ(wanted, tensors(merged_alike(recipe, place)))
        return ("wrong", fault) if fault else ("right", "")
    return judge(type(model), recipe, place, theirs, running, out)


def added(start: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """Task arithmetic in float64; bounds of activations may be infinite, and are the base's."""
    moved = start + sum(w * (other.double() - start.double()) for w, other in zip(WEIGHTS, others, strict=True))
    return torch.where(torch.isfinite(start), moved, start.double()) if start.is_floating_point() else start


def judge(
    cls: Any, recipe: str, place: Path, theirs: list[Any], running: torch.Tensor | None, out: dict[str, torch.Tensor]
) -> tuple[str, str]:
    """Of one adapter: right as PEFT merges and runs it, or as one of the two where they differ."""
    fault = differ(theirs[0], out) if theirs else "PEFT does not merge it"
    now = said(cls, place / "out") if running is not None else None
    runs = running is not None and now is not None and close(running, now)
    if not fault:
        if running is None or now is None or runs:
            return "right", "" if runs else "held against the merge alone"
        merged = said(cls, place / "peft-one")
        if merged is not None and close(merged, now):
            return "merges", "as PEFT merges it; running, the class does not read the adapted modules as modules"
        return "wrong", "the tensors are those of PEFT's merge, the outputs are not"
    if runs and not theirs:
        return "runs", fault
    other = differ(theirs[0], tensors(merged_alike(recipe, place)))
    if runs:
        return "runs", f"as PEFT runs it; with {KEEPS_TIES} {other or 'as it merges it'}"
    if running is None and not other:
        return "runs", f"with {KEEPS_TIES} as PEFT merges it; not run here"
    if not other and not differ(apart(cls, recipe, place), out):
        return "merges", "as PEFT merges it into the untied class; running, the class does not read an adapted module as a module"
    return "wrong", f"{fault}; with {KEEPS_TIES}: {other or 'as merged'}"


def said(cls: Any, folder: Path) -> torch.Tensor | None:
    """The outputs of a stored model; None when transformers does not load it."""
    try:
        return outputs(cls.from_pretrained(folder).eval())
    except RuntimeError:
        return None


def apart(cls: Any, recipe: str, place: Path) -> dict[str, torch.Tensor]:
    """PEFT's merge into the same model with its tied weights taken apart, as it is stored."""
    model = cls.from_pretrained(recipe.partition("model: ")[2].partition("+")[0])
    for name in getattr(model, "_tied_weights_keys", None) or {}:
        module, _, leaf = name.rpartition(".")
        parent = model.get_submodule(module)
        setattr(parent, leaf, torch.nn.Parameter(getattr(parent, leaf).detach().clone()))
    model.config.tie_word_embeddings = False
    peft.PeftModel.from_pretrained(model, place / "one").merge_and_unload().save_pretrained(place / "apart")
    return tensors(place / "apart")


def merged_alike(recipe: str, place: Path) -> Path:
    """The merge where a tied embedding and head are changed alike."""
    text = f"{recipe}parameters: {{{KEEPS_TIES}: true}}\n"
    merge(Request(text, place / "alike", place / "journal-alike", threads=1), lambda *_: None)
    return place / "alike"


def trained(model: Any, make: Made, seed: int) -> Any:
    """The model with an adapter of noise; None when it has nothing of the kind."""
    config = make(model)
    if config is None:
        return None
    torch.manual_seed(seed + 1)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * NOISE)
    return adapted


def recipe_of(base: Path, adapters: list[Path]) -> str:
    if len(adapters) == 1:
        return f"merge_method: passthrough\nmodels:\n  - model: {base}+{adapters[0]}\ndtype: float32\n"
    models = "".join(
        f"  - model: {base}+{adapter}\n    parameters: {{weight: {weight}}}\n"
        for adapter, weight in zip(adapters, WEIGHTS, strict=True)
    )
    return f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n{models}dtype: float32\n"


def differ(theirs: dict[str, torch.Tensor], ours: dict[str, torch.Tensor]) -> str:
    """'' when every tensor of ours is theirs."""
    if odd := sorted(set(theirs) ^ set(ours)):
        return f"{len(odd)} names are in one alone, such as {odd[0]}"
    bad = [key for key, value in theirs.items() if not same(value, ours[key])]
    return f"{len(bad)} of {len(theirs)} tensors differ, such as {bad[0]}" if bad else ""


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    return bool(torch.allclose(one.double(), other.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True))


def outputs(model: Any) -> torch.Tensor | None:
    """What the model says to a few fixed tokens or a picture; None for classes that need other inputs."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for given in inputs(inner.config):
        try:
            torch.manual_seed(0)
            with torch.no_grad():
                found = inner(**given)
        except Exception:  # noqa: BLE001 - the class needs others
            continue
        for key in ("logits", "last_hidden_state"):
            value = found.get(key) if hasattr(found, "get") else None
            if isinstance(value, torch.Tensor) and torch.isfinite(value).all():
                return value.double()
    return None


def inputs(config: Any) -> Iterator[dict[str, Any]]:
    ids = torch.arange(3, 15).reshape(1, 12) % 90
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", 32)
    sides = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    torch.manual_seed(1)
    picture = {"pixel_values": torch.randn(1, getattr(vision, "num_channels", 3) or 3, *sides)} if None not in sides else None
    text = {"input_ids": ids}
    yield text | ({"decoder_input_ids": ids} if getattr(config, "is_encoder_decoder", False) else {})
    yield text | {"attention_mask": torch.ones_like(ids)}
    if picture:
        yield picture
        yield text | picture
    yield {"input_features": torch.randn(1, 16, 64), "decoder_input_ids": ids}


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and float((one - other).abs().max()) <= OUTPUTS * float(one.abs().max())


def leaves(model: torch.nn.Module, kinds: tuple[type, ...]) -> list[str]:
    return sorted({re.sub(r".*\.", "", name) for name, module in model.named_modules() if isinstance(module, kinds)})


def linear(**settings: Any) -> Made:
    return lambda _: peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", **settings)


def by_default(model: Any) -> Any:
    """The modules that PEFT chooses for the model type, with rank-stabilised scales, patterns and biases."""
    known = peft.utils.constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    targets = known.get(model.config.model_type)
    targets = targets if isinstance(targets, list) else [n for n in leaves(model, (torch.nn.Linear, Conv1D)) if n[:1] in "qv"]
    if not targets:
        return None
    return peft.LoraConfig(
        r=4, use_rslora=True, rank_pattern={targets[0]: 2}, alpha_pattern={targets[-1]: 5}, target_modules=targets, bias="all"
    )


def experts(model: Any) -> Any:
    """Stacks of experts that are single parameters."""
    found = sorted(
        {
            ".".join(name.split(".")[-2:])
            for name, value in model.named_parameters()
            if value.dim() == 3 and re.search("expert", name) and not name.endswith("bias")
        }
    )
    return peft.LoraConfig(r=2, lora_alpha=3, target_modules=[], target_parameters=found) if found else None


def embeddings(model: Any) -> Any:
    names = [name for name, module in ends(model)]
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=names) if names else None


def saved(model: Any) -> Any:
    """The head saved whole beside a LoRA, or the embedding where there is no head."""
    found = ends(model)
    if not found:
        return None
    linears = [name for name in leaves(model, (torch.nn.Linear, Conv1D)) if name != found[-1][0].rpartition(".")[2]]
    if not linears:
        return None
    return peft.LoraConfig(r=4, target_modules=linears[:2], modules_to_save=[found[-1][0]])


def ends(model: Any) -> list[tuple[str, torch.nn.Module]]:
    """Input embedding and output head, by their full names."""
    found = []
    for get in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            module = get()
        except Exception:  # noqa: BLE001 - a class without one
            continue
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            found += [(name, module) for name, other in model.named_modules() if other is module][:1]
    return found


def convolutions(model: Any) -> Any:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)) and module.groups == 1
    ]
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=names) if names else None


def ia3(model: Any) -> Any:
    names = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    heads = {name for name, _ in ends(model)}
    names = [name for name in names if name not in heads]
    return peft.IA3Config(target_modules=names, feedforward_modules=names[1::2]) if names else None


KINDS: dict[str, Made] = {
    "default": by_default,
    "all-linear": linear(),
    "experts": experts,
    "embeddings": embeddings,
    "saved": saved,
    "dora": linear(use_dora=True),
    "conv": convolutions,
    "ia3": ia3,
    "two": linear(),
}

if __name__ == "__main__":
    sys.exit(main())
