"""Recipes in unusual spellings: the weights of mergekit, also once corrected, or a refusal by the true reason."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from mcp_server.engine.merge import merge
from mcp_server.engine.request import Request
from mcp_server.errors import MergingError
from mcp_server.steps.validate import fix
from tests.engine.synthetic import load
from tests.engine.test_mergekit import models  # noqa: F401 - a fixture

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SAME: dict[str, str] = {
    "anchors hidden": """\
merge_method: linear
models:
  - model: A
    parameters: &p {weight: 0.5}
  - model: B
    parameters: *p
""",
    "merge key": """\
merge_method: linear
models:
  - model: A
    parameters: &p {weight: 0.5}
  - model: B
    parameters: {<<: *p}
""",
    "normalize one": """\
merge_method: ties
base_model: BASE
parameters: {normalize: 1.0, density: 0.5}
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    "normalize zero float": """\
merge_method: linear
parameters: {normalize: 0.0}
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    "weight strings": """\
merge_method: linear
models:
  - {model: A, parameters: {weight: '0.7'}}
  - {model: B, parameters: {weight: '0.4'}}
""",
    "bom": """\
\ufeffmerge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    "crlf": """\
merge_method: linear\r
models:\r
  - {model: A, parameters: {weight: 0.7}}\r
  - {model: B, parameters: {weight: 0.4}}\r
""",
    "gradient": """\
merge_method: linear
models:
  - {model: A, parameters: {weight: [0, 0.5, 1]}}
  - {model: B, parameters: {weight: [1, 0.5, 0]}}
""",
    "gradient one": """\
merge_method: linear
models:
  - {model: A, parameters: {weight: [0.3]}}
  - {model: B, parameters: {weight: 1}}
""",
    "filters": """\
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}
    - value: 0.5
""",
    "filter star": """\
merge_method: linear
models:
  - {model: A, parameters: {weight: [{filter: '*', value: 0.3}, {value: 0.9}]}}
  - {model: B, parameters: {weight: 0.5}}
""",
    "filter regex like": """\
merge_method: linear
models:
  - {model: A, parameters: {weight: [{filter: 'layers.*.mlp', value: 0.3}, {value: 0.9}]}}
  - {model: B, parameters: {weight: 0.5}}
""",
    "slerp slices": """\
merge_method: slerp
base_model: A
slices:
  - sources: [{model: A, layer_range: [0, 2]}, {model: B, layer_range: [0, 2]}]
  - sources: [{model: A, layer_range: [2, 4]}, {model: B, layer_range: [2, 4]}]
parameters: {t: 0.3}
""",
    "base among models ties": """\
merge_method: ties
base_model: BASE
models:
  - model: BASE
  - {model: A, parameters: {weight: 0.7, density: 0.5}}
  - {model: B, parameters: {weight: 0.4, density: 0.6}}
""",
    "base weighted in task": """\
merge_method: task_arithmetic
base_model: BASE
models:
  - {model: BASE, parameters: {weight: 0.3}}
  - {model: A, parameters: {weight: 0.7}}
""",
    "negative weights": """\
merge_method: task_arithmetic
base_model: BASE
models:
  - {model: A, parameters: {weight: -0.5}}
  - {model: B, parameters: {weight: 1.5}}
""",
    "lambda": """\
merge_method: task_arithmetic
base_model: BASE
parameters: {lambda: 0.6}
models:
  - {model: A, parameters: {weight: 0.5}}
  - {model: B, parameters: {weight: 0.5}}
""",
    "lambda top level word": """\
merge_method: ties
base_model: BASE
parameters: {lambda: 0.6, density: 0.5, normalize: false}
models:
  - {model: A, parameters: {weight: 0.5}}
  - {model: B, parameters: {weight: 0.5}}
""",
    "int8 mask": """\
merge_method: ties
base_model: BASE
parameters: {int8_mask: true, density: 0.5, weight: 1}
models: [{model: A}, {model: B}]
""",
    "rescale ties": """\
merge_method: ties
base_model: BASE
parameters: {rescale: true, density: 0.5, weight: 1}
models: [{model: A}, {model: B}]
""",
    "revision key": """\
merge_method: linear
models:
  - {model: {model: {path: A, revision: main}}, parameters: {weight: 1}}
  - {model: B, parameters: {weight: 1}}
""",
    "out dtype": """\
merge_method: linear
out_dtype: bfloat16
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    "dare density 1": """\
merge_method: dare_ties
base_model: BASE
parameters: {density: 1.0, weight: 0.5}
models: [{model: A}, {model: B}]
""",
    "density 0": """\
