"""Hub ids by tool: judged from their headers where the operator lets the network be used, and only there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcp_server.formats.hub import headers
from tests import tiny
from tests.hub import COMMIT, Hub, serving
from tests.server.conftest import Call, data_of, text_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def hub(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(headers, "_known", headers._Known())
    hub = Hub({})
    for name in ("base", "code"):
        hub.add(f"acme/{name}", workspace / name)
    with serving(hub):
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


async def test_a_hub_id_is_judged_beside_a_folder(hub: Hub, workspace: Path, call: Call) -> None:
    found = data_of(await call("inspect_models", refs=["acme/base", "./code"]))
    assert (found["compatible"], [s["revision"] for s in found["sources"]]) == (True, [COMMIT, None])
    checked = data_of(await call("validate_config", recipe=tiny.linear_recipe("acme/base", "acme/code")))
    assert (checked["ok"], checked["level"]) == (True, "checkpoints")
    cost = data_of(await call("estimate_ram", recipe=tiny.linear_recipe("acme/base", "acme/code")))
    assert cost["notes"] == ["sizes from headers on the hub"]


async def test_the_operator_switches_it_off(hub: Hub, call: Call, store: Path) -> None:
    store.mkdir(exist_ok=True)
    (store / "settings.toml").write_text("offline = true\n", encoding="utf-8")
    refused = await call("inspect_models", refs=["acme/base"])
    assert refused.is_error
    assert "not in the local Hugging Face cache" in text_of(refused)
    assert hub.requests == []
