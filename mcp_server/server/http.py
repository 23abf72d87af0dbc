"""The same server over streamable HTTP, for one machine or for a machine that the operator guards with a token.

It listens on loopback. Another address is refused until the operator sets `http_token`; then every request must carry it.
Host and Origin are checked always, so that a web page cannot reach the server through the user's browser (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from typing import Any, Final

import anyio
from mcp.server.transport_security import TransportSecuritySettings
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mcp_server.errors import NotAllowed
from mcp_server.server.build import MergingServer
from mcp_server.system.settings import Settings

LOOPBACK_NAMES: Final = ["127.0.0.1", "localhost", "[::1]"]
MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
REQUEST_SECONDS: Final = 30.0
"""For the headers of a request, and again for its body."""


def http_app(server: MergingServer, settings: Settings, port: int) -> ASGIApp:
    """The ASGI application. Raises `NotAllowed` for an address that others can reach when no token is set."""
    if not is_loopback(settings.http_host) and settings.http_token is None:
        raise NotAllowed(
            f"the HTTP address {settings.http_host} can be reached by others and no token is set",
            "set MODEL_MERGING_HTTP_TOKEN (16 characters or more), or serve on 127.0.0.1",
        )
    app: ASGIApp = server.streamable_http_app(
        host=settings.http_host, transport_security=security(settings, port), max_request_body_size=MAX_REQUEST_BYTES
    )
    app = BodyDeadline(app)
    return app if settings.http_token is None else TokenGate(app, settings.http_token.get_secret_value())


def serve_http(server: MergingServer, settings: Settings, port: int) -> None:
    """Serve until stopped."""
    import uvicorn

    uvicorn.run(
        http_app(server, settings, port), host=settings.http_host, port=port, log_level="warning", http=impatient_protocol()
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def security(settings: Settings, port: int) -> TransportSecuritySettings:
    """Which Host and Origin headers are accepted: loopback's, the configured address's, and the operator's own."""
    names = [*LOOPBACK_NAMES] if is_loopback(settings.http_host) else [settings.http_host]
    hosts = [f"{name}:{port}" for name in names] + settings.http_allowed_hosts
    origins = [f"http://{name}:{port}" for name in names] + settings.http_allowed_origins
    return TransportSecuritySettings(enable_dns_rebinding_protection=True, allowed_hosts=hosts, allowed_origins=origins)


class TokenGate:
    """Answers 401 to every HTTP request without the token, before anything of it is read."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self.expected = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._carries_token(scope):
            headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"error":"this server needs its bearer token"}'})
            return
        await self.app(scope, receive, send)

    def _carries_token(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(b" "), self.expected)


class BodyDeadline:
    """Ends a request whose body has not come within `seconds`: a client that stops in mid-sentence holds nothing for ever."""

    def __init__(self, app: ASGIApp, seconds: float = REQUEST_SECONDS) -> None:
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        end = anyio.current_time() + self.seconds
        whole = False

        async def within() -> Message:
            nonlocal whole
            if whole:
                return await receive()  # waits for the client to leave
            with anyio.move_on_after(max(0.0, end - anyio.current_time())):
                message = await receive()
                whole = message["type"] != "http.request" or not message.get("more_body", False)
                return message
            whole = True
            return {"type": "http.disconnect"}

        await self.app(scope, within, send)


def impatient_protocol(seconds: float = REQUEST_SECONDS) -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 protocol, but a connection whose request line and headers are not complete in time is closed."""
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._stop_waiting()
            elif self._waiting is None:
                self._waiting = self.loop.call_later(seconds, self._too_slow)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _too_slow(self) -> None:
            self._waiting = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.close()

    return Impatient
