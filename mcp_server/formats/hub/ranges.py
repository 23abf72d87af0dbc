"""Parts of files on a hub by range request. What a cut connection has brought is kept; a server that sends more is not heard."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mcp_server.formats.hub.copies import Listing
from mcp_server.formats.hub.refusals import may_pass, pause_asked

REQUESTS: Final = 8
"""At a time."""
TRIES: Final = 3
TIMEOUT_S: Final = 10.0
MOST_WAIT_S: Final = 5.0


def endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def read_ranges(listing: Listing, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """(file, begin, count) → its bytes, several requests at a time. Raises what `explained` explains."""
    with ThreadPoolExecutor(REQUESTS) as pool:
        return list(pool.map(lambda one: read_range(listing, *one), wanted))


def read_range(listing: Listing, file: str, begin: int, count: int) -> bytes:
    """`count` bytes of a file from `begin`, at the commit of the listing."""
    import httpx2 as httpx
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url = hf_hub_url(listing.hub_id, file, revision=listing.commit, endpoint=endpoint())
    found = bytearray()
    for attempt in range(1, TRIES + 1):
        if len(found) >= count:
            break
        try:
            _append(found, url, begin, count)
        except (httpx.TransportError, HfHubHTTPError) as error:
            if attempt == TRIES or not may_pass(error):
                raise
            time.sleep(min(pause_asked(error, 0.25 * 2**attempt), MOST_WAIT_S))
    if len(found) < count:
        raise httpx.ReadError(f"{url} ended after {begin + len(found)} bytes")
    return bytes(found)


def _append(found: bytearray, url: str, begin: int, count: int) -> None:
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    first = begin + len(found)
    headers = build_hf_headers() | {"Range": f"bytes={first}-{begin + count - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S) as response:
        if response.status_code >= 400:
            response.read()
            hf_raise_for_status(response)
        skipped = 0 if response.status_code == 206 else first  # the whole file comes where ranges are ignored
        for chunk in response.iter_bytes():
            rest = chunk[skipped:]
            skipped -= len(chunk) - len(rest)
            found += rest[: count - len(found)]
            if len(found) >= count:
                return
