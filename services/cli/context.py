"""What every command is told by flags before its name, or by PORTHOLE_ variables.

Owns the reading of these and the start of telemetry in this process. Must not know single commands.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import typer

from services.cli.arguments import check_address
from services.cli.clients import owner
from services.rpc import tracing
from services.rpc.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from services.cli.clients import OwnerClient

DEFAULT_WAIT_S: Final = 3.0
"""How long a command waits for a service that is not up yet."""

CONNECT_S: Final = 0.2
"""What connecting to a service that is up may take; with --wait 0 a command tries once."""


class CliSettings(ServiceSettings):
    """The settings of this process as a client: run directory and telemetry."""

    name: ClassVar[str] = "cli"

    log_level: Literal["debug", "info", "warning", "error"] = "warning"


@dataclass(frozen=True, slots=True)
class CliContext:
    """What the root group hands to a command as `ctx.obj`."""

    settings: CliSettings
    owner_address: str
    wait_s: float

    def owner(self) -> AbstractAsyncContextManager[OwnerClient]:
        """Reach the VM owner that the user means."""
        return owner(self.owner_address, self.wait_s)

    @contextmanager
    def telemetry(self) -> Iterator[None]:
        """Trace what the body does, where the user said so."""
        tracing.setup("porthole-cli", self.settings)
        try:
            yield
        finally:
            tracing.shutdown()


def make_context(
    run_dir: Path | None, owner_address: str | None, trace_file: Path | None, wait_s: float
) -> CliContext:
    """Combine flags, environment and defaults.

    Raises:
        typer.BadParameter: An address that is none.
        pydantic.ValidationError: Another wrong setting.
    """
    given: dict[str, Any] = {"run_dir": run_dir, "trace_file": trace_file}
    settings = CliSettings(**{name: value for name, value in given.items() if value is not None})
    address = owner_address or f"unix:{settings.run_dir.absolute()}/owner.sock"
    return CliContext(settings, check_address(address), max(wait_s, CONNECT_S))


def of(ctx: typer.Context) -> CliContext:
    """Give the context that the root group has made."""
    found = ctx.find_object(CliContext)
    if found is None:
        raise typer.BadParameter("commands are run through `porthole`")
    return found
