from __future__ import annotations

import pytest


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors still make several blocks."""
    monkeypatch.setattr("mcp_server.engine.blocks.BLOCK_ELEMENTS", 50)
