"""The real process on stdio: rubbish on the line, a client that vanishes, settings that are wrong."""

import subprocess
import sys
from typing import Any

import pytest

from mcp_server import jobs
from mcp_server.schemas.job import MergeRequest
from tests import tiny
from tests.jobs.watching import LONG
from tests.wire import HANDSHAKE, ROOT, Wire


def tools_list(number: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/list"}


def test_rubbish_on_the_line_does_not_stop_the_server(store, tmp_path):
    wire = Wire(store, tmp_path)
    wire.send(*HANDSHAKE)
    wire.send(b"{", b"null", b"[]", b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"1.0","id":5,"method":"tools/list"}', b"\xff\xfe\x00", b"")
    wire.send({"jsonrpc": "2.0", "id": 8, "method": "no/such"}, {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": 3})
    wire.send({"jsonrpc": "2.0", "id": 10, "method": "tools/call", "params": {"name": "inspect_models", "arguments": [1]}})
    huge = {"name": "inspect_models", "arguments": {"refs": ["x" * 8_000_000]}}
    wire.send({"jsonrpc": "2.0", "id": 11, "method": "tools/call", "params": huge})
    assert wire.answer_to(11)["result"]["isError"] is True
    wire.send(tools_list(12))
    assert "merge_status" in {tool["name"] for tool in wire.answer_to(12)["result"]["tools"]}
    assert wire.leave() == 0


def test_a_client_that_vanishes_in_mid_call_leaves_the_job_running(store, tmp_path):
    tiny.write_model(tmp_path / "model")
    go = tmp_path / "go"
    recipe = tiny.linear_recipe(tmp_path / "model", script=[{"do": "wait_for", "path": str(go)}])
    request = MergeRequest(recipe=recipe, out=str(tmp_path / "out"), engine="mergekit")
    job_id = jobs.start_merge(request, worker="tests.fake_worker").job_id
    wire = Wire(store, tmp_path)
    wire.send(*HANDSHAKE)
    call = {"name": "merge_status", "arguments": {"job_id": job_id, "wait_seconds": 50}}
    wire.send({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call})
    wire.leave()
    assert jobs.status(job_id).state in ("queued", "running")
    go.touch()
    assert jobs.wait(job_id, LONG).state == "succeeded"


def test_a_client_that_breaks_the_pipe_ends_the_server_without_a_traceback(store, tmp_path):
    wire = Wire(store, tmp_path)
    wire.send(*HANDSHAKE, tools_list(1))
    assert wire.answer_to(1)["result"]["tools"]
    assert wire.process.stdout is not None and wire.process.stderr is not None and wire.process.stdin is not None
    wire.process.stdout.close()
    wire.send(tools_list(2))
    wire.process.stdin.close()
    said = wire.process.stderr.read().decode()
    assert (wire.process.wait(30), said) == (0, "")
    wire.process.stderr.close()


@pytest.mark.parametrize("setting", [{"MODEL_MERGING_RAM_GIB": "a lot"}, {"MODEL_MERGING_HTTP_TOKEN": "short"}])
def test_a_setting_that_is_wrong_is_named_and_nothing_starts(store, tmp_path, setting):
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "MODEL_MERGING_HOME": str(store),
        "PYTHONPATH": str(ROOT),
        **setting,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "mcp_server.server"], env=variables, input=b"", capture_output=True, check=False, cwd=tmp_path
    )
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert next(iter(setting)) in ended.stderr.decode()
