"""The link of an adapter, from what the host does to what the guest's programs see."""

from __future__ import annotations

import os
import signal
import socket
import struct
from functools import partial
from socket import AF_NETLINK
from typing import TYPE_CHECKING, Self

import pytest

from services.devicehost.host import UserBackend, UserSettings
from services.handshake import events
from services.simguest.net.namespace import NetworkNamespace
from tests.support.passt import PASST, passt_processes
from tests.unit.simguest.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.simguest.workload.workload import Workload

pytestmark = pytest.mark.tap

HOST, GUEST = "192.0.2.1", "192.0.2.2"
DEADLINE_S = 20.0

# linux/rtnetlink.h, linux/if_link.h
RTMGRP_LINK, RTM_NEWLINK, RTM_GETLINK, NLM_F_REQUEST = 1, 16, 18, 1
IFLA_CARRIER, IFLA_CARRIER_DOWN_COUNT = 33, 48


@pytest.fixture
def host() -> Iterator[NetworkNamespace]:
    """The host's side."""
    with NetworkNamespace() as made:
        yield made


@pytest.fixture
def rig(run_dir: Path) -> Iterator[Rig]:
    made = Rig(run_dir)
    yield made
    made.close()


class CarrierOf:
    """The carrier of the guest's eth0, as the guest's kernel reports it (rtnetlink(7)).

    The kernel may leave out the report of a loss that has ended meanwhile (net/core/link_watch.c),
    but counts it.
    """

    def __init__(self, workload: Workload) -> None:
        self._netlink = workload.in_network(lambda: socket.socket(AF_NETLINK, socket.SOCK_RAW, 0))
        self._index = workload.in_network(lambda: socket.if_nametoindex("eth0"))
        self._netlink.settimeout(DEADLINE_S)
        self._netlink.bind((0, RTMGRP_LINK))
        request = struct.pack(
            "=IHHIIBxHiII", 32, RTM_GETLINK, NLM_F_REQUEST, 0, 0, 0, 0, self._index, 0, 0
        )
        self._netlink.send(request)
        self.carrier, self.losses = self._next_report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._netlink.close()

    def wait_for(self, carrier: int, losses: int) -> None:
        """Wait until the carrier is so, after so many losses since the beginning."""
        seen = (self.carrier, 0)
        while seen != (carrier, losses):
            now, counted = self._next_report()
            seen = (now, counted - self.losses)

    def _next_report(self) -> tuple[int, int]:
        while True:
            data = self._netlink.recv(1 << 16)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                message, data = data[:length], data[(length + 3) & ~3 :]
                if kind == RTM_NEWLINK and struct.unpack_from("=i", message, 20)[0] == self._index:
                    found = _attributes(message[32:])
                    if IFLA_CARRIER in found and IFLA_CARRIER_DOWN_COUNT in found:
                        return found[IFLA_CARRIER][0], found[IFLA_CARRIER_DOWN_COUNT][0]


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def link_events(rig: Rig) -> list[tuple[object, object]]:
    return [
        (event.attributes[events.DEVICE_TAG], event.attributes[events.LINK])
        for event in rig.events
        if event.name == events.LINK_CHANGED
    ]


@pytest.mark.passt
def test_a_passt_that_is_killed_and_started_again(rig: Rig, host: NetworkNamespace) -> None:
    backend = UserBackend(passt=str(PASST))
    options = "client_ip=10.9.0.2/24;gateway_ip=10.9.0.1"
    host.run(lambda: rig.adapter("eth0", backend, "10.9.0.2/24", "10.9.0.1", options))
    with CarrierOf(rig.workload) as eth0:
        assert eth0.carrier == 1
        (pid,) = passt_processes()
        os.kill(pid, signal.SIGKILL)
        eth0.wait_for(carrier=1, losses=1)
    assert link_events(rig) == [("eth0", "down"), ("eth0", "up")]
    assert rig.counters("eth0").link_losses == 1


