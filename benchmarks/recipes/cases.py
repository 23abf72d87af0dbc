"""Published recipes, and what this project's engine makes of each: the same weights as mergekit, or a refusal with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from safetensors.numpy import load_file

from benchmarks.recipes.models import NAMES
from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import MergingError
from mcp_server.workers.chat_templates import named_template

Weights = dict[str, np.ndarray]
PUBLISHED = Path(__file__).parent / "published.yml"
RANDOM = re.compile(r"merge_method:\s*\"?(dare|della)")
_NAME = re.compile(rf"(?<![\w-])({'|'.join(NAMES)})(?![\w-])")
CLOSE, ODD = 4e-6, 2e-3
"""Values that agree to this much, absolutely, and twice that relatively; and the share that may not, near a threshold."""


@dataclass(frozen=True)
class Published:
    """`ours`: part of the words with which the engine refuses it. `theirs`: it is no recipe of mergekit-yaml. `fix`: why the
    corrected recipe has other weights in mergekit."""

    name: str
    recipe: str
    ours: str = ""
    theirs: str = ""
    fix: str = ""


def published() -> Iterator[Published]:
    yield from (Published(**entry) for entry in yaml.safe_load(PUBLISHED.read_text("utf-8")))


def over(case: Published, models: dict[str, str]) -> str:
    """The recipe over these models, in float32, so that rounding hides nothing; masks drawn at random keep everything."""
    text = _NAME.sub(lambda found: models[found[1]], case.recipe)
    text = re.sub(r"(dtype\"?:\s*\"?)(bfloat16|float16)", r"\1float32", text)
    if RANDOM.search(text) and not case.ours:
        text = re.sub(r"(density: )(0\.\d+|\[[^]]*\])", r"\g<1>1.0", text)
    return text


def ours(text: str, folder: Path) -> Weights | str:
    """The engine's weights, or why it refuses."""
    try:
        merge(
            Request(text, folder, folder.with_suffix(".journal"), threads=1, chat_template=named_template(text)), lambda *_: None
        )
    except MergingError as refusal:
        return f"{refusal.message} ({refusal.next_step})"
    return read(folder)


def read(folder: Path) -> Weights:
    found: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= {name: values.astype(np.float64) for name, values in load_file(file).items()}
    return found


def known_by(weights: Weights) -> dict[str, float]:
    """A number for each tensor that tells its values and their order: their sum, weighted by the cosine of their place."""
    return {name: round(float(values.ravel() @ np.cos(np.arange(values.size))), 4) for name, values in sorted(weights.items())}


def difference(one: Weights, other: Weights) -> str:
    """How two merges differ, or ''."""
    for name in sorted(one.keys() ^ other.keys()):
        return f"{name} is in one of them only"
    for name, values in one.items():
        theirs = other[name]
        if values.shape != theirs.shape:
            return f"{name} is {list(values.shape)} and {list(theirs.shape)}"
        near = np.isclose(values, theirs, rtol=2 * CLOSE, atol=CLOSE) | (np.isnan(values) & np.isnan(theirs))
        if (share := float((~near).mean())) > ODD:
            return f"{name}: {share:.1%} of the values differ, by up to {float(np.nanmax(np.abs(values - theirs))):.3g}"
    return ""
