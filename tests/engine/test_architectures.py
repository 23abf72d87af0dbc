"""A sample of `make matrix`: tiny models of transformers, merged and held against float64 and the loader."""

from __future__ import annotations

import pytest

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
