"""`porthole device fs` and `net`: one device alone, for QEMU, libvirt or Cloud Hypervisor.

Owns the names of the flags; a flag that virtiofsd has, too, has the same name here. The device host
is imported only when a device is about to run.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from services.cli.arguments import LIMIT, PORT_MAPPING, parse_limit, parse_mapping
from services.cli.console import fail
from services.cli.daemon import LogLevel, pid_file, start_log
from services.cli.exit_codes import USAGE
from services.cli.sd_notify import notify
from services.cli.virtiofsd import reading
from services.cli.virtiofsd.options import Sets
from services.handshake.errors import InvalidArgumentError, NotFoundError
from services.handshake.options import (
    CACHE_MODES,
    MAX_QUEUES,
    OPPOSITES,
    RINGS_ANYWHERE,
    RINGS_INSIDE,
    SPOOFING_ALLOWED,
    SPOOFING_REFUSED,
)
from services.handshake.pool import parse_token
from services.handshake.xattr_map import parse_xattr_map

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.memory import Access
    from services.devicehost.standalone import StandaloneDevice

T = TypeVar("T")

app = typer.Typer(
    help="Run one device alone, in place of virtiofsd or passt.", no_args_is_help=True
)

DEFAULT_TAG: Final = "porthole"
"""Mount tag of a device without --tag; its front-end, for instance QEMU, has the guest's tag."""


class Memory(StrEnum):
    """How a device without a token reaches guest memory."""

    WHOLE = "whole"
    WINDOWS = "windows"


class Rings(StrEnum):
    """Where a guest may have the rings of a device with a token: RINGS_MODES."""

    ANYWHERE = RINGS_ANYWHERE
    INSIDE = RINGS_INSIDE


class Spoofing(StrEnum):
    """Whether a guest may send under the addresses of other stations: SPOOFING_MODES."""

    ALLOW = SPOOFING_ALLOWED
    REFUSE = SPOOFING_REFUSED


CAPABILITIES: Final = {
    "fs": {
        "type": "fs",
        # Of virtiofsd: that options have names of their own, without -o, and that these two have
        # the modes never, auto and always.
        "features": [
            "posix-acl-negotiation-mode",
            "security-label-negotiation-mode",
            "separate-options",
        ],
    },
    "net": {"type": "net"},
}
"""What `--print-capabilities` prints: documents of QEMU's docs/interop/vhost-user.json."""

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
RingsKind = Annotated[
    Rings,
    typer.Option(
        "--rings",
        help="With --swiotlb: inside maps nothing but the pool, for guests with their rings there.",
    ),
]
Persistent = Annotated[
    bool,
    typer.Option("--persistent", help="Wait for the next front-end when one has disconnected."),
]
Level = Annotated[LogLevel, typer.Option("--log-level", help="Least severity that is logged.")]
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


@app.command(
    # What is left is read by the table of virtiofsd's options.
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
        "help_option_names": ["-h", "--help"],
    },
    epilog="All options of virtiofsd 1.14 and 7.2 are known: docs/virtiofsd.md has what becomes of "
    "each.",
)
def fs(
    ctx: typer.Context,
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
        str | None,
        typer.Option(help=f"What a guest may cache: {', '.join(CACHE_MODES)}, never, metadata."),
    ] = None,
    options: Annotated[
        str, typer.Option(help="Further options: 'key=value;flag', for instance 'uid=1000'.")
    ] = "",
    virtiofsd_options: Annotated[
        list[str] | None,
        typer.Option("-o", metavar="KEY=VALUE,…", help="Options of virtiofsd: source=…"),
    ] = None,
    swiotlb: Swiotlb = None,
    memory: MemoryKind = Memory.WHOLE,
    rings: RingsKind = Rings.ANYWHERE,
    persistent: Persistent = False,
    log_level: Level = LogLevel.INFO,
    print_capabilities: Capabilities = False,
) -> None:
    """Share a directory by virtio-fs."""
    if print_capabilities:
        _print_capabilities("fs")
        return
    given = _given(ctx.args, virtiofsd_options or [], cache)
    settings = given.settings
    if Sets.VERSION in settings:
        typer.echo(f"porthole-fs {metadata.version('porthole')}")
        return
    if shared_dir is None and Sets.SOURCE in settings:
        shared_dir = Path(settings[Sets.SOURCE])
    if socket_path is None and Sets.SOCKET_PATH in settings:
        socket_path = Path(settings[Sets.SOCKET_PATH])
    if shared_dir is None:
        raise _wrong("give the directory to share: --shared-dir=DIRECTORY")
    from services.devicehost.devices import FsBackend
    from services.devicehost.standalone import StandaloneDevice

    items = [
        *_permitted(options),
        options,
        "ro" if readonly else "",
        f"queues={queues}",
        *_placing(rings),
        *given.share,
        _xattr(settings),
    ]
    spec = StandaloneDevice(
        FsBackend(str(shared_dir.absolute())),
        DEFAULT_TAG if tag is None else tag,
        _access(swiotlb, memory),
        ";".join(item for item in items if item),
        persistent=persistent,
        offers_config=tag is not None,
    )
    start = _Start(
        socket_path,
        fd,
        socket_group,
        LogLevel(settings.get(Sets.LOG_LEVEL, log_level)),
        syslog=Sets.SYSLOG in settings,
        most_descriptors=int(settings.get(Sets.DESCRIPTORS, 0)),
        notes=tuple(given.notes),
        pid_file=True,
    )
    _serve("fs", spec, start)


