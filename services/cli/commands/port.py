"""`porthole port …`: add, remove and list the ports of the host that reach a guest."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from services.cli import context, tables
from services.cli.arguments import (
    PORT_MAPPING,
    JsonFlag,
    VmArgument,
    parse_listening,
    parse_mapping,
)
from services.cli.console import out, print_json, say
from services.cli.documents import AddedPort, PortList, as_document

app = typer.Typer(
    help="Forward ports of the host to a VM on a user-mode network.", no_args_is_help=True
)


def register(root: typer.Typer) -> None:
    """Add the group to the root."""
    root.add_typer(app, name="port")


@app.command()
def add(
    ctx: typer.Context,
    vm: VmArgument,
    port: Annotated[
        str,
        typer.Argument(
            metavar=PORT_MAPPING,
            help="The host listens at ADDRESS, by default 127.0.0.1, on PORT; 0: a free one.",
        ),
    ],
    json: JsonFlag = False,
) -> None:
    """Forward a port of the host to a port of the guest; print where the host listens."""
    cli = context.of(ctx)
    request = parse_mapping(port)

    async def run() -> AddedPort:
        async with cli.owner() as client:
            return await client.map_port(vm, request)

    with cli.telemetry():
        mapped = asyncio.run(run())
    if json:
        print_json(as_document(mapped))
        return
    out().print(tables.listening(mapped), markup=False)
    say(f"{tables.listening(mapped)} is forwarded to port {mapped.guest_port} of the guest")


@app.command()
def remove(
    ctx: typer.Context,
    vm: VmArgument,
    port: Annotated[
        str,
        typer.Argument(metavar="[ADDRESS:]PORT[/udp]", help="Where the host listens."),
    ],
) -> None:
    """End a mapping; connections that are open go on."""
    cli = context.of(ctx)
    request = parse_listening(port)

    async def run() -> None:
        async with cli.owner() as client:
            await client.unmap_port(vm, request)

    with cli.telemetry():
        asyncio.run(run())
    say(f"removed {port}")


@app.command("list")
def list_(ctx: typer.Context, vm: VmArgument, json: JsonFlag = False) -> None:
    """List the mappings of a VM."""
    cli = context.of(ctx)

    async def run() -> PortList:
        async with cli.owner() as client:
            return PortList(await client.list_ports(vm))

    ports = asyncio.run(run())
    if json:
        print_json(as_document(ports))
    elif ports.ports:
        out().print(tables.port_table(ports.ports))
    else:
        say(f"no ports; `porthole port add {vm} 8080:80` adds one")
