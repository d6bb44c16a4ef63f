"""The guest's network stack: an anonymous network namespace with TAP interfaces in it.

Owns the namespace, what is configured in it, and running code inside it. It lives as long as its
descriptor; tools enter it with `nsenter --net=/proc/<pid>/fd/<fd> ip addr`. Must not know virtio;
tap.py moves the frames.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from pyroute2 import IPRoute
from pyroute2.netlink import rtnl
from pyroute2.netlink.exceptions import NetlinkError

from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.wire import tun
from services.wire.virtio_net import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

MAX_INTERFACE_NAME_BYTES: Final = 15
"""IFNAMSIZ (linux/if.h) without the terminating NUL."""

_CLONE_NEWNET: Final = 0x40000000
"""linux/sched.h."""
_IFA_F_NODAD: Final = 0x02
_RTN_LOCAL: Final = 2
"""linux/if_addr.h."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class NetworkNamespace:
    """A new network namespace, which a descriptor keeps alive.

    Attributes:
        fd: The descriptor; `nsenter --net=/proc/<pid>/fd/<fd>` enters the namespace.
    """

    def __init__(self) -> None:
        """Make the namespace, with the loopback interface up.

        Raises:
            FailedPreconditionError: NETNS_UNAVAILABLE; it names the missing right.
        """
        self.fd = _in_new_thread(_unshare)
        try:
            self.run(_loopback_up)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[[], T]) -> T:
        """Run a function inside the namespace, in a new thread, and wait for it.

        Sockets that the function opens stay in this namespace, whichever thread uses them.

        Raises:
            FailedPreconditionError: NETNS_UNAVAILABLE.
            Exception: Any exception of the function.
        """

        def inside() -> T:
            if _libc.setns(self.fd, _CLONE_NEWNET) != 0:
                raise _unavailable("entering", ctypes.get_errno())
            return function()

        return _in_new_thread(inside)

    def add_tap(self, name: str, queues: int = 1) -> list[int]:
        """Make a TAP interface inside the namespace, down, without addresses and offloads.

        Args:
            name: 1 to 15 bytes.
            queues: Its pairs of queues.

        Returns:
            A non-blocking descriptor for each pair, which reads and writes Ethernet frames behind
            headers of virtio-net; the interface disappears when all are closed.

        Raises:
            InvalidArgumentError: INTERFACE_NAME.
            FailedPreconditionError: NETNS_UNAVAILABLE; it names the missing right.
        """
        return self.run(lambda: _open_tap(name, queues))

    def configure(
        self,
        name: str,
        *,
        mac: bytes,
        mtu: int,
        address: str = "",
        gateway: str = "",
        address_ipv6: str = "",
    ) -> None:
        """Give an interface its hardware address, size and addresses, and bring it up.

        Args:
            name: An interface in this namespace.
            mac: 6 bytes.
            mtu: Bytes of payload per frame.
            address: "192.0.2.2/24", IPv4 or IPv6; empty for none.
            gateway: Next hop of the default route; empty for none.
            address_ipv6: One more; a router of IPv6 announces itself.

        Raises:
            InvalidArgumentError: INTERFACE_ADDRESS.
            FailedPreconditionError: INTERFACE_REFUSED, when the kernel refuses the configuration.
        """
        addresses = [each for each in (address, address_ipv6) if each]
        interfaces, next_hop = _parse_addresses(addresses, gateway)
        try:
            self.run(lambda: _configure(name, mac, mtu, interfaces, next_hop))
        except (NetlinkError, OSError) as error:
            raise FailedPreconditionError(
                "INTERFACE_REFUSED",
                f"interface {name}: the kernel refuses address {', '.join(addresses) or 'none'}, "
                f"gateway {gateway or 'none'}, MTU {mtu}: {error}",
                interface=name,
            ) from error

    def close(self) -> None:
        """Close the descriptor; the namespace ends with its last process, socket and TAP."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


_Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _in_new_thread(function: Callable[[], T]) -> T:
    # A thread that has changed its namespace must not be used again, so each call gets a new one.
    outcome: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name="porthole-netns", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def _unshare() -> int:
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise _unavailable("making", ctypes.get_errno())
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _unavailable(what: str, number: int) -> FailedPreconditionError:
    remedy = (
        "it needs CAP_SYS_ADMIN; run the guest as root, or use its Python API without a namespace"
        if number == errno.EPERM
        else os.strerror(number)
    )
    return FailedPreconditionError(
        "NETNS_UNAVAILABLE", f"{what} a network namespace: {remedy}", errno=number
    )


def _open_tap(name: str, queues: int) -> list[int]:
    raw = name.encode()
    if not 0 < len(raw) <= MAX_INTERFACE_NAME_BYTES or set(name) & set("/:% \t\n\0"):
        raise InvalidArgumentError(
            "INTERFACE_NAME",
            f"interface name {name!r} must have 1 to {MAX_INTERFACE_NAME_BYTES} bytes, without "
            "'/', ':', '%' and white space",
            interface=name,
        )
    fds: list[int] = []
    flags = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
    if queues > 1:
        flags |= tun.IFF_MULTI_QUEUE
    try:
        for _ in range(queues):
            fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            fcntl.ioctl(fds[-1], tun.TUNSETIFF, tun.IFREQ_FLAGS.pack(raw, flags))
            fcntl.ioctl(fds[-1], tun.TUNSETVNETHDRSZ, tun.INT.pack(HEADER_BYTES))
            fcntl.ioctl(fds[-1], tun.TUNSETVNETLE, tun.INT.pack(1))
    except OSError as error:
        for fd in fds:
            os.close(fd)
        raise FailedPreconditionError(
            "NETNS_UNAVAILABLE",
            f"making TAP interface {name}: {error.strerror}; it needs access to /dev/net/tun "
            "and CAP_NET_ADMIN",
            errno=error.errno or 0,
        ) from error
    return fds


def _loopback_up() -> None:
    with IPRoute() as netlink:
        netlink.link("set", index=1, state="up")


def _configure(
    name: str, mac: bytes, mtu: int, interfaces: Sequence[_Interface], gateway: _Address | None
) -> None:
    # Addresses are used at once: nobody else has them. So the link-local one, from which a router
    # is asked for, does not wait a second either.
    settings = Path("/proc/sys/net/ipv6/conf", name)
    with contextlib.suppress(OSError):
        settings.joinpath("accept_dad").write_text("0")
        if gateway is None:
            # It is the way to its own network only, whatever a router announces there.
            settings.joinpath("accept_ra").write_text("0")
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=name)
        netlink.link("set", index=index, address=mac.hex(":"), mtu=mtu)
        netlink.link("set", index=index, state="up")
        for interface in interfaces:
            _add_address(netlink, index, interface)
        if gateway is not None:
            netlink.route("add", dst="default", gateway=str(gateway), oif=index, **_family(gateway))


def _add_address(netlink: IPRoute, index: int, interface: _Interface) -> None:
    address, length = str(interface.ip), interface.network.prefixlen
    if interface.version == 4:
        netlink.addr("add", index=index, address=address, prefixlen=length)
        return
    with IPRoute() as events:
        events.bind(groups=rtnl.RTMGRP_IPV6_ROUTE)
        # Duplicate address detection takes a second. Without it the kernel still makes the address
        # usable later (addrconf_dad_work), and sends a message then.
        netlink.addr("add", index=index, address=address, prefixlen=length, flags=_IFA_F_NODAD)
        while not any(_is_own(route, address) for route in events.get()):
            pass


def _is_own(route: Any, address: str) -> bool:
    return bool(route.get("type") == _RTN_LOCAL and route.get_attr("RTA_DST") == address)


def _family(address: _Address) -> dict[str, int]:
    return {"family": socket.AF_INET if address.version == 4 else socket.AF_INET6}


def _parse_addresses(
    addresses: Sequence[str], gateway: str
) -> tuple[list[_Interface], _Address | None]:
    try:
        return (
            [ipaddress.ip_interface(address) for address in addresses],
            ipaddress.ip_address(gateway) if gateway else None,
        )
    except ValueError as error:
        raise InvalidArgumentError(
            "INTERFACE_ADDRESS",
            f"address {', '.join(addresses)!r} and gateway {gateway!r}: {error}; write for "
            "instance 192.0.2.2/24 and 192.0.2.1",
            address=", ".join(addresses),
            gateway=gateway,
        ) from None
