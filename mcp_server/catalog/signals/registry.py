"""The list of signals. A function joins it with `@signal`; its docstring is what people and messages are told about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from mcp_server.schemas.scenario import Scenario

Facts = dict[str, Any]
SIGNALS: Final[dict[str, Callable[[Scenario], Any]]] = {}


def signal(function: Callable[[Scenario], Any]) -> Callable[[Scenario], Any]:
    SIGNALS[function.__name__] = function
    return function
