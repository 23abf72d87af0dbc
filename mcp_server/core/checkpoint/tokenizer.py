"""The files that a tokenizer is stored in, whichever library wrote it."""

from __future__ import annotations

from typing import Final

VOCABULARY_FILES: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
"""What says which text is which token."""

TOKENIZER_FILES: Final = (
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""All that travels with a model so that it reads and answers as before."""
