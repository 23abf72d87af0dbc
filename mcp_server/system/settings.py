"""What the operator decides, by `MODEL_MERGING_…` variables or `settings.toml` in the store, never by an agent's arguments.

MCP clients pass on few environment variables, so everything here can stand in the file too; the environment wins.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from mcp_server.errors import BadInput
from mcp_server.system import paths
from mcp_server.system.remembered import Remembered

SETTINGS_FILE: Final = "settings.toml"
PREFIX: Final = "MODEL_MERGING_"


class Settings(BaseSettings):
    """One immutable reading of the operator's settings."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    roots: Annotated[list[Path] | None, NoDecode] = Field(
        default=None,
        description="folders under which models are read and written; None: unrestricted for a person's own commands, and the "
        "working folder, the store and the Hugging Face cache for an agent. In the environment: separated by ':'",
    )
    offline: bool = Field(default=False, description="never contact a hub; HF_HUB_OFFLINE=1 does the same")
    trust_remote_code: bool = Field(default=False, description="let workers run Python code that comes with a model")
    ram_gib: float | None = Field(default=None, gt=0, description="memory budget of all running jobs; None: the machine's")
    max_running: int = Field(default=1, ge=1, le=64, description="merges and sweeps that run at once; the others queue")
    hang_timeout_s: float = Field(default=1800, gt=0, description="a worker that is silent for longer is ended")
    log_bytes: int = Field(default=4_000_000, ge=1000, description="a job keeps at most twice this much log")
    mergekit_bin: Path | None = Field(default=None, description="folder of mergekit's commands, when not this environment's")
    hf_home: Path | None = Field(default=None, description="as HF_HOME, for clients that do not pass it on")
    http_host: str = Field(default="127.0.0.1", description="address of the HTTP server; anything but loopback needs http_token")
    http_token: SecretStr | None = Field(
        default=None, min_length=16, description="bearer token that every HTTP request must carry"
    )
    http_allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="further Host names that HTTP requests may use, as NAME or NAME:PORT, separated by ','"
    )
    http_allowed_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="further Origins, such as https://merge.example.org, separated by ','"
    )

    @field_validator("http_allowed_hosts", "http_allowed_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("roots", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = paths.home() / SETTINGS_FILE
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)

    @property
    def is_offline(self) -> bool:
        return self.offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


Given = tuple[tuple[str, str], ...]
_with_file: Remembered[tuple[Given, Settings]] = Remembered()
_without_file: dict[tuple[Path, Given], Settings] = {}


def load() -> Settings:
    """What file and environment say now; neither is parsed again while both are as they were.

    Raises `BadInput` that names the setting. Applies `hf_home` to this process.
    """
    file = paths.home() / SETTINGS_FILE
    given = tuple(sorted(item for item in os.environ.items() if item[0].upper().startswith(PREFIX)))
    try:
        about = file.stat()
    except FileNotFoundError:
        settings = _without_file.get((file, given)) or _load()
        _without_file.clear()
        _without_file[file, given] = settings
    else:
        known = _with_file.of(about)
        if known is None or known[0] != given:
            known = given, _load()
            _with_file.keep(about, known)
        settings = known[1]
    if settings.hf_home is not None:
        os.environ.setdefault("HF_HOME", str(settings.hf_home.expanduser()))
    return settings


def _load() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"setting {name!r} is not usable: {first['msg']} (found {first.get('input')!r})"[:500],
            f"correct MODEL_MERGING_{name.upper()} or {paths.home() / SETTINGS_FILE}",
        ) from error
    except ValueError as error:
        raise BadInput(f"{paths.home() / SETTINGS_FILE} is not TOML: {error}", "correct or remove the file") from error
