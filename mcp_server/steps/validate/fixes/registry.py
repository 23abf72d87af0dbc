"""Which function corrects which code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from mcp_server.steps.validate.context import Context

Fix = Callable[[Context], Iterator[str]]
FIXES: Final[dict[str, Fix]] = {}


def fixes(*codes: str) -> Callable[[Fix], Fix]:
    """Register the function that corrects these codes."""

    def register(function: Fix) -> Fix:
        for code in codes:
            if code in FIXES:
                raise ValueError(f"{code} is corrected twice")
            FIXES[code] = function
        return function

    return register
