"""`porthole port …`: add, remove and list the ports of the host that reach a guest."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

import typer

from services.cli import context, tables
from services.cli.arguments import JsonFlag, VmArgument
from services.cli.console import out, print_json, say
from services.cli.documents import AddedPort, PortList, as_document
from services.cli.requests import PortRequest

app = typer.Typer(
    help="Forward ports of the host to a VM on a user-mode network.", no_args_is_help=True
)

_PROTOCOLS: Final = ("tcp", "udp")
_MOST: Final = 65535


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
            metavar="[ADDRESS:]PORT:GUEST_PORT[/udp]",
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


def parse_mapping(text: str) -> PortRequest:
    """Parse [ADDRESS:]PORT:GUEST_PORT[/tcp|/udp]; an IPv6 address may be in brackets.

    Raises:
        typer.BadParameter: It has another form, or a port out of bounds.
    """
    rest, protocol = _protocol(text)
    listening, colon, guest_port = rest.rpartition(":")
    if not colon:
        raise typer.BadParameter(
            f"{text!r} has no port of the guest; write PORT:GUEST_PORT, for instance 8080:80"
        )
    address, port = _listening(text, listening, 0)
    return PortRequest(protocol, address, port, _number(text, guest_port, 1))


def parse_listening(text: str) -> PortRequest:
    """Parse [ADDRESS:]PORT[/tcp|/udp].

    Raises:
        typer.BadParameter: As above.
    """
    rest, protocol = _protocol(text)
    address, port = _listening(text, rest, 1)
    return PortRequest(protocol, address, port)


def _protocol(text: str) -> tuple[str, str]:
    rest, slash, protocol = text.partition("/")
    if not slash:
        return rest, "tcp"
    if protocol not in _PROTOCOLS:
        raise typer.BadParameter(
            f"{text!r}: the protocol {protocol!r} must be {' or '.join(_PROTOCOLS)}"
        )
    return rest, protocol


def _listening(text: str, listening: str, least: int) -> tuple[str, int]:
    address, _, port = listening.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    return address, _number(text, port, least)


def _number(text: str, number: str, least: int) -> int:
    if number.isascii() and number.isdigit() and least <= int(number[:6]) <= _MOST:
        return int(number[:6])
    raise typer.BadParameter(f"{text!r}: {number!r} is no port, which is {least} to {_MOST}")
