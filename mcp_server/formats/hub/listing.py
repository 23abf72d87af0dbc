"""What a repository holds, told from the names of its files, and which of them a merge reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

from mcp_server.errors import Malformed, NotAModel, NotFound, did_you_mean

KEPT_SUFFIXES: Final = {".safetensors", ".json", ".txt", ".model", ".tiktoken", ".jinja", ".py", ".md", ".vocab", ".bpe"}
KEPT_NAMES: Final = {"LICENSE", "LICENCE", "NOTICE", "USE_POLICY"}
PRECISE: Final = (
    "BF16",
    "F32",
    "F16",
    "Q8_0",
    "Q6_K",
    "Q5_K",
    "Q5_",
    "Q4_K",
    "Q4_",
    "IQ4",
    "MXFP4",
    "Q3_K",
    "IQ3",
    "Q2_K",
    "IQ2",
)
"""Of several GGUF files the one that lost least; float32 after bfloat16, of which it is a copy nearly always."""
_PART: Final = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_LOOSE: Final = re.compile(r"(^|/)(mmproj|imatrix)|[-.]imatrix", re.IGNORECASE)
"""GGUF files that are no language model: image projectors and statistics of a quantisation."""

QUANTISED_SUFFIXES: Final = ("-unsloth-bnb-4bit", "-bnb-4bit", "-bnb-8bit", "-GPTQ", "-AWQ", "-FP8")
"""How quantised copies are called after the model that they were made from."""

Holding = Literal["adapter", "model", "gguf"]
COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")


def require_plain(name: str, commit: str, files: list[str]) -> None:
    """Raise `Malformed` for a commit or a file's name that would be another path than one inside the repository's own folder."""
    odd = [f for f in files if f.startswith("/") or "\\" in f or ".." in f.split("/") or not f.isprintable()]
    if not COMMIT.fullmatch(commit):
        odd.insert(0, commit)
    if odd:
        raise Malformed(f"the hub lists {odd[0][:120]!r} for {name}, which is no plain name", "distrust the mirror in between")


def holding_of(name: str, files: list[str]) -> Holding:
    """Raises `NotAModel` when no merge can read what the repository holds, and says what to do instead."""
    if "adapter_config.json" in files and "adapter_model.safetensors" in files:
        return "adapter"
    if "config.json" in files and ("model.safetensors" in files or "model.safetensors.index.json" in files):
        return "model"
    if models_in_gguf(files):
        return "gguf"
    if any(n.endswith((".bin", ".pt", ".pth")) for n in files):
        raise NotAModel(
            f"{name} holds only pickle weights, which can run code when they are opened",
            "look for a branch or a copy with safetensors (many have the revision refs/pr/1), or convert it where you trust it",
            kind="pickle",
        )
    what, then = _otherwise(name, files)
    raise NotAModel(f"{name} {what}", then, kind="not_a_model")


def _otherwise(name: str, files: list[str]) -> tuple[str, str]:
    """What a repository holds that no merge reads from it, and what to do."""
    if "adapters.safetensors" in files:
        return "is an adapter of mlx-lm (adapters.safetensors)", "fuse it with mlx_lm.fuse, then merge models"
    if "model_index.json" in files:
        return "is a pipeline of several models (model_index.json), not a language model", "name another repository"
    if inner := sorted({n.rpartition("/")[0] for n in files if n.endswith(".safetensors") and "/" in n}):
        places = ", ".join(inner[:4]) + (" …" if len(inner) > 4 else "")
        step = f"download the folder that you mean (hf download {name} --include '{inner[-1]}/*'), and name it on this machine"
        return f"holds weights in its folders alone ({places}), which are not read from a hub", step
    if "consolidated.safetensors" in files:
        return (
            "holds consolidated.safetensors, Mistral's own layout",
            "name a repository in transformers' layout, with model.safetensors",
        )
    listed = ", ".join(sorted(files)[:8]) or "no files"
    if any(n.endswith(".safetensors") for n in files) and "config.json" in files:
        return "holds neither model.safetensors nor model.safetensors.index.json", f"name another repository; it has {listed}"
    return "holds no config.json with safetensors", f"name another repository; it has {listed}"


def original_of(name: str) -> str | None:
    """What a quantised copy was made from, as far as its name tells; its owner may be another."""
    found = next((suffix for suffix in QUANTISED_SUFFIXES if name.lower().endswith(suffix.lower())), None)
    return name[: -len(found)] if found else None


def models_in_gguf(files: list[str]) -> dict[str, list[str]]:
    """Models in GGUF: a name without part numbers → its files."""
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        if file.lower().endswith(".gguf") and not _LOOSE.search(file):
            found.setdefault(_PART.sub("", file), []).append(file)
    return found


def chosen_gguf(name: str, files: list[str], wanted: str | None) -> list[str]:
    """The files of the GGUF that is named (whole, or a part of its name such as Q8_0), else of the most precise one.

    Raises `NotFound` for a name that no file or several files carry.
    """
    models = models_in_gguf(files)
    if wanted is None:
        return models[min(models, key=lambda model: (_precision(model), model))]
    hits = [model for model in models if model == wanted or wanted in models[model]]
    hits = hits or [model for model in models if wanted.lower() in model.lower()]
    if len(hits) != 1:
        found = "none" if not hits else f"{len(hits)} ({', '.join(hits[:4])})"
        listed = ", ".join(list(models)[:12])
        raise NotFound(
            f"of the GGUF files of {name} {found} carry {wanted!r}.{did_you_mean(wanted, models)}", f"name one of {listed}"
        )
    return models[hits[0]]


def copied_gguf(file: str) -> str:
    """Under what name the first bytes of a model in GGUF are kept: a file's without its folder and number."""
    return _PART.sub("", file).rpartition("/")[2]


def _precision(model: str) -> int:
    stem = model.upper()
    return next((n for n, kind in enumerate(PRECISE) if re.search(rf"(^|[-_./]){kind}", stem)), len(PRECISE))


def is_wanted(file: str, files: list[str]) -> bool:
    """What a merge, a tokenizer or a card reads. Of two sets of weights (shards and `consolidated`), transformers' own."""
    path = Path(file)
    if path.suffix == ".safetensors":
        if path.parent != Path():
            return False  # originals and variants in folders of their own
        transformers_names = [n for n in files if n.startswith(("model", "adapter_model")) and n.endswith(".safetensors")]
        return file in transformers_names or not transformers_names
    if path.parts[0] in {"original", "onnx", "metal", "checkpoint"} or path.parts[0].startswith("."):
        return False
    return path.suffix in KEPT_SUFFIXES or path.stem in KEPT_NAMES
