"""The largest inputs that are looked at: more is refused by name, so that no call of inspect, validate, estimate or recommend
costs more than about two seconds of a processor. Real use stays below each of them; a merge's own work has no such bound.
"""

from __future__ import annotations

from typing import Final

MAX_SOURCES: Final = 1_000
"""Models and adapters of one recipe or one inspection."""
MAX_SCENARIO_SOURCES: Final = 100
"""Sources of one scenario, every pair of which is compared by rules."""
MAX_STAGES: Final = 100
"""Documents of one recipe."""
MAX_GRADIENT: Final = 1_000
"""Values of one gradient: more than any model has layers."""
MAX_TENSORS: Final = 200_000
"""Tensors of all models that one call looks at. The largest mixtures of experts have 100,000."""
MAX_PLANNED: Final = 60_000
"""Tensors of all models up to which a merge is planned tensor by tensor before it starts; larger ones are when it does."""
MAX_CELLS: Final = 20_000
"""Cells of one table of a report."""
MAX_EVIDENCE_BYTES: Final = 8_000_000
"""Of a verification, an evaluation or a sweep that a report reads: theirs have kilobytes."""
MAX_HEADER_VALUES: Final = 1_000_000
"""Commas and opening brackets of one safetensors header: a tensor has nine, so about 110,000 tensors in one file, and parsing
them stays below a gigabyte. (The format bounds the length only.)"""
MAX_JSON_BYTES: Final = 64_000_000
MAX_JSON_VALUES: Final = 6_000_000
"""Of any other JSON file. A tokenizer with a vocabulary of 256,000 has about 2 million; each value parsed may take 60 bytes."""
