"""A pair of network namespaces: the host's end, with a server's address, and the guest's.

Owns addresses and namespaces, which are gone at the end. Must not know what joins the two.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER: Final = "192.0.2.1"
"""Where servers listen in the host's namespace; no network joins the guest to it directly."""
GUEST: Final = "10.0.2.15"
GATEWAY: Final = "10.0.2.2"
INTERFACE: Final = "eth0"
"""The guest's interface."""
DEADLINE_S: Final = 20.0

_numbers = itertools.count()


class NetworkError(Exception):
    """A network could not be set up, or does not carry what it should."""


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The names of the two namespaces."""

    host: str
    guest: str

    def in_host(self, *command: str) -> list[str]:
        """Return a command that runs in the host's namespace; it replaces itself by `command`."""
        return ["ip", "netns", "exec", self.host, *command]

    def in_guest(self, *command: str) -> list[str]:
        """Return a command that runs in the guest's namespace."""
        return ["ip", "netns", "exec", self.guest, *command]

    def guest_path(self) -> Path:
        """Return the path that other programs find the guest's namespace by."""
        return Path("/run/netns") / self.guest

    def configure_guest(self, mtu: int) -> None:
        """Give the guest's interface its address and its route."""
        ip("-n", self.guest, "link", "set", INTERFACE, "mtu", str(mtu), "up")
        ip("-n", self.guest, "address", "add", f"{GUEST}/24", "dev", INTERFACE)
        ip("-n", self.guest, "route", "add", "default", "via", GATEWAY)

    def configure_gateway(self, interface: str) -> None:
        """Make an interface of the host's namespace the guest's gateway."""
        ip("-n", self.host, "address", "add", f"{GATEWAY}/24", "dev", interface)
        ip("-n", self.host, "link", "set", interface, "up")

    def await_path(self) -> None:
        """Wait until the guest reaches the server.

        Raises:
            NetworkError: It does not, for DEADLINE_S.
        """
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            ping = self.in_guest("ping", "-q", "-n", "-c", "1", "-W", "1", SERVER)
            if subprocess.run(ping, capture_output=True, check=False).returncode == 0:
                return
        raise NetworkError(f"the guest has not reached {SERVER} for {DEADLINE_S:g} s")


def ip(*arguments: str) -> None:
    """Run the program ip.

    Raises:
        NetworkError: It failed.
    """
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NetworkError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


@contextlib.contextmanager
def pair() -> Iterator[Namespaces]:
    """Make two namespaces, and remove them at the end.

    Raises:
        NetworkError: This process may not make namespaces.
    """
    number = f"ph-bench-{os.getpid()}-{next(_numbers)}"
    both = Namespaces(f"{number}-host", f"{number}-guest")
    with contextlib.ExitStack() as stack:
        for name in (both.host, both.guest):
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", both.host, "link", "add", "outside", "type", "veth", "peer", "beyond")
        ip("-n", both.host, "link", "set", "beyond", "up")
        ip("-n", both.host, "address", "add", f"{SERVER}/24", "dev", "outside")
        ip("-n", both.host, "link", "set", "outside", "up")
        # User-mode networks take their own addresses from the interface with a default route, and
        # have sockets of ping(8) as ordinary users.
        ip("-n", both.host, "route", "add", "default", "via", "192.0.2.254")
        everybody = "net.ipv4.ping_group_range=0 2147483647"
        subprocess.run(
            both.in_host("sysctl", "-q", "-w", everybody), check=True, capture_output=True
        )
        yield both