merge_method: ties
base_model: BASE
parameters: {density: 0, weight: 0.5}
models: [{model: A}, {model: B}]
""",
    "stock": """\
merge_method: model_stock
base_model: BASE
models: [{model: A}, {model: B}]
""",
    "sce": """\
merge_method: sce
base_model: BASE
parameters: {select_topk: 0.4}
models: [{model: A}, {model: B}]
""",
    "breadcrumbs": """\
merge_method: breadcrumbs_ties
base_model: BASE
parameters: {density: 0.8, gamma: 0.05, weight: 0.5}
models: [{model: A}, {model: B}]
""",
    "weights list of bool": """\
merge_method: linear
models:
  - {model: A, parameters: {weight: true}}
  - {model: B, parameters: {weight: 1}}
""",
    "passthrough scale": """\
merge_method: passthrough
models:
  - {model: A, parameters: {scale: [{filter: q_proj, value: 0.5}, {value: 1}]}}
""",
    "parameters null": """\
merge_method: linear
parameters:
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    "layer range overlap": """\
merge_method: passthrough
slices:
  - sources: [{model: A, layer_range: [0, 3]}]
  - sources: [{model: B, layer_range: [1, 4]}]
""",
    "residual slices without base": """\
merge_method: ties
base_model: BASE
slices:
  - sources:
    - {model: A, layer_range: [0, 2], parameters: {weight: 0.5, density: 0.5}}
    - {model: BASE, layer_range: [0, 2]}
""",
    "anchors at the top": """\
x: &p {weight: 0.5, density: 0.5}
merge_method: ties
base_model: BASE
models:
  - {model: A, parameters: *p}
  - {model: B, parameters: *p}
""",
    "int8 mask at the top": """\
merge_method: ties
base_model: BASE
int8_mask: true
parameters: {density: 0.5, weight: 1}
models: [{model: A}, {model: B}]
""",
    "modules": """\
merge_method: linear
modules:
  default:
    models:
      - {model: A, parameters: {weight: 0.7}}
      - {model: B, parameters: {weight: 0.4}}
""",
    "stock filter wise": """\
merge_method: model_stock
base_model: BASE
parameters: {filter_wise: true}
models: [{model: A}, {model: B}]
""",
    "nuslerp row by row": """\
merge_method: nuslerp
parameters: {nuslerp_flatten: false}
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    "layer range string": """\
merge_method: passthrough
slices:
  - sources: [{model: A, layer_range: [0, '2']}]
""",
    "nuslerp column by column": """\