@pytest.mark.passt
def test_a_host_that_moves_to_another_network(rig: Rig, host: NetworkNamespace) -> None:
    """The guest is given new addresses once, and nothing for what does not matter to it."""
    move = partial(_move, host)
    move("up0", add=("198.51.100.5", "198.51.100.1"))
    backend = UserBackend(UserSettings(dns=("192.0.2.53",)), str(PASST))
    host.run(lambda: rig.adapter("eth0", backend, "", ""))
    assert lease(rig.workload) == ("198.51.100.5", "198.51.100.1")
    with CarrierOf(rig.workload) as eth0:
        move("up1", add=("192.0.2.9", ""))
        move("up0", add=("198.51.100.6", ""))
        move("up0", remove="198.51.100.6")
        move("up0", remove="198.51.100.5")  # and with it the default route
        move("up0", add=("203.0.113.7", "203.0.113.1"))
        eth0.wait_for(carrier=1, losses=1)
    assert lease(rig.workload) == ("203.0.113.7", "203.0.113.1")
    down, up = (event for event in rig.events if event.name == events.LINK_CHANGED)
    assert "IPv4 is 203.0.113.7/24 via 203.0.113.1" in str(down.attributes[events.DETAIL])
    assert up.attributes[events.LINK] == events.UP


def _move(
    host: NetworkNamespace, name: str, *, add: tuple[str, str] = ("", ""), remove: str = ""
) -> None:
    """Change the addresses of an interface of the host, which is made, and the default route."""
    from pyroute2 import IPRoute

    address, gateway = add

    def run() -> None:
        with IPRoute() as netlink:
            if not netlink.link_lookup(ifname=name):
                netlink.link("add", ifname=name, kind="veth", peer=f"{name}-end")
            (index,) = netlink.link_lookup(ifname=name)
            netlink.link("set", index=index, state="up")
            if address:
                netlink.addr("add", index=index, address=address, prefixlen=24)
            if gateway:
                netlink.route("add", dst="default", gateway=gateway)
            if remove:
                netlink.addr("del", index=index, address=remove, prefixlen=24)

    host.run(run)


def lease(workload: Workload) -> tuple[str, str]:
    """Return the address and the router that DHCP offers on eth0 (RFC 2131, RFC 2132)."""

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            client.bind(("0.0.0.0", 68))
            client.settimeout(DEADLINE_S)
            head = struct.pack("!4BIHH16s16x192x4s", 1, 1, 6, 0, 77, 0, 0x8000, b"", b"c\x82Sc")
            client.sendto(head + b"\x35\x01\x01\xff", ("255.255.255.255", 67))
            return client.recv(2000)

    offer = workload.in_network(ask)
    options, at = {}, 240
    while offer[at] != 255:
        length = offer[at + 1] if offer[at] else -1
        options[offer[at]] = offer[at + 2 : at + 2 + length]
        at += 2 + length
    return socket.inet_ntoa(offer[16:20]), socket.inet_ntoa(options[3][:4])


def test_an_administrator_who_sets_a_tap_down_and_up(rig: Rig, host: NetworkNamespace) -> None:
    host.run(lambda: _make_tap(host))
    host.run(lambda: rig.adapter("eth0", "tap0", f"{GUEST}/24", HOST))
    with CarrierOf(rig.workload) as eth0:
        assert eth0.carrier == 1
        host.run(partial(_set, "tap0", "down"))
        eth0.wait_for(carrier=0, losses=1)
        host.run(partial(_set, "tap0", "up"))
        eth0.wait_for(carrier=1, losses=1)
    assert link_events(rig) == [("eth0", "down"), ("eth0", "up")]
    assert rig.workload.ping(HOST, 1, 5.0).received == 1


def test_a_tap_that_is_down_at_first(rig: Rig, host: NetworkNamespace) -> None:
    host.run(lambda: rig.adapter("eth0", "tap0", f"{GUEST}/24", HOST))
    with CarrierOf(rig.workload) as eth0:
        assert eth0.carrier == 0
        assert rig.counters("eth0").link_losses == 0
        host.configure("tap0", mac=bytes.fromhex("020000000001"), mtu=1500, address=f"{HOST}/24")
        eth0.wait_for(carrier=1, losses=0)
    assert rig.workload.ping(HOST, 1, 5.0).received == 1


def _make_tap(host: NetworkNamespace) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.link("add", ifname="tap0", kind="tuntap", mode="tap")
    host.configure("tap0", mac=bytes.fromhex("020000000001"), mtu=1500, address=f"{HOST}/24")


def _set(name: str, state: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=name)
        netlink.link("set", index=index, state=state)
