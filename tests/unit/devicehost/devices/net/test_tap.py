"""TAP interfaces of the kernel: opening them, their errors, frames through one."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from services.devicehost.devices.net.tap import Tap, TapQueue
from services.devicehost.devices.net.tap import interface as tap_module
from services.devicehost.devices.net.tap.bridge import join
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.simguest.net.namespace import NetworkNamespace
from services.wire import virtio_net
from services.wire.virtio_net import HDR_F_NEEDS_CSUM, HEADER, HEADER_BYTES, NetHeader
from tests.support.descriptors import open_descriptors
from tests.unit.devicehost.devices.net.conftest import OFFLOADS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# linux/if_tun.h
TUNSETPERSIST = 0x400454CB
TUNSETOFFLOAD = 0x400454D0
TUN_F_CSUM = 0x01

MAC = bytes.fromhex("525400123456")


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with NetworkNamespace() as made:
        yield made


def test_a_bridge_has_the_name_of_an_interface() -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        Tap("tap0", bridge="a/b")
    assert raised.value.reason == "TAP_NAME"


@pytest.mark.parametrize("name", ["", "a" * 16, "é" * 8, "a/b", "tap%d", "a b", "a:b", ".", ".."])
def test_names_that_no_interface_may_have(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        Tap(name)
    assert raised.value.reason == "TAP_NAME"


@pytest.mark.parametrize(
    ("number", "reason", "remedy"),
    [
        (errno.EPERM, "TAP_NOT_PERMITTED", "CAP_NET_ADMIN"),
        (errno.EBUSY, "TAP_BUSY", "close that one"),
        (errno.EINVAL, "TAP_NOT_A_TAP", "another name"),
        (errno.ENODEV, "TAP_UNAVAILABLE", "load the tun module"),
        (errno.EMFILE, "TAP_UNAVAILABLE", os.strerror(errno.EMFILE)),
    ],
)
def test_what_the_kernel_refuses_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, reason: str, remedy: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    (tmp_path / "tun").touch()
    monkeypatch.setattr(tap_module, "TUN_DEVICE", str(tmp_path / "tun"))
    monkeypatch.setattr("fcntl.ioctl", refuse)
    with pytest.raises(FailedPreconditionError) as raised:
        Tap("tap0")
    assert raised.value.reason == reason
    assert remedy in raised.value.message
    assert open_descriptors(tmp_path) == []


def test_without_the_tun_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tap_module, "TUN_DEVICE", str(tmp_path / "tun"))
    with pytest.raises(FailedPreconditionError) as raised:
        Tap("tap0")
    assert raised.value.reason == "TAP_UNAVAILABLE"


@pytest.mark.tap
def test_an_interface_that_is_open_already(namespace: NetworkNamespace) -> None:
    first = namespace.run(lambda: Tap("tap0"))
    try:
        with pytest.raises(FailedPreconditionError) as raised:
            namespace.run(lambda: Tap("tap0"))
        assert raised.value.reason == "TAP_BUSY"
    finally:
        first.close()
    namespace.run(lambda: Tap("tap0")).close()


@pytest.mark.tap
def test_an_interface_that_is_no_tap(namespace: NetworkNamespace) -> None:
    with pytest.raises(FailedPreconditionError) as raised:
        namespace.run(lambda: Tap("lo"))
    assert raised.value.reason == "TAP_NOT_A_TAP"


@pytest.mark.tap
def test_frames_pass_both_ways(namespace: NetworkNamespace) -> None:
    tap = namespace.run(lambda: Tap("tap0"))
    try:
        assert tap.mtu == 1500
        with pytest.raises(OSError) as down:
            tap.queues[0].write([bytes(HEADER_BYTES), bytes(60)])
        assert down.value.errno == errno.EIO
        namespace.configure("tap0", mac=MAC, mtu=1500, address="192.0.2.1/24")
        raw = namespace.run(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
        with raw:
            namespace.run(lambda: raw.bind(("tap0", 0x88B5)))  # an EtherType for experiments
            frame = MAC + bytes.fromhex("020000000001") + b"\x88\xb5" + b"to the host".ljust(50)
            tap.queues[0].write([bytes(HEADER_BYTES), memoryview(frame)])
            raw.settimeout(5)
            assert raw.recv(2000) == frame
            raw.send(frame[::-1][:12] + b"\x88\xb5" + b"from the host".ljust(50))
        received = b""
        while b"from the host" not in received:
            assert select.select([tap.queues[0].fd], [], [], 5)[0]
            buffer = bytearray(2000)
            received = bytes(buffer[: tap.queues[0].read(buffer)])
        assert received[HEADER_BYTES + 12 : HEADER_BYTES + 14] == b"\x88\xb5"
    finally:
        tap.close()
        tap.close()


@pytest.mark.tap
def test_an_interface_that_had_offloads_has_none(namespace: NetworkNamespace) -> None:
    """An interface that outlives its users keeps the offloads that the last of them has set."""
    before = namespace.run(lambda: Tap("tap0"))
    try:
        fcntl.ioctl(before.queues[0].fd, TUNSETPERSIST, 1)
        fcntl.ioctl(before.queues[0].fd, TUNSETOFFLOAD, TUN_F_CSUM)
    finally:
        before.close()
    tap = namespace.run(lambda: Tap("tap0"))
    try:
        fcntl.ioctl(tap.queues[0].fd, TUNSETPERSIST, 0)
        namespace.configure("tap0", mac=MAC, mtu=1500, address="192.0.2.1/24")
        sender = namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(b"to all", ("192.0.2.255", 9))
        received = b""
        while b"to all" not in received:
            assert select.select([tap.queues[0].fd], [], [], 5)[0]
            buffer = bytearray(2000)
            received = bytes(buffer[: tap.queues[0].read(buffer)])
        header = NetHeader._make(HEADER.unpack_from(received))
        assert not header.flags & HDR_F_NEEDS_CSUM, "the kernel has made the checksum itself"
        assert header.gso_type == 0
    finally:
        tap.close()


@pytest.mark.tap
def test_an_interface_that_is_deleted(namespace: NetworkNamespace) -> None:
    from pyroute2 import IPRoute

    def delete() -> None:
        with IPRoute() as netlink:
            netlink.link("del", index=netlink.link_lookup(ifname="tap0")[0])

    tap = namespace.run(lambda: Tap("tap0"))
    try:
        namespace.run(delete)
        with pytest.raises(OSError) as raised:
            tap.queues[0].read(bytearray(2000))
        assert raised.value.errno == errno.EBADFD
    finally:
        tap.close()


def broadcast(namespace: NetworkNamespace, words: bytes, times: int = 1) -> None:
    """Have the host's stack send datagrams to the TAP, each from a port of its own."""
    for _ in range(times):
        sender = namespace.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.sendto(words, ("192.0.2.255", 9))