@app.command()
def net(
    socket_path: SocketPath = None,
    fd: SocketFd = None,
    socket_group: SocketGroup = None,
    tap: Annotated[
        str | None, typer.Option(help="TAP interface; made when it does not exist.")
    ] = None,
    bridge: Annotated[
        str, typer.Option(help="Bridge of the host that the TAP becomes a port of.")
    ] = "",
    user: Annotated[
        bool, typer.Option("--user", help="A user-mode network instead, by passt; no right needed.")
    ] = False,
    mac: Annotated[
        str | None,
        typer.Option(help="MAC address, for a front-end that asks the device for it."),
    ] = None,
    queues: Annotated[
        int,
        typer.Option(
            help="Pairs of queues that a front-end may use, of a TAP.", min=1, max=MAX_QUEUES
        ),
    ] = 1,
    passt: Annotated[
        str, typer.Option(envvar="PORTHOLE_PASST", help="The program: a path, or a name on PATH.")
    ] = "passt",
    client_ip: Annotated[
        str | None, typer.Option(help="The guest's IPv4 address, with its prefix length.")
    ] = None,
    client_ip_ipv6: Annotated[
        str | None, typer.Option(help="The guest's IPv6 address, with its prefix length.")
    ] = None,
    gateway_ip: Annotated[str | None, typer.Option(help="The guest's IPv4 gateway.")] = None,
    gateway_ip_ipv6: Annotated[str, typer.Option(help="The guest's IPv6 gateway.")] = "",
    dns: Annotated[
        list[str] | None, typer.Option(help="Name server that the guest is told of; repeatable.")
    ] = None,
    search: Annotated[
        list[str] | None, typer.Option(help="Search domain that the guest is told of; repeatable.")
    ] = None,
    dns_forward: Annotated[
        list[str] | None,
        typer.Option(help="Address at which the guest's queries are taken, for --dns-host."),
    ] = None,
    dns_host: Annotated[
        list[str] | None, typer.Option(help="Name server for them; by default the host's first.")
    ] = None,
    host_loopback: Annotated[
        list[str] | None,
        typer.Option(help="Address at which the guest reaches the host's loopback."),
    ] = None,
    mtu: Annotated[
        int | None, typer.Option(help="Bytes of payload per frame; by default 65520.")
    ] = None,
    port: Annotated[
        list[str] | None,
        typer.Option(
            metavar=PORT_MAPPING,
            help="Port of the host, by default on 127.0.0.1, that is forwarded to the guest; TCP "
            "without /udp. 0: a free one, which the log names. Repeatable.",
        ),
    ] = None,
    limit_tx: Annotated[
        str | None,
        typer.Option(
            metavar=LIMIT,
            help="How fast frames may go that the guest sends: bytes (not bits) of frames per "
            "second, and frames per second.",
        ),
    ] = None,
    limit_rx: Annotated[
        str | None, typer.Option(metavar=LIMIT, help="The same of frames that it gets.")
    ] = None,
    spoofing: Annotated[
        Spoofing,
        typer.Option(help="refuse, with --mac: drop frames under addresses of other stations."),
    ] = Spoofing.ALLOW,
    swiotlb: Swiotlb = None,
    memory: MemoryKind = Memory.WHOLE,
    rings: RingsKind = Rings.ANYWHERE,
    persistent: Persistent = False,
    log_level: Level = LogLevel.INFO,
    print_capabilities: Capabilities = False,
) -> None:
    """Join a guest to a TAP interface or a user-mode network by virtio-net."""
    if print_capabilities:
        _print_capabilities("net")
        return
    if (tap is None) == (not user):
        raise _wrong("give one of --tap=NAME and --user")
    if spoofing is Spoofing.REFUSE and mac is None:
        raise _wrong("--spoofing=refuse needs the guest's own address; give --mac as well")
    from services.devicehost.devices import NetBackend, UserBackend, UserSettings
    from services.devicehost.standalone import StandaloneDevice

    of_user = {
        "--client-ip": client_ip,
        "--client-ip-ipv6": client_ip_ipv6,
        "--gateway-ip": gateway_ip,
        "--gateway-ip-ipv6": gateway_ip_ipv6,
        "--dns": dns,
        "--search": search,
        "--dns-forward": dns_forward,
        "--dns-host": dns_host,
        "--host-loopback": host_loopback,
        "--mtu": mtu,
        "--port": port,
    }
    backend: NetBackend | UserBackend
    if tap is not None:
        if given := [flag for flag, value in of_user.items() if value]:
            raise _wrong(f"{given[0]} goes with --user; what a TAP leads to is set up on the host")
        backend = NetBackend(tap, bridge)
    elif bridge:
        raise _wrong("--bridge goes with --tap; a user-mode network has no interface of the host")
    else:
        settings = UserSettings(
            dns=tuple(dns or ()),
            search_domains=tuple(search or ()),
            dns_forward=tuple(dns_forward or ()),
            dns_host=tuple(dns_host or ()),
            host_loopback=tuple(host_loopback or ()),
            gateway_ip_ipv6=gateway_ip_ipv6,
        )
        backend = UserBackend(settings if mtu is None else replace(settings, mtu=mtu), passt)
    options = {
        "queues": queues,
        "client_mac": mac,
        "client_ip": client_ip,
        "client_ip_ipv6": client_ip_ipv6,
        "gateway_ip": gateway_ip,
        "limit_tx": limit_tx and _parsed("--limit-tx", parse_limit, limit_tx),
        "limit_rx": limit_rx and _parsed("--limit-rx", parse_limit, limit_rx),
        "spoofing": spoofing if spoofing is Spoofing.REFUSE else None,
    }
    spec = StandaloneDevice(
        backend,
        tap or "user",
        _access(swiotlb, memory),
        ";".join(
            [*(f"{key}={value}" for key, value in options.items() if value), *_placing(rings)]
        ),
        persistent=persistent,
        ports=tuple(_parsed("--port", parse_mapping, text) for text in port or ()),
        offers_config=mac is not None,
    )
    _serve("net", spec, _Start(socket_path, fd, socket_group, log_level))


