"""A sample of `make matrix`: tiny models of transformers, merged and held against float64 and the loader."""

from __future__ import annotations

import pytest

from benchmarks.matrix import adapters
from benchmarks.matrix.run import one_class


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param("gemma2", "Gemma2ForCausalLM", marks=pytest.mark.slow),
        pytest.param("mamba", "MambaForCausalLM", marks=pytest.mark.slow),
        ("llava", "LlavaForConditionalGeneration"),
        ("t5", "T5ForConditionalGeneration"),
    ],
)
def test_a_tiny_model_of_the_class_is_merged_right(kind: str, name: str) -> None:
    assert [(row["form"], row["result"], row["says"]) for row in one_class(kind, name)] == [
        ("float32", "right", ""),
        ("bfloat16, shards", "right", ""),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        pytest.param(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            {"default": "right", "experts": "right", "two": "right"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "bert", "BertLMHeadModel", {"default": "right", "embeddings": "runs", "saved": "right"}, marks=pytest.mark.slow
        ),
        ("t5", "T5ForConditionalGeneration", {"embeddings": "runs", "saved": "right"}),
        ("nemotron_h", "NemotronHForCausalLM", {"experts": "right"}),
        pytest.param("ibert", "IBertForMaskedLM", {"embeddings": "runs"}, marks=pytest.mark.slow),
        ("mobilebert", "MobileBertForMaskedLM", {"all-linear": "right", "embeddings": "merges"}),
        pytest.param(
            "switch_transformers", "SwitchTransformersForConditionalGeneration", {"saved": "right"}, marks=pytest.mark.slow
        ),
        ("videomae", "VideoMAEModel", {"ia3": "right"}),  # its biases are stored under names of their own
        pytest.param("mm-grounding-dino", "MMGroundingDinoModel", {"default": "right"}, marks=pytest.mark.slow),  # a scalar bias
        pytest.param("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", {"experts": "right"}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_adapters_of_a_tiny_model_of_the_class_are_merged_right(kind: str, name: str, expected: dict[str, str]) -> None:
    """`runs`: PEFT's merge and PEFT running differ, and the recipe decides which of the two it is."""
    rows = adapters.one_class(kind, name, list(expected))
    assert {row["kind"]: row["result"] for row in rows} == expected, rows


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_the_base_stores_in_another_arrangement_is_refused_by_that_reason() -> None:
    [row] = adapters.one_class("kimi_k25", "Kimi_K25ForConditionalGeneration", ["all-linear"])
    assert row["result"] == "refused"
    assert row["says"].endswith("is stored by the base in another arrangement (PermuteForRope)")
