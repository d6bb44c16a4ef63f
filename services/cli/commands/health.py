"""`porthole health`: the health of one service."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import typer

from services.cli import context
from services.cli.arguments import check_address
from services.cli.clients import health
from services.cli.console import out
from services.cli.exit_codes import NEGATIVE

_DEADLINE_S: Final = 3.0


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command("health")(health_)


def health_(
    ctx: typer.Context,
    address: Annotated[str, typer.Argument(help="unix:/path or tcp://host:port.")],
) -> None:
    """Ask a service whether it is serving."""
    cli = context.of(ctx)
    answer = asyncio.run(health(check_address(address), cli.wait_s, _DEADLINE_S))
    out().print(answer, markup=False)
    if answer != "SERVING":
        raise typer.Exit(NEGATIVE)