def _parsed(flag: str, parse: Callable[[str], T], text: str) -> T:
    """Parse a value; what is wrong with it is one line, without the usage that typer prints."""
    try:
        return parse(text)
    except typer.BadParameter as error:
        raise _wrong(f"{flag}: {error.message}") from None


@dataclass(frozen=True, slots=True)
class _Start:
    """How the process starts.

    Attributes:
        most_descriptors: The most descriptors that it may have; 0: no limit of its own.
        notes: Lines for the log.
        pid_file: Whether `<socket_path>.pid` gets the process id, as virtiofsd's does.
    """

    socket_path: Path | None
    fd: int | None
    socket_group: str | None
    log_level: LogLevel
    syslog: bool = False
    most_descriptors: int = 0
    notes: tuple[str, ...] = ()
    pid_file: bool = False


def _serve(name: str, spec: StandaloneDevice, start: _Start) -> None:
    from services.devicehost import standalone

    if (start.socket_path is None) == (start.fd is None):
        raise _wrong("give one of --socket-path and --fd")
    start_log(name, start.log_level, start.notes, syslog=start.syslog)
    standalone.serve_one_guest()
    try:
        if start.most_descriptors:
            standalone.limit_descriptors(start.most_descriptors)
        sock = standalone.open_socket(start.socket_path, start.fd, _group_id(start.socket_group))

        def ready() -> None:
            # A launcher may have closed its end of the pipe; the device goes on.
            with contextlib.suppress(OSError):
                os.write(1, f"porthole device {name} ready on unix:{sock.path}\n".encode())
            notify("READY=1")

        with pid_file(start.socket_path if start.pid_file else None):
            standalone.serve(spec, sock, ready)
    except (InvalidArgumentError, NotFoundError) as error:
        raise _wrong(f"{error.message} [{error.reason}]") from None


def _given(rest: list[str], legacy: list[str], cache: str | None) -> reading.Given:
    try:
        given = reading.read([*(word for text in legacy for word in ("-o", text)), *rest])
        if cache is not None:
            # Here, "none" is a value of this option, too.
            reading.take(given, "-o cache" if cache == "none" else "--cache", cache)
    except InvalidArgumentError as error:
        raise _wrong(f"{error.message} [{error.reason}]") from None
    return given


def _permitted(options: str) -> list[str]:
    """Return the options for what a guest may leave on the host unless `options` say so.

    It is all that virtiofsd lets it leave there: the guest's root may be the share.
    """
    given = set(options.split(";"))
    return [key for key, opposite in OPPOSITES.items() if not given & {key, opposite}]


def _xattr(settings: dict[Sets, str]) -> str:
    """Return the option of the share for virtiofsd's options of extended attributes."""
    rules = settings.get(Sets.XATTR_MAP)
    try:
        value = settings.get(Sets.XATTR) if rules is None else parse_xattr_map(rules).text()
    except InvalidArgumentError as error:
        raise _wrong(f"--xattrmap: {error.message} [{error.reason}]") from None
    return f"xattr={value}" if value else ""


def _access(swiotlb: str | None, memory: Memory) -> Access:
    from services.devicehost.memory import Aperture, Whole, WindowQuota, Windows

    if swiotlb is None:
        return Whole() if memory is Memory.WHOLE else Windows(WindowQuota())
    try:
        return Aperture(parse_token(f"swiotlb={swiotlb}"))
    except InvalidArgumentError as error:
        raise _wrong(f"--swiotlb: {error.message}") from None


def _placing(rings: Rings) -> list[str]:
    """Return the option of the device; the default leaves it to --options."""
    return [f"rings={rings}"] if rings is not Rings.ANYWHERE else []


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
    typer.echo(json.dumps(CAPABILITIES[kind]))
