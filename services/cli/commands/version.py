"""`porthole version`: the versions of this command and of the running services."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from services.cli import context
from services.cli.arguments import JsonFlag
from services.cli.console import out, print_json, printable, say
from services.cli.documents import Versions, as_document
from services.cli.views import VersionView
from services.devicehost import fastpath
from services.handshake.errors import PortholeError
from services.rpc.version import API_VERSIONS, SOFTWARE_VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable


def register(root: typer.Typer) -> None:
    """Add the command to the root."""
    root.command()(version)


def version(ctx: typer.Context, json: JsonFlag = False) -> None:
    """Show the versions of this command, the VM owner and the device host.

    It also shows whether the native fast path serves virtio-fs. `porthole device fs` has the one of
    this command.
    """
    cli = context.of(ctx)

    async def owner_version() -> VersionView:
        async with cli.owner() as client:
            return await client.version()

    async def run() -> dict[str, VersionView | PortholeError]:
        owner, device_host = await asyncio.gather(
            _or_error(owner_version()), _or_error(cli.device_host_version())
        )
        return {"VM owner": owner, "device host": device_host}

    answers = asyncio.run(run())
    if json:
        services = {
            name.lower().replace(" ", "_"): answer
            for name, answer in answers.items()
            if isinstance(answer, VersionView)
        }
        own = (SOFTWARE_VERSION, tuple(API_VERSIONS), fastpath.status)
        print_json(as_document(Versions(*own, services)))
        return
    own_line = f"porthole {SOFTWARE_VERSION}, API {', '.join(API_VERSIONS)}"
    out().print(f"{own_line}, native fast path {fastpath.status}", markup=False)
    for name, answer in answers.items():
        if isinstance(answer, PortholeError):
            say(f"{name}: {answer.message}")
            continue
        facts = (f"{fact.replace('_', ' ')} {value}" for fact, value in answer.manifest.items())
        line = f"{name} {answer.software_version}: {', '.join(facts)}"
        out().print(printable(line), markup=False)


async def _or_error(asked: Awaitable[VersionView]) -> VersionView | PortholeError:
    try:
        return await asked
    except PortholeError as error:
        return error