def frames_with(queue: TapQueue, words: bytes) -> list[bytes]:
    buffer, found = bytearray(70000), []
    while length := queue.read(buffer):
        if words in buffer[:length]:
            found.append(bytes(buffer[:length]))
    return found


@pytest.mark.tap
def test_offloads_are_what_the_driver_takes(namespace: NetworkNamespace) -> None:
    tap = namespace.run(lambda: Tap("tap0"))
    try:
        assert tap.features & OFFLOADS == tap.features
        assert tap.features & virtio_net.F_GUEST_TSO4
        namespace.configure("tap0", mac=MAC, mtu=1500, address="192.0.2.1/24")
        tap.negotiate(virtio_net.F_GUEST_CSUM)
        broadcast(namespace, b"to be summed")
        assert select.select([tap.queues[0].fd], [], [], 5)[0]
        [frame] = frames_with(tap.queues[0], b"to be summed")
        assert NetHeader._make(HEADER.unpack_from(frame)).flags == HDR_F_NEEDS_CSUM
        broadcast(namespace, b"for the driver before")
        tap.negotiate(0)
        broadcast(namespace, b"summed")
        assert frames_with(tap.queues[0], b"for the driver before") == []
        broadcast(namespace, b"summed")
        [frame] = frames_with(tap.queues[0], b"summed")
        assert not NetHeader._make(HEADER.unpack_from(frame)).flags & HDR_F_NEEDS_CSUM
    finally:
        tap.close()


