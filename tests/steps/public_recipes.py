"""Recipes in the forms that people publish: every method × form, and the mistakes that people make in them.

A recipe is a plain document and its YAML text; a mistake changes a sound recipe, and either means that recipe still or means
something that only its author knows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from mcp_server.steps.validate.methods import merge_methods

Document = dict[str, Any]
LAYERS = 4


@dataclass(frozen=True)
class Case:
    """`meant` is the document that the text stands for, or None where nobody but the author can say."""

    name: str
    text: str
    meant: Document | None


def sound() -> Iterator[Case]:
    """Every method in every form that suits it."""
    for method in merge_methods().values():
        for form in FORMS:
            if (document := form(method.id)) is not None:
                yield Case(f"{method.id} {form.__name__}", as_text(document), document)


def mistaken() -> Iterator[Case]:
    """Sound recipes with one mistake each."""
    for method in ("ties", "dare_ties", "task_arithmetic", "linear", "slerp", "della", "model_stock"):
        document = listed(method)
        assert document is not None
        for mistake, certain in MISTAKES.items():
            if (wrong := mistake(copy.deepcopy(document))) is not None:
                yield Case(f"{method} {mistake.__name__}", as_text(wrong), document if certain else None)


def as_text(document: Document) -> str:
    return "# found on the hub\n" + yaml.safe_dump(document, sort_keys=False)


def _plain(method: str, count: int | None = None) -> Document:
    strategy = merge_methods()[method]
    counts_base = strategy.inputs.base == "one_of_the_sources"
    number = count or (1 if method == "passthrough" else 2)
    models = [{"model": f"org/{name}", "parameters": {}} for name in "abc"[:number]]
    if any(p.name == "weight" and p.required for p in strategy.parameters):
        for share, model in zip((0.6, 0.3, 0.1), models, strict=False):
            model["parameters"] = {"weight": share}
    document: Document = {"merge_method": method, "models": models, "parameters": {}, "dtype": "bfloat16"}
    if strategy.inputs.base != "ignored":
        document["base_model"] = "org/a" if counts_base else "org/base"
    if any(p.name == "t" for p in strategy.parameters):
        document["parameters"]["t"] = 0.25
    return document


def listed(method: str) -> Document | None:
    return _plain(method)


def base_listed_too(method: str) -> Document | None:
    document = _plain(method)
    if document.get("base_model") != "org/base":
        return None
    document["models"].insert(0, {"model": "org/base"})
    return document


def one_setting_for_all(method: str) -> Document | None:
    document = _plain(method)
    if merge_methods()[method].parameter("weight") is None:
        return None
    for model in document["models"]:
        del model["parameters"]
    document["parameters"]["weight"] = 0.5
    return document


def gradients(method: str) -> Document | None:
    document = _plain(method)
    names = [p.name for p in merge_methods()[method].parameters if p.name in ("weight", "t", "density", "scale")]
    if not names:
        return None
    for name in names:
        document["parameters"][name] = [0.2, 0.5, 0.8, 0.6]
        for model in document["models"]:
            model["parameters"].pop(name, None)
    if "epsilon" in [p.name for p in merge_methods()[method].parameters]:
        document["parameters"]["epsilon"] = 0.05
    return document


def filters(method: str) -> Document | None:
    document = _plain(method)
    name = next((p.name for p in merge_methods()[method].parameters if p.name in ("t", "weight", "scale")), None)
    if name is None:
        return None
    document["parameters"][name] = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": 0.4},
        {"value": 0.5},
    ]
    for model in document["models"]:
        model["parameters"].pop(name, None)
    return document


def sliced(method: str) -> Document | None:
    document = _plain(method)
    models = document.pop("models")
    if document.get("base_model") == "org/base":
        models.append({"model": "org/base"})
    parts = [[0, 2], [2, 4]]
    document["slices"] = [{"sources": [m | {"layer_range": part} for m in copy.deepcopy(models)]} for part in parts]
    return document


def numbers_as_text(method: str) -> Document | None:
    document = _plain(method)
    for model in document["models"]:
        model["parameters"] = {name: str(value) for name, value in model["parameters"].items()}
    for p in merge_methods()[method].parameters:
        if p.name in ("eps", "epsilon", "tol") and p.scope == "shared":
            document["parameters"][p.name] = "1e-6"
    return document


def truth_as_numbers(method: str) -> Document | None:
    document = _plain(method)
    flags = [p for p in merge_methods()[method].parameters if p.type == "bool" and p.name != "nuslerp_row_wise"]
    if not flags:
        return None
    for number, flag in enumerate(flags):
        document["parameters"][flag.name] = (1.0, 0.0, 1, "true")[number % 4]
    return document


def defaults_written_out(method: str) -> Document | None:
    document = _plain(method)
    for p in merge_methods()[method].parameters:
        if p.default is not None:
            document["parameters"].setdefault(p.name, p.default)
    return document


FORMS: tuple[Callable[[str], Document | None], ...] = (
    listed, base_listed_too, one_setting_for_all, gradients, filters, sliced, numbers_as_text, truth_as_numbers,
    defaults_written_out,
)  # fmt: skip


def case_of_the_method(document: Document) -> Document | None:
    return document | {"merge_method": document["merge_method"].upper()}


def method_with_dashes(document: Document) -> Document | None:
    name = document["merge_method"]
    return document | {"merge_method": name.replace("_", "-")} if "_" in name else None


def short_dtype(document: Document) -> Document | None:
    return document | {"dtype": "bf16"}


def dtype_among_parameters(document: Document) -> Document | None:
    document["parameters"]["dtype"] = document.pop("dtype")
    return document


def misspelt_key(document: Document) -> Document | None:
    document["merge_methd"] = document.pop("merge_method")
    return document


def weight_beside_parameters(document: Document) -> Document | None:
    if "weight" not in document["models"][0]["parameters"]:
        return None
    for model in document["models"]:
        model["weight"] = model.pop("parameters")["weight"]
    return document


def misspelt_weight(document: Document) -> Document | None:
    if "weight" not in document["models"][0]["parameters"]:
        return None
    for model in document["models"]:
        model["parameters"] = {"wieght": model["parameters"]["weight"]}
    return document


def t_in_per_cent(document: Document) -> Document | None:
    if "t" not in document["parameters"]:
        return None
    document["parameters"]["t"] = 25
    return document


def another_method(document: Document) -> Document | None:
    return document | {"merge_method": "lrp"}


def method_of_a_newer_version(document: Document) -> Document | None:
    return document | {"merge_method": document["merge_method"] + "2"}


def no_weights(document: Document) -> Document | None:
    for model in document["models"]:
        model.pop("parameters", None)
    return document


def no_base(document: Document) -> Document | None:
    return {key: value for key, value in document.items() if key != "base_model"}


def third_model(document: Document) -> Document | None:
    document["models"].append({"model": "org/third", "parameters": dict(document["models"][0].get("parameters", {}))})
    return document


def density_of_two(document: Document) -> Document | None:
    document["parameters"]["density"] = 2.5
    return document


def key_of_another_program(document: Document) -> Document | None:
    return document | {"quantize": "q4", "name_of_run": "x"}


def slices_without_base(document: Document) -> Document | None:
    models = document.pop("models")
    document["slices"] = [{"sources": [m | {"layer_range": [0, 4]} for m in models]}]
    return document


MISTAKES: dict[Callable[[Document], Document | None], bool] = {
    case_of_the_method: True, method_with_dashes: True, short_dtype: True, dtype_among_parameters: True, misspelt_key: True,
    weight_beside_parameters: True, misspelt_weight: True, t_in_per_cent: True,
    another_method: False, method_of_a_newer_version: False, no_weights: False, no_base: False, third_model: False,
    density_of_two: False, key_of_another_program: False, slices_without_base: False,
}  # fmt: skip
"""Mistake → whether it can only mean the sound recipe."""
