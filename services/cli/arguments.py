"""The arguments that several commands have, and their parsers.

They are sizes, shares, ports, addresses and VMs.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from services.cli.requests import ShareRequest
from services.handshake import byte_sizes
from services.handshake.errors import InvalidArgumentError
from services.handshake.ports import PortKey, PortMapping, PortProtocol
from services.handshake.rate_limit import RateLimit, parse_rate_limit
from services.rpc.address import parse_address, require_local
from services.rpc.inputs import read_bounded

PORT_MAPPING: Final = "[ADDRESS:]PORT:GUEST_PORT[/udp]"
"""How a port that is forwarded is written, everywhere."""

_HIGHEST_PORT: Final = 65535

WSLCONFIG_LIMIT_BYTES: Final = 1 << 20
"""Longest .wslconfig file that is read; an owner takes at most 64 KiB."""


class Kind(StrEnum):
    """The kind of a VM, which decides how its capabilities are reported."""

    WSL2 = "wsl2"
    WSLC = "wslc"


class Isolation(StrEnum):
    """What the devices of a Linux guest are handed of its memory."""

    SHARED_RAM = "shared-ram"
    STRICT = "strict"


LIMIT: Final = "bps=N,pps=N,burst_bytes=N,burst_packets=N"
"""A rate limit of an adapter, some of these; bps is bytes per second, as in QEMU."""

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def parse_size(text: str) -> int:
    """Read a size in bytes, with the grammar that .wslconfig has.

    Raises:
        typer.BadParameter: It is not a size, or does not fit into 64 bits.
    """
    try:
        return byte_sizes.parse_size(text)
    except ValueError as fault:
        raise typer.BadParameter(str(fault)) from None


def _check_vm(text: str) -> str:
    """Check that the id of a VM, or its beginning, is not empty.

    Raises:
        typer.BadParameter: It is empty.
    """
    if not text:
        raise typer.BadParameter(
            f"{text!r} is not the id of a VM; give 4 characters of it or more, as "
            "`porthole vm list` shows it"
        )
    return text


VmArgument = Annotated[
    str,
    typer.Argument(metavar="VM", help="Id of the VM, or how it begins.", callback=_check_vm),
]


def parse_limit(text: str) -> RateLimit:
    """Parse a rate limit of an adapter.

    Raises:
        typer.BadParameter: It is none, or out of bounds.
    """
    try:
        return parse_rate_limit(text)
    except InvalidArgumentError as error:
        raise typer.BadParameter(f"{error.message} [{error.reason}]") from None


def check_address(text: str) -> str:
    """Return an address without the scheme of a URL before a host.

    Raises:
        typer.BadParameter: It is not an address.
    """
    try:
        return str(parse_address(text))
    except InvalidArgumentError as error:
        raise typer.BadParameter(error.message) from None


def check_listen_address(text: str) -> str:
    """Return an address that a service may listen on, in the form of `check_address`.

    Raises:
        typer.BadParameter: It is not an address, or machines other than this one could reach it.
    """
    address = check_address(text)
    try:
        require_local(parse_address(address))
    except InvalidArgumentError as error:
        raise typer.BadParameter(f"{error.message} [{error.reason}]") from None
    return address


def read_wslconfig(file: Path) -> str:
    """Read a .wslconfig file; the owner parses it.

    Raises:
        typer.BadParameter: It is not UTF-8, or INPUT_TOO_LARGE or INPUT_TOO_SLOW.
        OSError: It cannot be read.
    """
    try:
        return read_bounded(file, WSLCONFIG_LIMIT_BYTES, "shorten it").decode()
    except InvalidArgumentError as error:
        raise typer.BadParameter(f"{error.message} [{error.reason}]") from None
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"{file}: not UTF-8 at byte {error.start}; save the file as UTF-8"
        ) from None


def parse_share(text: str) -> ShareRequest:
    """Parse DIRECTORY[,tag=NAME|aggregate][,OPTION…], the value of `vm create --share`.

    A directory whose name has a comma needs `porthole share add`.

    Raises:
        typer.BadParameter: It has no directory, or two tags.
    """
    directory, *items = text.split(",")
    tags = [item.removeprefix("tag=") for item in items if item.startswith("tag=")]
    if not directory or len(tags) > 1:
        raise typer.BadParameter(f"{text!r}: write DIRECTORY[,tag=NAME][,OPTION…]")
    options = ";".join(
        item for item in items if item != "aggregate" and not item.startswith("tag=")
    )
    return ShareRequest(
        str(Path(directory).absolute()),
        tags[0] if tags else "",
        options,
        aggregate="aggregate" in items,
    )


def parse_mapping(text: str) -> PortMapping:
    """Parse PORT_MAPPING; an IPv6 address may be in brackets.

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
    return PortMapping(PortKey(protocol, address, port), _number(text, guest_port, 1))


def parse_listening(text: str) -> PortKey:
    """Parse [ADDRESS:]PORT[/tcp|/udp].

    Raises:
        typer.BadParameter: It has another form, or a port out of bounds.
    """
    rest, protocol = _protocol(text)
    address, port = _listening(text, rest, 1)
    if address.isdecimal():
        raise typer.BadParameter(
            f"{text!r}: {address!r} is no address; write where the host listens alone: "
            "[ADDRESS:]PORT"
        )
    return PortKey(protocol, address, port)


def _protocol(text: str) -> tuple[str, PortProtocol]:
    rest, slash, protocol = text.partition("/")
    if not slash:
        return rest, PortProtocol.TCP
    if protocol not in (PortProtocol.TCP, PortProtocol.UDP):
        raise typer.BadParameter(f"{text!r}: the protocol {protocol!r} must be tcp or udp")
    return rest, PortProtocol(protocol)


def _listening(text: str, listening: str, least: int) -> tuple[str, int]:
    address, _, port = listening.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    return address, _number(text, port, least)


def _number(text: str, number: str, least: int) -> int:
    if re.fullmatch("[0-9]{1,5}", number) and least <= int(number) <= _HIGHEST_PORT:
        return int(number)
    raise typer.BadParameter(
        f"{text!r}: {number!r} is no port, which is {least} to {_HIGHEST_PORT}"
    )
