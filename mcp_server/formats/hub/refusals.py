"""What a hub refuses, in our errors. No message holds a token of the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mcp_server.errors import NotAllowed, NotFound, RunFailed
from mcp_server.system.redaction import redact, secrets_of


@contextmanager
def explained(name: str, revision: str) -> Iterator[None]:
    """Raises `NotFound` or `NotAllowed` for what a person must change, `RunFailed` for what may pass."""
    import httpx2 as httpx
    from huggingface_hub import errors as hub_errors

    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise NotAllowed(
            f"{name} is gated: its owner asks you to accept a licence first",
            f"accept it on the hub's page of {name}, then log in with `hf auth login` or set HF_TOKEN",
            hub_id=True,
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise NotFound(
            f"{name} has no revision {revision!r}", "leave it out for the newest, or name a branch, tag or commit"
        ) from error
    except hub_errors.RepositoryNotFoundError as error:
        raise NotFound(
            f"the hub knows no repository {name}, or it is private and this account may not see it",
            "check the spelling; for a private one log in with `hf auth login` or set HF_TOKEN",
        ) from error
    except hub_errors.OfflineModeIsEnabled as error:
        raise NotAllowed(
            f"{name} is not here and the network is switched off", "unset HF_HUB_OFFLINE, or ask the operator"
        ) from error
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 401:
            raise NotAllowed(
                "the hub does not accept the token", "log in again with `hf auth login`, or correct HF_TOKEN", hub_id=True
            ) from error
        if status == 403:
            raise NotAllowed(
                f"this account may not do that with {name}",
                "log in with a token that may (`hf auth login`, HF_TOKEN)",
                hub_id=True,
            ) from error
        if status == 429:
            raise RunFailed(
                f"the hub asks for fewer requests (429) while reading {name}", "wait some minutes, then do it again"
            ) from error
        raise RunFailed(f"the hub answered {status} for {name}", "try again later; what was downloaded is kept") from error
    except httpx.TransportError as error:
        raise RunFailed(
            f"the connection to the hub failed: {redact(str(error), secrets_of(os.environ))}",
            "check the network, then do it again: what was downloaded is kept",
            silent=True,
        ) from error


def may_pass(error: Exception) -> bool:
    """Whether asking again may help: the connection failed, or the hub is busy."""
    response = getattr(error, "response", None)
    return response is None or response.status_code == 429 or response.status_code >= 500


def pause_asked(error: Exception, otherwise: float) -> float:
    """Seconds that the hub asks to wait before the next try, or `otherwise`."""
    response = getattr(error, "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return float(asked) if asked.isdigit() else otherwise
