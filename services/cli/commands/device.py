"""`porthole device fs` and `net`: one device alone, for QEMU, libvirt or Cloud Hypervisor.

Owns the names of the flags; a flag that virtiofsd has, too, has the same name here. The device host
is imported only when a device is about to run.
"""

from __future__ import annotations

import contextlib
import grp
import json
import logging
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from services.cli.console import fail
from services.cli.exit_codes import USAGE
from services.cli.sd_notify import notify
from services.cli.virtiofsd_options import VirtiofsdOptions, parse
from services.handshake.errors import InvalidArgumentError, NotFoundError
from services.handshake.options import CACHE_MODES, MAX_QUEUES
from services.handshake.pool import parse_token

if TYPE_CHECKING:
    from services.devicehost.memory import Access
    from services.devicehost.standalone import StandaloneDevice

app = typer.Typer(
    help="Run one device alone, in place of virtiofsd or passt.", no_args_is_help=True
)

DEFAULT_TAG: Final = "porthole"
"""Mount tag of a device without --tag; its front-end, for instance QEMU, has the guest's tag."""


class Memory(StrEnum):
    """How a device without a token reaches guest memory."""

    WHOLE = "whole"
    WINDOWS = "windows"


class LogLevel(StrEnum):
    """Least severity that is logged to stderr."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


SocketPath = Annotated[
    Path | None, typer.Option("--socket-path", help="Listen here; made with mode 0600.")
]
SocketFd = Annotated[
    int | None,
    typer.Option("--fd", help="Listen on this inherited descriptor instead.", min=0),
]
SocketGroup = Annotated[
    str | None, typer.Option("--socket-group", help="Group that may connect as well.")
]
Swiotlb = Annotated[
    str | None,
    typer.Option(
        "--swiotlb",
        metavar="0xBASE,SIZE",
        help="Access only the guest's bounce pool, at the address that its kernel publishes.",
    ),
]
MemoryKind = Annotated[
    Memory,
    typer.Option(
        "--memory",
        help="Without --swiotlb: map all of guest memory at once, or windows of it on demand.",
    ),
]
Persistent = Annotated[
    bool,
    typer.Option("--persistent", help="Wait for the next front-end when one has disconnected."),
]
Level = Annotated[
    LogLevel, typer.Option("--log-level", help="Least severity that is logged to stderr.")
]
Capabilities = Annotated[
    bool,
    typer.Option(
        "--print-capabilities",
        help="Print the capabilities that vhost-user.json specifies, and exit.",
    ),
]


def register(root: typer.Typer) -> None:
    """Add the group to the root."""
    root.add_typer(app, name="device")


@app.command()
def fs(
    socket_path: SocketPath = None,
    fd: SocketFd = None,
    socket_group: SocketGroup = None,
    shared_dir: Annotated[
        Path | None, typer.Option("--shared-dir", help="Directory to share.")
    ] = None,
    tag: Annotated[
        str | None, typer.Option(help="Mount tag, for a front-end that asks the device for it.")
    ] = None,
    readonly: Annotated[bool, typer.Option("--readonly", help="Refuse writing.")] = False,
    queues: Annotated[
        int, typer.Option(help="Request queues that a front-end may use.", min=1, max=MAX_QUEUES)
    ] = 1,
    cache: Annotated[
        str | None, typer.Option(help=f"What a guest may cache: {', '.join(CACHE_MODES)}.")
    ] = None,
    options: Annotated[
        str, typer.Option(help="Further options: 'key=value;flag', for instance 'uid=1000'.")
    ] = "",
    virtiofsd_options: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="KEY=VALUE,…", help="Options in libvirt's form: source=…"),
    ] = None,
    swiotlb: Swiotlb = None,
    memory: MemoryKind = Memory.WHOLE,
    persistent: Persistent = False,
    log_level: Level = LogLevel.INFO,
    print_capabilities: Capabilities = False,
) -> None:
    """Share a directory by virtio-fs."""
    if print_capabilities:
        _print_capabilities("fs")
        return
    given = _given(virtiofsd_options or [])
    shared_dir = shared_dir or given.source
    if shared_dir is None:
        raise _wrong("give the directory to share: --shared-dir=DIRECTORY")
    from services.devicehost.devices import FsBackend
    from services.devicehost.standalone import StandaloneDevice

    items = [options, "ro" if readonly else "", f"queues={queues}", *given.share]
    if cache is not None:
        items.append(f"cache={cache}")
    spec = StandaloneDevice(
        FsBackend(str(shared_dir.absolute())),
        DEFAULT_TAG if tag is None else tag,
        _access(swiotlb, memory),
        ";".join(item for item in items if item),
        persistent=persistent,
        offers_config=tag is not None,
    )
    _serve("fs", spec, socket_path, fd, socket_group, log_level)


@app.command()
def net(
    socket_path: SocketPath = None,
    fd: SocketFd = None,
    socket_group: SocketGroup = None,
    tap: Annotated[
        str | None, typer.Option(help="TAP interface; made when it does not exist.")
    ] = None,
    mac: Annotated[
        str | None,
        typer.Option(help="MAC address, for a front-end that asks the device for it."),
    ] = None,
    swiotlb: Swiotlb = None,
    memory: MemoryKind = Memory.WHOLE,
    persistent: Persistent = False,
    log_level: Level = LogLevel.INFO,
    print_capabilities: Capabilities = False,
) -> None:
    """Join a guest to a TAP interface by virtio-net."""
    if print_capabilities:
        _print_capabilities("net")
        return
    if tap is None:
        raise _wrong("give the TAP interface: --tap=NAME")
    from services.devicehost.devices import NetBackend
    from services.devicehost.standalone import StandaloneDevice

    spec = StandaloneDevice(
        NetBackend(tap),
        tap,
        _access(swiotlb, memory),
        f"client_mac={mac}" if mac else "",
        persistent=persistent,
        offers_config=mac is not None,
    )
    _serve("net", spec, socket_path, fd, socket_group, log_level)


def _serve(
    name: str,
    spec: StandaloneDevice,
    socket_path: Path | None,
    fd: int | None,
    socket_group: str | None,
    log_level: LogLevel,
) -> None:
    from services.devicehost import standalone

    if (socket_path is None) == (fd is None):
        raise _wrong("give one of --socket-path and --fd")
    logging.basicConfig(
        level=log_level.upper(), format=f"%(asctime)s device-{name} %(levelname)s: %(message)s"
    )
    try:
        sock = standalone.open_socket(socket_path, fd, _group_id(socket_group))

        def ready() -> None:
            # A launcher may have closed its end of the pipe; the device goes on.
            with contextlib.suppress(OSError):
                os.write(1, f"porthole device {name} ready on unix:{sock.path}\n".encode())
            notify("READY=1")

        standalone.serve(spec, sock, ready)
    except (InvalidArgumentError, NotFoundError) as error:
        raise _wrong(f"{error.message} [{error.reason}]") from None


def _given(options: list[str]) -> VirtiofsdOptions:
    try:
        return parse(options)
    except InvalidArgumentError as error:
        raise _wrong(f"{error.message} [{error.reason}]") from None


def _access(swiotlb: str | None, memory: Memory) -> Access:
    from services.devicehost.memory import Aperture, Whole, WindowQuota, Windows

    if swiotlb is None:
        return Whole() if memory is Memory.WHOLE else Windows(WindowQuota())
    try:
        return Aperture(parse_token(f"swiotlb={swiotlb}"))
    except InvalidArgumentError as error:
        raise _wrong(f"--swiotlb: {error.message}") from None


def _group_id(name: str | None) -> int | None:
    if name is None:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise _wrong(f"--socket-group: there is no group {name!r}") from None


def _wrong(text: str) -> typer.Exit:
    fail(text)
    return typer.Exit(USAGE)


def _print_capabilities(kind: str) -> None:
    """Print one document of QEMU's docs/interop/vhost-user.json, VHostUserBackendCapabilities."""
    typer.echo(json.dumps({"type": kind}))