merge_method: nuslerp
base_model: BASE
parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    "nuslerp whose weights cancel": """\
merge_method: nuslerp
models:
  - {model: A, parameters: {weight: 0.5}}
  - {model: B, parameters: {weight: -0.5}}
""",
    "modules with parameters and slices": """\
merge_method: ties
base_model: BASE
parameters: {density: 0.3}
modules:
  default:
    parameters: {density: 0.6, weight: 0.5}
    slices:
      - sources:
        - {model: A, layer_range: ['0', 2]}
        - {model: BASE, layer_range: [0, 2.0]}
      - sources:
        - {model: B, layer_range: [2, 4]}
        - {model: BASE, layer_range: [2, 4]}
""",
    "a scalar anchored at the top": """\
w: &w 0.3
d: &all {density: 0.5, weight: *w}
merge_method: dare_ties
base_model: BASE
models:
  - {model: A, parameters: {<<: *all, density: 1}}
  - {model: B, parameters: {weight: *w, density: 1.0}}
""",
}
REFUSED: dict[str, tuple[str, str]] = {
    "density 50": (
        "mergekit drops nothing from 1 on",
        """\
merge_method: ties
base_model: BASE
parameters: {density: 50}
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    ),
    "a misspelt key that takes up an alias": (
        "unknown key 'paramters'",
        """\
merge_method: ties
base_model: BASE
models:
  - {model: A, parameters: &p {weight: 0.5, density: 0.5}}
  - {model: B, parameters: *p}
paramters: *p
""",
    ),
    "one part of several": (
        "mergekit only",
        """\
merge_method: linear
modules:
  text_decoder:
    models:
      - {model: A, parameters: {weight: 0.7}}
      - {model: B, parameters: {weight: 0.4}}
""",
    ),
    "tab": (
        "a tab stands",
        """\
merge_method: linear
models:
\t- {model: A, parameters: {weight: 0.7}}
\t- {model: B, parameters: {weight: 0.4}}
""",
    ),
    "fenced": (
        "fenced",
        """\
```yaml
merge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
```
""",
    ),
    "fenced in prose": (
        "fenced",
        """\
# My merge

Used this:

```yaml
merge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
```
""",
    ),
    "windows": (
        "path of Windows|does not exist",
        """\
merge_method: linear
models:
  - {model: 'C:\\models\\a', parameters: {weight: 0.7}}
  - {model: A, parameters: {weight: 0.4}}
""",
    ),
    "filter without default": (
        "only for tensors that match a filter|no t is given",
        """\
merge_method: slerp
base_model: A
models: [{model: A}, {model: B}]
parameters:
  t:
    - {filter: self_attn, value: 0.2}
""",
    ),
    "same model twice": (
        "listed",
        """\
merge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: A, parameters: {weight: 0.4}}
""",
    ),
    "tokenizer base": (
        "tokenizer.json",
        """\
merge_method: linear
tokenizer_source: base
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    ),
    "evolve": (
        "mergekit-evolve|genome",
        """\
genome:
  models: [A, B]
  merge_method: ties
  base_model: BASE
  layer_granularity: 2
tasks: []
""",
    ),
    "moe": (
        "mergekit-moe",
        """\
base_model: A
gate_mode: hidden
experts:
  - {source_model: A, positive_prompts: [x]}
  - {source_model: B, positive_prompts: [y]}
""",
    ),
    "multi": (
        "mergekit-multi",
        """\
name: one
merge_method: linear
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
---
name: two
merge_method: linear
models:
  - {model: one, parameters: {weight: 1}}
  - {model: B, parameters: {weight: 1}}
""",
    ),
    "lora key": (
        "some/lora",
        """\
merge_method: linear
models:
  - {model: {model: A, lora: some/lora}, parameters: {weight: 1}}
  - {model: B, parameters: {weight: 1}}
""",
    ),
    "density 1.5": (
        "mergekit drops nothing from 1 on",
        """\
merge_method: ties
base_model: BASE
parameters: {density: 1.5, weight: 0.5}
models: [{model: A}, {model: B}]
""",
    ),
    "slices and models": (
        "exactly one",
        """\
merge_method: linear
models: [{model: A}]
slices: [{sources: [{model: A, layer_range: [0, 1]}]}]
""",
    ),
    "name of tokens": (
        "tokenizer.json",
        """\
merge_method: linear
tokenizer: {source: union, tokens: {}}
models:
  - {model: A, parameters: {weight: 0.7}}
  - {model: B, parameters: {weight: 0.4}}
""",
    ),
    "unknown method": (
        "tiez",
        """\
merge_method: tiez
base_model: BASE
models: [{model: A}, {model: B}]
""",
    ),
    "method upper": (
        "TIES",
        """\
merge_method: TIES
base_model: BASE
parameters: {weight: 1, density: 0.5}
models: [{model: A}, {model: B}]
""",
    ),
}


def with_paths(text: str, models: dict[str, str]) -> str:  # noqa: F811
    for word, key in {"BASE": "base", "A": "m1", "B": "m2"}.items():
        text = re.sub(rf"(?<![\w\\]){word}(?![\w\\])", lambda _, key=key: models[key], text)
    return text if "dtype" in text or "```" in text else f"{text}dtype: float32\n"


@pytest.mark.parametrize("name", SAME)
def test_an_unusual_recipe_gives_the_weights_of_mergekit(models: dict[str, str], tmp_path: Path, name: str) -> None:  # noqa: F811
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    text = with_paths(SAME[name], models)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), str(tmp_path / "theirs"), MergeOptions(quiet=True))
    theirs, corrected = load(tmp_path / "theirs"), fix(text).fixed_recipe
    for spelling, recipe in {"as it is": text, "corrected": corrected}.items():
        if recipe is None:
            continue
        merge(Request(recipe, tmp_path / spelling, tmp_path / f"journal {spelling}", threads=1), lambda *_: None)
        ours = load(tmp_path / spelling)
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
        odd = {key: float((~np.isclose(ours[key], theirs[key], rtol=2e-6, atol=4e-6)).mean()) for key in ours}
        assert max(odd.values()) <= 5e-4, spelling


@pytest.mark.parametrize("name", REFUSED)
def test_an_unusual_recipe_is_refused_by_its_reason(models: dict[str, str], tmp_path: Path, name: str) -> None:  # noqa: F811
    reason, text = REFUSED[name]
    with pytest.raises(MergingError, match=reason):
        merge(Request(with_paths(text, models), tmp_path / "out", tmp_path / "journal", threads=1), lambda *_: None)
