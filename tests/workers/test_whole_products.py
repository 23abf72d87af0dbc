"""Products of 8-bit codes in whole numbers: the exact product of what a token was rounded to, finer than bfloat16."""

import numpy as np
import pytest

from mcp_server.system import machine

torch = pytest.importorskip("torch")
whole_products = pytest.importorskip("mcp_server.workers.evaluating.whole_products")
quantised = pytest.importorskip("mcp_server.workers.evaluating.quantised")


@pytest.mark.parametrize("tokens", [1, 24, 64])
def test_they_are_those_of_float64_within_15_bits_of_a_token(tokens: int) -> None:
    rng = np.random.default_rng(tokens)
    codes = rng.integers(-127, 128, (96, 640), dtype=np.int8)
    scales = rng.uniform(1e-3, 2e-2, (96, 1)).astype(np.float32)
    x = rng.normal(size=(tokens, 640)).astype(np.float32) * 10.0 ** rng.integers(-6, 6, (tokens, 1))
    x[-1] = 0
    found = whole_products.product(torch.from_numpy(codes), torch.from_numpy(scales), torch.from_numpy(x.astype(np.float32)))
    weights = codes.astype(np.float64) * scales
    right = x.astype(np.float64) @ weights.T
    # each number of a token is off by half of 1/16256 of the token's largest at most
    bound = np.abs(x).max(1, keepdims=True) / 16256 / 2 * np.abs(weights).sum(1) * 1.001 + 1e-30
    assert (np.abs(found.numpy() - right) <= bound + 1e-6 * np.abs(right)).all()
    assert not found[-1].any()


def test_rows_beyond_one_block_are_computed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_products, "ROWS_AT_ONCE", 32)
    codes = torch.arange(-120, 120, dtype=torch.int8).reshape(80, 3)
    scales = torch.full((80, 1), 0.5)
    found = whole_products.product(codes, scales, torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.bfloat16))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found[0], (codes[:, 0].float() * 0.5).bfloat16())


@pytest.mark.parametrize("tiles", [True, False])
@pytest.mark.parametrize("tokens", [1, 17, 64, 65])
def test_products_in_bfloat16_are_those_of_the_numbers_on_every_processor(
    tokens: int, tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantised, "has_tiles_for_bytes", lambda: tiles)
    codes = quantised.Codes(50, 64, 8)
    codes.take(0, np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32))
    x = torch.randn(tokens, 1, 64).bfloat16()
    found = codes.product(x)
    right = x.double() @ codes.numbers(torch.arange(50), torch.float64).T
    assert found.shape == right.shape and found.dtype == torch.bfloat16 and found.is_contiguous()
    assert (found - right).abs().max() <= 0.02 * right.abs().max()


def test_only_a_processor_with_such_tiles_is_asked_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for flags, tiles, narrow in (("fpu avx2", False, False), ("avx512_bf16 amx_int8", True, True), ("amx_bf16", False, True)):
        monkeypatch.setattr(machine, "_instructions", lambda flags=flags: frozenset(flags.split()))
        assert (machine.has_tiles_for_bytes(), machine.multiplies_bfloat16()) == (tiles, narrow)
