"""The namespaces of the demonstration, which isolate it from the host: its network and its mounts.

Owns the contact with the kernel. Root has them, and any other user in a user namespace, if the
machine gives them one; `enter` says what is missing. The network has one interface with
one address and a default route, and a name server (servers.py) is set for it.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.cli.demo.servers import HOST
from services.handshake.errors import FailedPreconditionError
from services.rpc import user_namespace
from services.rpc.user_namespace import (
    CAP_NET_ADMIN,
    CAP_SYS_ADMIN,
    NEW_MOUNTS,
    NEW_NETWORK,
    has_capabilities,
)

NAT: Final = "nat"
VIRTIO_PROXY: Final = "virtio-proxy"

_TUN: Final = "/dev/net/tun"
_FUSE: Final = "/dev/fuse"
_PREFIX: Final = 24
_NEXT_HOP: Final = "192.0.2.254"
"""Of the default route, without which passt would not know which interface is the outer one."""
_RESOLVER: Final = Path("/etc/resolv.conf")
_GROUPS: Final = Path("/proc/sys/net/ipv4/ping_group_range")
_ALL_GROUPS: Final = "0 2147483647"

# include/uapi/linux/mount.h
_MS_BIND: Final = 0x1000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What can be shown.

    Attributes:
        mount: Whether a real mount point can be.
        networks: The networking modes that can be.
        lacks: What cannot be, "mount", "network" or "passt", as sentences with the reason.
    """

    mount: bool
    networks: frozenset[str]
    lacks: dict[str, str]


def enter(passt: str, out: Path) -> Surroundings:
    """Move this process into network and mount namespaces of its own.

    Child processes inherit them. The host's interfaces, routes and mount table never change, and
    the kernel removes the namespaces when the last process has ended. Call it before any thread is
    started. Without the rights for it nothing happens; then the process cannot change the host's
    namespaces either.

    Args:
        passt: The program of user-mode networks; empty: there is none.
        out: A directory of the demonstration.

    Raises:
        OSError: The kernel refused what it does not refuse elsewhere.
    """
    is_root = has_capabilities(CAP_SYS_ADMIN, CAP_NET_ADMIN)
    lacks = {}
    mount = is_root and os.access(_FUSE, os.R_OK | os.W_OK)
    if not mount:
        needs = _FUSE if is_root else "root"
        lacks["mount"] = f"a real mount point: not shown, it needs {needs}"
    why = ""
    if is_root:
        user_namespace.unshare(NEW_NETWORK | NEW_MOUNTS)
        if not os.access(_TUN, os.R_OK | os.W_OK):
            why = f"it needs {_TUN}"
    else:
        try:
            user_namespace.enter(NEW_NETWORK | NEW_MOUNTS)
        except FailedPreconditionError as error:
            why = error.message
    if why:
        lacks["network"] = f"the network (ping, names, HTTP, mapped ports): not shown, {why}"
        return Surroundings(mount, frozenset(), lacks)
    _make_network()
    if is_root:
        _GROUPS.write_text(_ALL_GROUPS)
    else:
        _GROUPS.write_text(f"{os.getegid()} {os.getegid()}")
    networks = {NAT} if is_root else set()
    if passt:
        _set_name_server(out / "resolv.conf")
        networks.add(VIRTIO_PROXY)
    else:
        lacks["passt"] = (
            "VirtioProxy, names and mapped ports: not shown, they need passt (`make passt`)"
        )
    return Surroundings(mount, frozenset(networks), lacks)


def _make_network() -> None:
    # Imported here, because the import takes a quarter of a second.
    from pyroute2 import IPRoute

    with IPRoute() as routes:
        routes.link("set", index=routes.link_lookup(ifname="lo")[0], state="up")
        routes.link("add", ifname="host0", kind="tuntap", mode="tap")
        [index] = routes.link_lookup(ifname="host0")
        routes.addr("add", index=index, address=HOST, prefixlen=_PREFIX)
        routes.link("set", index=index, state="up")
        routes.route("add", dst="default", gateway=_NEXT_HOP, oif=index)


def _set_name_server(file: Path) -> None:
    """Let this process and its children see another /etc/resolv.conf."""
    file.write_text("nameserver 127.0.0.1\n")
    libc = ctypes.CDLL(None, use_errno=True)
    bind = ctypes.c_ulong(_MS_BIND)
    if libc.mount(bytes(file), bytes(_RESOLVER), None, bind, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", str(_RESOLVER))
