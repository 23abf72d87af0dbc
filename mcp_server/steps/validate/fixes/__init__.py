"""Corrections of `--fix`: small functions that change the raw document and say what they changed.

A correction is made only where the recipe, the catalogue or the checkpoints decide what was meant; everything else stays a
finding. None chooses a method, a source, a weight or a number: what has no value gets none, and a value outside its range is
never moved to the range's end.
"""

from __future__ import annotations

from typing import Final

from mcp_server.steps.validate.fixes import bases, checkpoints, parameters, words  # noqa: F401 - they register
from mcp_server.steps.validate.fixes.registry import FIXES

ORDER: Final = (
    "MM110", "MM103", "MM104", "MM107", "MM111", "MM112", "MM113", "MM205", "MM207", "MM401", "MM201", "MM305", "MM316", "MM601",
)  # fmt: skip
"""Each function sees the document as the ones before left it: a name is right before its value is."""


CORRECTIONS: Final = [
    (function, [code for code in ORDER if FIXES[code] is function])
    for function in dict.fromkeys(map(FIXES.get, ORDER))
    if function
]
"""The functions in that order, each with its codes."""
