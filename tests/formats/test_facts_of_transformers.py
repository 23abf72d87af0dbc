"""What is copied from transformers is what the installed one says: default ties, names in memory, tied weights, stacks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from mcp_server.formats.tied import KEEPS_FLAG, TIED, UNTIED

transformers = pytest.importorskip("transformers")
TABLE = Path(__file__).parents[2] / "mcp_server" / "formats" / "memory_names.json"
SCALED_BY_THE_FLAG = {"switch_transformers"}
"""Read in its forward pass: the flag decides whether outputs are scaled."""


def config(kind: str, **settings: Any) -> Any:
    """The default config of a model type, or None where it cannot be made."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return CONFIG_MAPPING[kind](**settings)
        except Exception:  # noqa: BLE001 - a config that needs settings has no default
            return None


@pytest.fixture(scope="module")
def kinds() -> list[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return list(CONFIG_MAPPING)


@pytest.mark.slow
def test_the_default_of_every_config_class_is_the_one_that_is_written_down(kinds: list[str]) -> None:
    flags = {kind: getattr(config(kind), "tie_word_embeddings", None) for kind in kinds}
    assert {kind for kind, flag in flags.items() if flag is True} == TIED
    assert {kind for kind, flag in flags.items() if flag is False} == UNTIED


@pytest.mark.slow
def test_the_classes_that_tie_whatever_the_flag_says_are_written_down(kinds: list[str]) -> None:
    made = {kind: config(kind, tie_word_embeddings=False) for kind in kinds}
    always = {kind for kind, found in made.items() if getattr(found, "tie_word_embeddings", None) is True}
    assert always | SCALED_BY_THE_FLAG == KEEPS_FLAG


def test_the_table_of_names_is_that_of_the_installed_transformers() -> None:
    assert json.loads(TABLE.read_text("utf-8"))["source"] == f"transformers {transformers.__version__}"


CLASSES = {
    "GPT2LMHeadModel": "gpt2",
    "Qwen3MoeForCausalLM": "qwen3_moe",
    "LlavaForConditionalGeneration": "llava",
    "BertForMaskedLM": "bert",
    "T5ForConditionalGeneration": "t5",
    "NemotronHForCausalLM": "nemotron_h",
    "GptOssForCausalLM": "gpt_oss",
    "InklingForCausalLM": "inkling_text",
}


@pytest.mark.slow
def test_every_class_of_the_table_says_what_it_said_when_it_was_copied() -> None:
    from scripts import memory_names

    held = json.loads(TABLE.read_text("utf-8"))
    differs = []
    for name, kind in memory_names.classes().items():
        found = memory_names.facts(name, kind)
        if spelled(found or {}) != written(held, name):
            differs.append(name)
    assert differs == []


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_each_family_says_what_it_said_when_it_was_copied(name: str) -> None:
    from scripts import memory_names

    assert spelled(memory_names.facts(name, CLASSES[name]) or {}) == written(json.loads(TABLE.read_text("utf-8")), name)


def spelled(found: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it."""
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def written(table: dict[str, Any], name: str) -> dict[str, Any]:
    entry = dict(table["classes"].get(name, {}))
    return entry | ({"rules": [table["rules"][number] for number in entry["rules"]]} if "rules" in entry else {})
