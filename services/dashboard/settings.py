"""The settings of the dashboard: flags and environment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.dashboard.access import is_token
from services.handshake.errors import PortholeError
from services.rpc.address import parse_address, require_local
from services.rpc.settings import ProgramSettings, checked_address, split_list

if TYPE_CHECKING:
    from collections.abc import Mapping

ADDRESSES: Final = ("listen", "otlp_grpc", "otlp_http")

_NEXT_LINK: Final = re.compile(r",(?=[^=,]{1,40}=https?://)")
_LINK: Final = re.compile(r"(?P<name>[^=]{1,40})=(?P<url>.{1,2000})")


def default_database() -> Path:
    """Return where the file is by default (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    folder = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return folder / "porthole" / "dashboard.sqlite"


class DashboardSettings(ProgramSettings):
    """The settings of the dashboard: PORTHOLE_DASHBOARD_<FIELD> in the environment."""

    # PORTHOLE_LISTEN and PORTHOLE_OTLP_ENDPOINT are for the services that send to it.
    model_config = SettingsConfigDict(env_prefix="PORTHOLE_DASHBOARD_")

    name: ClassVar[str] = "dashboard"

    listen: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1:4380",),
        description="the page and its API: host:port or unix:/path, comma-separated or repeated",
    )
    otlp_grpc: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1:4317",), description="OTLP over gRPC: the same"
    )
    otlp_http: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("127.0.0.1:4318",), description="OTLP over HTTP: the same"
    )
    database: Path = Field(
        default_factory=default_database, description="file with all that was received"
    )
    keep_days: float = Field(default=7.0, gt=0, le=3650, description="what is older is removed")
    keep_mib: int = Field(
        default=1024, ge=16, le=1 << 20, description="with more, the oldest is removed"
    )
    token_file: Path | None = Field(
        default=None,
        description="file with the token that every request over TCP needs; a must where other "
        "machines can ask",
    )
    trace_link: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="NAME=URL of a trace elsewhere, with {trace_id} or {vm_id} in it; repeated",
    )
    load: Annotated[tuple[Path, ...], NoDecode] = Field(
        default=(),
        description="file of spans to show, as --trace-file writes it, also as gzip; "
        "comma-separated or repeated",
    )
    settle_s: float = Field(
        default=5.0,
        ge=0,
        le=600,
        description="seconds without a span after which broken rules are final",
    )

    @field_validator(*ADDRESSES, "load", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("trace_link", mode="before")
    @classmethod
    def _split_links(cls, value: object) -> object:
        # Repeated flags come joined with commas, and an address may have some, too.
        return tuple(_NEXT_LINK.split(value)) if isinstance(value, str) else value

    @field_validator(*ADDRESSES)
    @classmethod
    def _parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_address(address) for address in value)

    @field_validator("trace_link")
    @classmethod
    def _check_links(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            match = _LINK.fullmatch(text)
            if match is None or urlsplit(match["url"]).scheme not in ("http", "https"):
                raise ValueError("write NAME=http://… with {trace_id} or {vm_id} in it")
        return value

    @model_validator(mode="after")
    def _check_reach(self) -> Self:
        if not self.listen:
            raise ValueError("--listen has no address")
        for name in ADDRESSES:
            for address in getattr(self, name):
                if self.token_file is None:
                    _check_local(name.replace("_", "-"), address)
        return self

    @property
    def links(self) -> Mapping[str, str]:
        """Addresses of traces elsewhere, by name."""
        matches = (_LINK.fullmatch(text) for text in self.trace_link)
        return {match["name"]: match["url"] for match in matches if match is not None}

    def token(self) -> str:
        """Read the token; empty when none is needed.

        Raises:
            OSError: The file cannot be read.
            ValueError: It has no token.
        """
        if self.token_file is None:
            return ""
        with self.token_file.open("rb") as file:
            token = file.read(1024).decode("ascii", "replace").strip()
        if not is_token(token):
            raise ValueError(
                f"{self.token_file} has no token of 16 to 256 letters, digits, and -._~; make one "
                "with `openssl rand -hex 32`"
            )
        return token


def _check_local(flag: str, address: str) -> None:
    try:
        require_local(parse_address(address))
    except PortholeError:
        raise ValueError(
            f"--{flag} {address} can be reached from other machines: give --token-file, or listen "
            "on 127.0.0.1"
        ) from None