@pytest.mark.tap
def test_frames_are_spread_over_the_queues_that_are_used(namespace: NetworkNamespace) -> None:
    tap = namespace.run(lambda: Tap("tap0", 4))
    try:
        namespace.configure("tap0", mac=MAC, mtu=1500, address="192.0.2.1/24")
        for used in (4, 1, 2):
            tap.use(used)
            broadcast(namespace, b"spread", times=64)
            found = [len(frames_with(each, b"spread")) for each in tap.queues]
            assert sum(found) == 64
            assert [bool(count) for count in found] == [True] * used + [False] * (4 - used)
        with pytest.raises(FailedPreconditionError) as raised:
            namespace.run(lambda: Tap("tap0"))
        assert raised.value.reason == "TAP_NOT_A_TAP"
    finally:
        tap.close()
        tap.close()


def _links() -> dict[str, Any]:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        return {link.get("ifname"): link for link in netlink.get_links()}


def _add(name: str, kind: str, **more: object) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.link("add", ifname=name, kind=kind, **more)


def _set(name: str, **what: object) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.link("set", index=socket.if_nametoindex(name), **what)


@pytest.mark.tap
def test_an_interface_is_a_port_of_a_bridge_while_it_is_open(namespace: NetworkNamespace) -> None:
    namespace.run(lambda: _add("br0", "bridge"))
    namespace.run(lambda: _set("br0", mtu=1400))
    namespace.run(lambda: _add("kept", "tuntap", mode="tap"))
    for name in ("kept", "tap0"):
        tap = namespace.run(partial(Tap, name, bridge="br0"))
        links = namespace.run(_links)
        assert links[name].get_attr("IFLA_MASTER") == links["br0"]["index"]
        assert links[name]["flags"] & 1  # IFF_UP
        assert tap.mtu == links["br0"].get_attr("IFLA_MTU") == 1400
        namespace.run(tap.close)
    links = namespace.run(_links)
    assert set(links) == {"lo", "br0", "kept"}
    assert links["kept"].get_attr("IFLA_MASTER") is None


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
def test_a_bridge_that_the_kernel_refuses_has_a_remedy(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("services.devicehost.devices.net.tap.bridge.fcntl.ioctl", refuse)
    with pytest.raises(FailedPreconditionError, match="ip link set tap0 master br0") as raised:
        join("tap0", "br0")
    assert raised.value.reason == "BRIDGE_UNAVAILABLE"


@pytest.mark.tap
@pytest.mark.parametrize(
    ("bridge", "remedy"),
    [
        ("br7", "ip link add br7 type bridge"),
        ("lo", "is no bridge"),
        ("br0", "ip link set tap0 nomaster"),
    ],
    ids=["missing", "no bridge", "another bridge"],
)
def test_a_bridge_that_it_cannot_be_a_port_of(
    namespace: NetworkNamespace, bridge: str, remedy: str
) -> None:
    for name in ("br0", "br1"):
        namespace.run(partial(_add, name, "bridge"))
    index = namespace.run(_links)["br1"]["index"]
    namespace.run(lambda: _add("tap0", "tuntap", mode="tap"))
    namespace.run(lambda: _set("tap0", master=index))
    before = namespace.run(_links)
    with pytest.raises(FailedPreconditionError) as raised:
        namespace.run(lambda: Tap("tap0", bridge=bridge))
    assert raised.value.reason == "BRIDGE_UNAVAILABLE"
    assert bridge in raised.value.message
    assert remedy in raised.value.message
    after = namespace.run(_links)
    assert set(after) == set(before)
    assert after["tap0"].get_attr("IFLA_MASTER") == index
    namespace.run(lambda: Tap("tap0")).close()
