"""The namespaces of the demonstration, which isolate it from the host, and an HTTP server in them.

Owns the contact with the kernel. All of it needs root; `lacks` returns the parts that are missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
import urllib.parse
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# include/uapi/linux/sched.h and include/uapi/linux/mount.h
_CLONE_NEWNS: Final = 0x0002_0000
_CLONE_NEWNET: Final = 0x4000_0000
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18

# include/uapi/linux/capability.h
_CAP_NET_ADMIN: Final = 12
_CAP_SYS_ADMIN: Final = 21


@dataclass(frozen=True, slots=True)
class _Need:
    what: str
    device: str
    capabilities: tuple[int, ...]


_NEEDS: Final = {
    "mount": _Need("a real mount point", "/dev/fuse", (_CAP_SYS_ADMIN,)),
    "network": _Need(
        "ping and HTTP through the adapters", "/dev/net/tun", (_CAP_SYS_ADMIN, _CAP_NET_ADMIN)
    ),
}


def has_capabilities(*numbers: int) -> bool:
    """Return whether these capabilities are effective; root may lack them."""
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return all(int(effective, 16) >> number & 1 for number in numbers)


def lacks() -> dict[str, str]:
    """Return the parts that cannot be shown here, "mount" or "network", each with the reason."""
    missing = {}
    for name, need in _NEEDS.items():
        if not has_capabilities(*need.capabilities):
            missing[name] = f"{need.what}: not shown, it needs root"
        elif not os.access(need.device, os.R_OK | os.W_OK):
            missing[name] = f"{need.what}: not shown, it needs {need.device}"
    return missing


def enter() -> None:
    """Move this process into network and mount namespaces of its own, with only loopback up.

    Child processes inherit them. The host's interfaces, routes and mount table never change, and
    the kernel removes the namespaces when the last process has ended. Call it before any thread is
    started. Without the capabilities it does nothing; then the process cannot change the host's
    namespaces either.

    Raises:
        OSError: The kernel refused.
    """
    if not has_capabilities(_CAP_SYS_ADMIN, _CAP_NET_ADMIN):
        return
    # Imported here, because the import takes a quarter of a second.
    from pyroute2 import IPRoute

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS) != 0:
        raise _failed("unshare")
    # systemd makes the root shared, so that without this a mount would propagate to the host.
    if libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0:
        raise _failed("mount")
    with IPRoute() as routes:
        routes.link("set", index=routes.link_lookup(ifname="lo")[0], state="up")


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base's
        """Log nothing: the demonstration reports the guest's requests."""


@contextlib.contextmanager
def http_server(address: str, directory: Path) -> Iterator[str]:
    """Serve a directory on an address of this namespace; yields its URL, with a final slash.

    Raises:
        OSError: No interface has the address.
    """
    handler = functools.partial(_QuietHandler, directory=str(directory))
    with ThreadingHTTPServer((address, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="demo-http")
        thread.start()
        try:
            yield f"http://{address}:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def quote(path: bytes) -> str:
    """Quote the path of a file for a URL."""
    return urllib.parse.quote(path)


def _failed(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
