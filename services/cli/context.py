"""The context of a command that calls services: settings from root flags and PORTHOLE_ variables.

Owns how these are combined, and telemetry in this process. Must not know individual commands.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import typer
from pydantic import ValidationError

from services.cli.arguments import check_address
from services.cli.clients import device_host_version, owner
from services.cli.console import fail
from services.cli.exit_codes import USAGE
from services.cli.flags import RootFlags
from services.rpc import run_directory, tracing
from services.rpc.collector import COMMAND_PATIENCE_S
from services.rpc.settings import ServiceSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager

    from pydantic_core import ErrorDetails

    from services.cli.clients import OwnerClient
    from services.cli.views import VersionView

CONNECT_S: Final = 0.2
"""Longest time to connect to a running service; --wait 0 stands for it."""


class CliSettings(ServiceSettings):
    """The settings of this process: run directory and telemetry."""

    name: ClassVar[str] = "cli"

    log_level: Literal["debug", "info", "warning", "error"] = "warning"


@dataclass(frozen=True, slots=True)
class CliContext:
    """The settings of a command, and the services that it reaches.

    Attributes:
        given_owner: Address of a VM owner elsewhere; None: the one in the run directory.
    """

    settings: CliSettings
    given_owner: str | None
    wait_s: float

    @property
    def owner_address(self) -> str:
        """Address of the VM owner.

        Raises:
            FailedPreconditionError: RUN_DIR_UNSAFE, unless the address was given.
        """
        return self.given_owner or self._in_run_dir("owner.sock")

    def check_unsent(self) -> None:
        """Check that traces are not sent elsewhere, before a dashboard is started for them.

        Raises:
            typer.BadParameter: They are.
        """
        if self.settings.otlp_endpoint is not None:
            raise typer.BadParameter(
                f"traces are sent to PORTHOLE_OTLP_ENDPOINT={self.settings.otlp_endpoint}; unset "
                "it, or leave --dashboard out"
            )

    def owner(self) -> AbstractAsyncContextManager[OwnerClient]:
        """Connect to the VM owner."""
        return owner(self.owner_address, self.wait_s)

    async def device_host_version(self) -> VersionView:
        """Return the version of the run directory's device host."""
        return await device_host_version(self._in_run_dir("devicehost.sock"), self.wait_s)

    @contextmanager
    def telemetry(self) -> Iterator[None]:
        """Set telemetry up for the body, and shut it down after it."""
        tracing.setup("porthole-cli", self.settings, is_command=True)
        try:
            yield
        finally:
            tracing.shutdown(unheard_s=COMMAND_PATIENCE_S)

    def _in_run_dir(self, socket: str) -> str:
        run_dir = self.settings.run_dir.absolute()
        run_directory.guard(run_dir)
        return f"unix:{run_dir}/{socket}"


def make_context(flags: RootFlags) -> CliContext:
    """Combine flags, environment and defaults.

    Raises:
        typer.BadParameter: The owner's address is wrong.
        typer.Exit: Another setting is wrong; stderr has it.
    """
    given: dict[str, Any] = {"run_dir": flags.run_dir, "trace_file": flags.trace_file}
    try:
        settings = CliSettings(
            **{name: value for name, value in given.items() if value is not None}
        )
    except ValidationError as error:
        for problem in error.errors():
            fail(_explain(problem))
        raise typer.Exit(USAGE) from None
    # Checked here, too, because a run directory may be too deep for a socket.
    check_address(flags.owner or f"unix:{settings.run_dir.absolute()}/owner.sock")
    given_owner = check_address(flags.owner) if flags.owner else None
    return CliContext(settings, given_owner, max(flags.wait_s, CONNECT_S))


def of(ctx: typer.Context) -> CliContext:
    """Return the context of a command.

    Raises:
        typer.BadParameter: See `make_context`.
        typer.Exit: See `make_context`.
    """
    flags = ctx.find_object(RootFlags)
    if flags is None:
        raise typer.BadParameter("commands are run through `porthole`")
    return make_context(flags)


def _explain(problem: ErrorDetails) -> str:
    text = problem["msg"].removeprefix("Value error, ")
    name = "_".join(str(part) for part in problem["loc"]).upper()
    return f"PORTHOLE_{name}={problem['input']!r}: {text}" if name else text
