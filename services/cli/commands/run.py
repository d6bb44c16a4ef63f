"""`porthole run`: its flags, and its exit codes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from services.cli import context
from services.cli.arguments import Isolation, Kind, parse_size
from services.cli.console import fail
from services.cli.context import CliContext
from services.cli.guest_control import errno_of
from services.cli.requests import GuestCommand
from services.cli.run import guest
from services.cli.run.guest import CommandRefusedError, GuestPlan
from services.cli.run.plan import check_places, parse_run_share, working_directory
from services.cli.run.signals import Signals
from services.cli.run.streams import open_standard_descriptors
from services.cli.run.terminal import callers_terminal
from services.cli.run.user import caller, environment, parse_user
from services.handshake.errors import PortholeError

FAILED: Final = 125
"""There was no guest, or it is lost, as env(1) and chroot(1) say of themselves. Other codes are the
command's."""

CANNOT_RUN: Final = 126
"""The program was found and cannot be run."""

NOT_FOUND: Final = 127
"""There is no such program."""

_MISSING: Final = ("GUEST_KERNEL_MISSING", "GUEST_IMAGE_MISSING")


class Net(StrEnum):
    """The network of the guest."""

    NONE = "none"
    TAP = "tap"
    USER = "user"


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command(context_settings={"allow_interspersed_args": False})(run)


def run(
    ctx: typer.Context,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND", help="The program and its arguments.")
    ],
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:GUEST[:ro]",
            help="A directory of the host, and its place in the guest; may be repeated.",
        ),
    ] = None,
    net: Annotated[
        Net,
        typer.Option(
            help="user: the host's network, by passt, without root; tap: adapters on TAP "
            "interfaces of the host; needs root."
        ),
    ] = Net.NONE,
    memory: Annotated[str, typer.Option(help="Memory, 4G or 512M; by default 2G.")] = "",
    cpus: Annotated[
        int, typer.Option(help="Virtual CPUs; by default 1.", min=0, max=64, show_default=False)
    ] = 0,
    kernel: Annotated[
        Path | None,
        typer.Option(
            help="The guest's kernel; by default what `make kernel` made.", dir_okay=False
        ),
    ] = None,
    kind: Annotated[
        Kind, typer.Option(help="wsl2: the guest pushes its pool; wslc: a session applies it.")
    ] = Kind.WSL2,
    isolation: Annotated[
        Isolation | None,
        typer.Option(
            help="What devices are handed of the guest's memory. shared-ram, the default: all of "
            "it, and they keep its pool; strict: a pool for each, and nothing else."
        ),
    ] = None,
    user: Annotated[
        str,
        typer.Option(
            metavar="USER[:GROUP]", help="Who runs the command in the guest; by default you."
        ),
    ] = "",
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]", help="A variable of the command; without a value, yours."
        ),
    ] = None,
) -> None:
    """Run a command in a Linux guest of its own, whose root is this host's, read-only.

    What it writes stays in the guest's memory, except in shares. Its exit code is that of the
    command, or 128 and the number of the signal that ended it; 125 without a guest, 126 and 127 if
    the program cannot be run, or is not found. Ctrl-] three times ends it.
    """
    open_standard_descriptors()
    cli = context.of(ctx)
    shares = tuple(parse_run_share(text) for text in share or ())
    check_places(shares)
    plan = GuestPlan(
        kind=kind,
        ram_bytes=parse_size(memory) if memory else 0,
        cpus=cpus,
        kernel=str(kernel.absolute()) if kernel else "",
        shares=shares,
        network="" if net is Net.NONE else net,
        isolation=isolation or "",
    )
    terminal = callers_terminal()
    who = parse_user(user) if user else caller()
    job = GuestCommand(
        tuple(command),
        environment(who, os.environ, terminal=terminal is not None, given=env or ()),
        working_directory(_present_directory(), shares),
        who.uid,
        who.gid,
        who.groups,
        terminal.size if terminal else None,
    )

    async def work() -> int:
        signals = Signals(_cancel_of(asyncio.current_task()))
        with signals.handled():
            try:
                return await guest.run(plan, job, terminal, signals, _environment(cli))
            except asyncio.CancelledError:
                if signals.ended_by is None:
                    raise
                return 128 + signals.ended_by

    with cli.telemetry():
        try:
            code = asyncio.run(work())
        except PortholeError as error:
            code = _explain(error)
    raise typer.Exit(code)


def _cancel_of(task: asyncio.Task[int] | None) -> Callable[[], None]:
    def cancel() -> None:
        if task is not None:
            task.cancel()

    return cancel


def _environment(cli: CliContext) -> dict[str, str]:
    trace_file = cli.settings.trace_file
    return {"PORTHOLE_TRACE_FILE": str(trace_file.absolute())} if trace_file else {}


def _present_directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - the path may be any bytes
    except FileNotFoundError:
        return "/"


def _explain(error: PortholeError) -> int:
    """Print the error; return the exit code for it."""
    if error.reason in _MISSING:
        fail(
            f"{error.metadata.get('path', 'what a guest boots')} is missing; make what a guest "
            "boots with `make kernel guest-image` in a checkout, or give a kernel with --kernel "
            f"[{error.reason}]"
        )
    else:
        fail(f"{error.message} [{error.reason}]")
    if not isinstance(error, CommandRefusedError):
        return FAILED
    return NOT_FOUND if errno_of(error) == "ENOENT" else CANNOT_RUN
