"""What verify and evaluate need: above what was measured on the running example, and not far above."""

import pytest

from mcp_server.steps.estimate import evidence
from mcp_server.steps.estimate.work import OutputTensor, Work

MB = 1_000_000


def work(vocabulary: int, hidden: int, layers: int, keys: int, elements: int) -> Work:
    """A model of that size: an embedding, keys and values of every layer, and the rest in one tensor."""

    def tensor(name: str, rows: int, columns: int) -> OutputTensor:
        return OutputTensor(name, rows * columns, columns, rows * columns * 2, 2, (2, 2, 2))

    cached = [tensor(f"model.layers.{n}.self_attn.{p}_proj.weight", keys, hidden) for n in range(layers) for p in "kv"]
    known = [tensor("model.embed_tokens.weight", vocabulary, hidden), *cached]
    rest = OutputTensor("rest", elements - sum(t.elements for t in known), hidden, 0, 2, (2, 2, 2))
    return Work(
        method="linear", inputs=3, tensors=(*known, rest), deltas=2, adapters=0, adapter_bytes=0, factors=0, read_bytes=0,
        model_bytes=0, origins=(),
    )  # fmt: skip


EXAMPLE = work(vocabulary=49152, hidden=576, layers=30, keys=192, elements=134_515_008)


@pytest.mark.parametrize(("width", "measured_mb"), [(2, 1350), (4, 1349)], ids=["bfloat16", "float32"])
def test_an_evaluation_of_the_example_needs_a_little_less_than_estimated(
    monkeypatch: pytest.MonkeyPatch, width: int, measured_mb: int
) -> None:
    monkeypatch.setattr(evidence, "load_width", lambda: width)
    estimated = evidence.evaluate_cost(EXAMPLE, None)
    assert measured_mb * MB < estimated.peak_anon_bytes < 1.25 * measured_mb * MB
    assert sum(estimated.breakdown.values()) == estimated.peak_anon_bytes


def test_a_load_check_of_the_example_needs_a_little_less_than_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "load_width", lambda: 2)
    assert 741 * MB < evidence.verify_cost(EXAMPLE, None).peak_anon_bytes < 1.25 * 741 * MB


def test_a_large_vocabulary_needs_room_for_a_whole_window_of_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "load_width", lambda: 2)
    gemma = work(vocabulary=256_000, hidden=3072, layers=28, keys=1024, elements=8_540_000_000)
    assert evidence.evaluate_cost(gemma, None).breakdown["scores"] == 1024 * 256_000 * 13


def test_keys_and_values_count_where_they_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "load_width", lambda: 2)
    wide = work(vocabulary=32_000, hidden=4096, layers=32, keys=4096, elements=6_740_000_000)
    assert evidence.evaluate_cost(wide, None).breakdown["scores"] == 10600 * 32 * 2 * 4096 * 4


@pytest.mark.parametrize(("width", "measured"), [(2, 10.57), (4, 10.0)], ids=["bfloat16", "float32"])
def test_8_b_in_8_bits_needs_a_little_less_than_estimated(monkeypatch: pytest.MonkeyPatch, width: int, measured: float) -> None:
    """benchmarks/evaluate/results.md, the whole road at 8 B: GiB of anonymous memory."""
    monkeypatch.setattr(evidence, "load_width", lambda: width)
    llama = work(vocabulary=128_256, hidden=4096, layers=32, keys=1024, elements=8_030_000_000)
    assert measured < evidence.evaluate_cost(llama, 12 * 2**30).peak_anon_bytes / 2**30 < 1.1 * measured
    assert 8.03 < evidence.verify_cost(llama, 12 * 2**30).peak_anon_bytes / 2**30 < 8.1


@pytest.mark.parametrize(("gib", "held"), [(32, {}), (12, {"weights": "int8"}), (8, {"weights": "int4"})])
def test_where_16_bits_do_not_fit_the_estimate_is_that_of_fewer(
    monkeypatch: pytest.MonkeyPatch, gib: int, held: dict[str, str]
) -> None:
    monkeypatch.setattr(evidence, "load_width", lambda: 2)
    llama = work(vocabulary=128_256, hidden=4096, layers=32, keys=1024, elements=8_030_000_000)
    found = evidence.evaluate_cost(llama, gib * 2**30)
    assert (found.settings, found.fits) == (held, True)
    assert evidence.evaluate_cost(llama, 4 * 2**30).fits is False
