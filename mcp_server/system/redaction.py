"""Keep secrets out of what is written down: logs, events, errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_TOKEN: Final = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|xox[abpr]-[A-Za-z0-9-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}|eyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*)"
    r"|(?P<kept>(?i:\b(?:bearer|basic)\s+)(?=[A-Za-z0-9._~+/=-]{16,})"
    r"|(?i:[?&](?:token|access_token|api_?key|password|sig|signature|x-amz-(?:signature|credential|security-token))=)"
    r"|\b[A-Za-z][A-Za-z0-9+.-]{1,20}://(?=[^/\s@\"'\\]{0,200}:[^/\s@\"'\\]{1,200}@))[^&\s\"'@\\]+"
)
"""Tokens by their forms; what follows `Bearer`, a query's secret (a presigned address), the user and password of an address."""
_SECRET_NAME: Final = re.compile(r"(TOKEN|SECRET|PASSWORD|API_?KEY|CREDENTIAL)", re.IGNORECASE)


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """Values of variables whose names say that they are secret (short ones are left: they would blank ordinary words)."""
    return sorted({v for k, v in environment.items() if _SECRET_NAME.search(k) and len(v) >= 8}, key=len, reverse=True)


def redact(text: str, known: list[str]) -> str:
    for value in known:
        text = text.replace(value, "[secret]")
    return _TOKEN.sub(lambda m: f"{m['kept'] or ''}[secret]", text)


def redact_all(value: Any, known: list[str]) -> Any:
    """The same JSON value with every text in it redacted."""
    if isinstance(value, str):
        return redact(value, known)
    if isinstance(value, dict):
        return {key: redact_all(item, known) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact_all(item, known) for item in value]
    return value
