"""Whatever a recipe says, the linter answers: no crash, one verdict, and a correction that corrects itself no further."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mcp_server.errors import MergingError
from mcp_server.formats.recipe import keys
from mcp_server.steps.estimate import estimate
from mcp_server.steps.validate import fix, rules, validate
from mcp_server.steps.validate.methods import merge_methods, parameter_names
from tests.checkpoints import write_lora, write_model

GOOD = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parent / "recipes" / "good").glob("*.yml"))]
NAMES = sorted({*keys.STAGE, *keys.SLICE_INPUT, *keys.MOE, *keys.EXPERT, *keys.TOKENIZER, *parameter_names(), "x-own", "wieght"})
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(),
    st.sampled_from(["", "m", "./m", "m+l", "l", "a+b+c", "@", "+", "<x>", "1e-5"]),
    st.sampled_from([*merge_methods(), "moe", "tise", *keys.DTYPES, "bf16"]), st.text(max_size=5),
    st.lists(st.integers(-1, 5), max_size=3), st.just({}), st.just([{"filter": "mlp", "value": 1}]), st.just({"value": [1, "a"]}),
)  # fmt: skip
TREE = st.recursive(
    ODD,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=5)),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model `m` and an adapter `l`, and no Hugging Face cache."""
    place = tmp_path_factory.mktemp("fuzz")
    write_model(place / "m")
    write_lora(place / "l", "m")
    return place


@pytest.fixture(autouse=True)
def no_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(folder / "no-cache"))


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += spots(inner, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn) -> str:
    """A good recipe with up to three of its values exchanged, removed or renamed."""
    documents = copy.deepcopy(list(yaml.safe_load_all(draw(st.sampled_from(GOOD)))))
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([p for p in spots(documents) if p]))
        parent: Any = documents
        for part in path:
            parent = parent[part]
        match draw(st.sampled_from(["exchange", "remove", "rename"])):
            case "exchange":
                parent[last] = copy.deepcopy(draw(TREE))  # a shared value could be put into itself
            case "remove" if isinstance(parent, dict):
                del parent[last]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.sampled_from(NAMES))] = parent.pop(last)
    return yaml.safe_dump_all(documents, allow_unicode=True, sort_keys=False)


def check_answers(text: str, folder: Path) -> None:
    found = validate(text, folder=folder)
    assert found.ok is all(f.severity != "error" for f in found.findings)
    assert {f.code for f in found.findings} <= set(rules())
    assert all(f.message and f.fix for f in found.findings)
    corrected = fix(text, folder=folder)
    if corrected.fixed_recipe is not None:
        assert corrected.changes
        again = fix(corrected.fixed_recipe, folder=folder)
        assert again.fixed_recipe is None, again.changes
    if found.ok:
        assert corrected.ok
        try:
            cost = estimate(text, folder=folder)
        except MergingError:
            return
        assert all(engine.peak_anon_bytes == sum(engine.breakdown.values()) > 0 for engine in cost.engines.values())


@given(changed())
def test_a_recipe_with_values_exchanged(folder: Path, text: str) -> None:
    check_answers(text, folder)


@given(st.dictionaries(st.sampled_from(NAMES), TREE, max_size=6))
def test_any_table(folder: Path, document: dict[str, Any]) -> None:
    check_answers(yaml.safe_dump(document, allow_unicode=True), folder)


@given(st.text(alphabet=st.sampled_from("abc:-[]{}\n \t'\"&*!#%@`|>,?~0.1"), max_size=60))
def test_any_text(folder: Path, text: str) -> None:
    check_answers(text, folder)
