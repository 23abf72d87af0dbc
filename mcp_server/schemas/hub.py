"""What was fetched from a hub, made in its place, or published."""

from __future__ import annotations

from pydantic import Field

from mcp_server.schemas.base import Frozen


class Fetched(Frozen):
    """One repository in the local Hugging Face cache."""

    ref: str
    revision: str = Field(description="the commit, which a later fetch of the same branch may no longer be")
    folder: str
    kind: str = Field(description="model, adapter or gguf")
    files: int
    bytes: int = Field(description="of all files, those included that were here already")
    downloaded_bytes: int
    base: Fetched | None = Field(default=None, description="the base of an adapter")
    left_out: list[str] = Field(default_factory=list, description="files that no merge reads: other weight formats, originals")
    notes: list[str] = Field(default_factory=list)


class Published(Frozen):
    """What was uploaded, in one commit."""

    repo: str
    url: str
    commit: str
    private: bool
    files: list[str]
    bytes: int
    licence: str | None
    base_models: list[str] = Field(description="hub ids of the sources that have one")
    notes: list[str] = Field(default_factory=list)


class MadeBase(Frozen):
    """Where the demo's base is, and whether this call built it or found it."""

    path: str
    built: bool
    gguf_sha256: str
