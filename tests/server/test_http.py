"""HTTP stays on loopback unless a token is set; then the token is needed. Host and Origin are checked always."""

import http.client
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import uvicorn
from mcp import Client
from pydantic import SecretStr

from mcp_server.errors import NotAllowed
from mcp_server.server import build_server
from mcp_server.server.http import BodyDeadline, TokenGate, http_app, impatient_protocol, is_loopback, security
from mcp_server.system.settings import Settings

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}},
}
TOKEN = "a-token-of-enough-length"


def test_an_open_address_without_a_token_is_refused(store):
    with pytest.raises(NotAllowed, match=r"0\.0\.0\.0") as refused:
        http_app(build_server(), Settings(http_host="0.0.0.0"), 8765)
    assert "MODEL_MERGING_HTTP_TOKEN" in refused.value.next_step


def test_an_open_address_with_a_token_is_served_through_the_gate(store):
    settings = Settings(http_host="0.0.0.0", http_token=SecretStr(TOKEN))
    assert isinstance(http_app(build_server(), settings, 8765), TokenGate)


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
                                                ("192.168.1.4", False), ("merge.example.org", False)])  # fmt: skip
def test_loopback_is_recognised(host, loopback):
    assert is_loopback(host) is loopback


def test_the_operators_own_hosts_and_origins_are_added(store):
    settings = Settings(http_allowed_hosts=["merge.example.org"], http_allowed_origins=["https://merge.example.org"])
    found = security(settings, 8765)
    assert found.enable_dns_rebinding_protection
    assert found.allowed_hosts == ["127.0.0.1:8765", "localhost:8765", "[::1]:8765", "merge.example.org"]
    assert found.allowed_origins[-1] == "https://merge.example.org"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real server process with a token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    home = tmp_path_factory.mktemp("http")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "MODEL_MERGING_HOME": str(home), "MODEL_MERGING_HTTP_TOKEN": TOKEN}
    command = [sys.executable, "-m", "mcp_server.server", "--http", str(number)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE) as server:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and server.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", number)) == 0:
                    break
            time.sleep(0.05)
        yield number
        server.terminate()
        server.wait(10)


def post(port: int, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    connection.request("POST", "/mcp", json.dumps(INITIALIZE), {name.replace("_", "-"): value for name, value in sent.items()})
    answer = connection.getresponse()
    body = answer.read(4_000).decode()
    connection.close()
    return answer.status, body


def test_with_the_token_the_server_answers(port):
    status, body = post(port, Authorization=f"Bearer {TOKEN}")
    assert (status, '"name":"model-merging"' in body) == (200, True)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer"])
def test_the_schemes_name_is_read_in_any_case(port, scheme):
    assert post(port, Authorization=f"{scheme} {TOKEN}")[0] == 200


@pytest.mark.anyio
async def test_a_body_that_does_not_come_ends_the_request():
    seen = []

    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            seen.append(message["body"])
        seen.append(message["type"])

    messages = [{"type": "http.request", "body": b"half", "more_body": True}]

    async def receive():
        if not messages:
            await anyio.sleep_forever()
        return messages.pop(0)

    with anyio.fail_after(5):
        await BodyDeadline(app, seconds=0.05)({"type": "http"}, receive, None)
    assert seen == [b"half", "http.disconnect"]


@pytest.mark.anyio
@pytest.mark.parametrize("sent", [b"", b"POST /mcp HT", b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
async def test_a_connection_whose_headers_do_not_come_is_closed(sent):
    config = uvicorn.Config(lambda *_: None, http=impatient_protocol(0.1), log_level="critical", lifespan="off", port=0)
    server = uvicorn.Server(config)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve)
            while not server.started:
                await anyio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(sent)
                with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                    await stream.receive()
            server.should_exit = True


@pytest.mark.parametrize("authorization", ["", "Bearer wrong-token-of-enough-length", TOKEN, f"Basic {TOKEN}"])
def test_without_the_right_token_nothing_is_answered(port, authorization):
    assert post(port, **({"Authorization": authorization} if authorization else {}))[0] == 401


def test_a_foreign_host_is_refused(port):
    assert post(port, Authorization=f"Bearer {TOKEN}", Host="evil.example.org")[0] == 421


def test_a_foreign_origin_is_refused(port):
    assert post(port, Authorization=f"Bearer {TOKEN}", Origin="https://evil.example.org")[0] == 403


def test_a_body_over_the_limit_is_refused_and_the_server_stays_up(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Authorization": f"Bearer {TOKEN}"}
    headers["Content-Length"] = str(64 * 1024 * 1024)
    connection.request("POST", "/mcp", b"{", headers)
    assert connection.getresponse().status == 413
    connection.close()
    assert post(port, Authorization=f"Bearer {TOKEN}")[0] == 200


@pytest.mark.anyio
async def test_the_sdks_own_http_client_is_refused_without_the_token(port):
    with pytest.raises(BaseException):  # noqa: B017 - the SDK raises a group of transport errors
        async with Client(f"http://127.0.0.1:{port}/mcp") as client:
            await client.list_tools()


@pytest.fixture
def anyio_backend():
    return "asyncio"
