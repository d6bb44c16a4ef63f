"""The arguments that several commands have: sizes, shares, addresses and VMs, and their parsers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from services.cli.requests import ShareRequest
from services.handshake.errors import InvalidArgumentError
from services.rpc.address import parse_address

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_SIZE: Final = re.compile(r"(\d+)\s*([KMGT]?)(?:I?B)?", re.ASCII | re.IGNORECASE)
_UNIT_SHIFT: Final = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_SIZE_LIMIT_BYTES: Final = 1 << 64


def parse_size(text: str) -> int:
    """Read a size in bytes: "2G", "512M", "64MiB", "1073741824".

    Raises:
        typer.BadParameter: It is not a size, or does not fit into 64 bits.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size; write 2G, 512M or a number of bytes")
    size_bytes = int(match[1]) << _UNIT_SHIFT[match[2].upper()]
    if size_bytes >= _SIZE_LIMIT_BYTES:
        raise typer.BadParameter(f"{text!r} is past 64 bits; write 2G, 512M or a number of bytes")
    return size_bytes


def _check_vm(text: str) -> str:
    """Check that the id of a VM, or its beginning, is not empty.

    Raises:
        typer.BadParameter: It is empty.
    """
    if not text:
        raise typer.BadParameter(
            f"{text!r} is not the id of a VM; give 1 character of it or more, as "
            "`porthole vm list` shows it"
        )
    return text


VmArgument = Annotated[
    str,
    typer.Argument(metavar="VM", help="Id of the VM, or how it begins.", callback=_check_vm),
]


def check_address(text: str) -> str:
    """Check an address.

    Raises:
        typer.BadParameter: It is not an address.
    """
    try:
        return str(parse_address(text))
    except InvalidArgumentError as error:
        raise typer.BadParameter(error.message) from None


def read_wslconfig(file: Path) -> str:
    """Read a .wslconfig file; the owner parses it.

    Raises:
        typer.BadParameter: It is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
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
