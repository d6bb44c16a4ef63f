"""The settings that all services have, from the environment and from flags.

Owns how settings are read and how a wrong one is reported. A service of gRPC subclasses
ServiceSettings, another program ProgramSettings, and calls `load` once, in its __main__.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    NoDecode,
    SettingsConfigDict,
    SettingsError,
)

from services.handshake.errors import PortholeError
from services.rpc.address import parse_address
from services.rpc.run_directory import default_run_dir

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class ProgramSettings(BaseSettings):
    """The settings of every program: PORTHOLE_<FIELD> in the environment, --<field> as a flag.

    A flag overrides the environment. A subclass sets `name`, and may set another `env_prefix`.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="PORTHOLE_",
        env_ignore_empty=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )

    name: ClassVar[str] = "porthole"
    """Name of the program in its default socket, its traces and its ready line."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severity that is logged to stderr"
    )


class ServiceSettings(ProgramSettings):
    """The settings of every service."""

    run_dir: Path = Field(
        default_factory=default_run_dir, description="directory of sockets and per-VM files"
    )
    listen: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="unix:/path or host:port, comma-separated or repeated; "
        "by default unix:<run-dir>/<name>.sock",
    )
    trace_file: Path | None = Field(
        default=None, description="append spans to this file, as lines of OTLP JSON"
    )
    metrics_file: Path | None = Field(
        default=None, description="append metrics to this file, as lines of OTLP JSON"
    )
    otlp_endpoint: str | None = Field(
        default=None, description="export spans and metrics to this OTLP gRPC endpoint, host:port"
    )
    trace_console: bool = Field(default=False, description="print spans to stderr")

    @field_validator("listen", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return split_list(value)

    @field_validator("listen")
    @classmethod
    def _parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked_address(address) for address in value)

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        # OpenTelemetry's own variables hold URLs, so both forms are accepted.
        if value is not None:
            checked_address(value.removeprefix("http://").removesuffix("/"))
        return value

    @model_validator(mode="after")
    def _check_default(self) -> Self:
        for address in self.addresses:
            checked_address(address)
        return self

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses to listen on: `listen`, or the default socket in the run directory."""
        return self.listen or (f"unix:{self.run_dir.absolute()}/{self.name}.sock",)

    @property
    def uses_run_dir(self) -> bool:
        """Whether the service keeps anything in the run directory."""
        return not self.listen


def split_list(value: object) -> object:
    """Split what was given with commas, or repeated, in a pydantic validator."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        return value
    return tuple(item.strip() for part in parts for item in str(part).split(",") if item.strip())


def checked_address(address: str) -> str:
    """Check an address in a pydantic validator.

    Raises:
        ValueError: ADDRESS_SYNTAX or SOCKET_PATH_TOO_LONG, as text.
    """
    try:
        return str(parse_address(address))
    except PortholeError as error:
        raise ValueError(error.message) from None


S = TypeVar("S", bound=ProgramSettings)


def load(settings_cls: type[S], argv: list[str] | None = None) -> S:
    """Read settings from the environment and from flags. A __main__ calls it once.

    Args:
        settings_cls: The program's settings.
        argv: Flags without the program's name; None: the flags of this process.

    Raises:
        SystemExit: 2 after one line on stderr per wrong flag or value; 0 after --help.
    """
    program = f"porthole {settings_cls.name}"
    arguments = sys.argv[1:] if argv is None else argv
    try:
        source: CliSettingsSource[Any] = CliSettingsSource(
            settings_cls, cli_prog_name=program, cli_parse_args=arguments, cli_exit_on_error=False
        )
        return settings_cls(_cli_settings_source=source)  # type: ignore[call-arg]
    except ValidationError as error:
        for problem in error.errors():
            print(f"{program}: {_explain(problem)}", file=sys.stderr)
    except SettingsError as error:
        print(f"{program}: {error}; see --help", file=sys.stderr)
    raise SystemExit(2)


def _explain(problem: ErrorDetails) -> str:
    flag = "-".join(str(part) for part in problem["loc"]).replace("_", "-")
    text = problem["msg"].removeprefix("Value error, ")
    if not flag:
        return text
    if problem["type"] == "missing":
        return f"--{flag} is required"
    return f"--{flag} {problem['input']!r}: {text}"
