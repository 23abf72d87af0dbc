"""Products of few tokens against torch's own, for every number of tokens around the ones that are treated apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mcp_server.workers.evaluating.few_tokens import MOST_TOKENS, FewTokensLinear, use_for_few_tokens
from mcp_server.workers.evaluating.quantised import Codes

COUNTS = (1, 2, 8, 9, 10, 12, 15, 16, 17, MOST_TOKENS, MOST_TOKENS + 1)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("shape", [(), (3,)], ids=["tokens", "replies of three tokens"])
def test_the_product_is_that_of_a_linear_layer_and_laid_out_like_it(count: int, shape: tuple[int, ...]) -> None:
    plain = torch.nn.Linear(24, 40, bias=False)
    tokens = torch.randn(count, *shape, 24)
    expected = plain(tokens)
    use_for_few_tokens(plain)
    assert type(plain) is FewTokensLinear
    found = plain(tokens)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_product_of_codes_is_that_of_the_numbers_they_stand_for(count: int, bits: int) -> None:
    codes = Codes(50, 64, bits)
    codes.take(0, np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32))
    tokens = torch.randn(count, 1, 64)
    found = codes.product(tokens)
    torch.testing.assert_close(found, tokens @ codes.numbers(torch.arange(50), torch.float32).T, rtol=1e-4, atol=1e-4)
    assert found.is_contiguous()
