"""What is seen of the host's network."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.net.host_network import Family, HostView, look
from services.devicehost.devices.net.host_network import view as view_module
from services.wire import rtnetlink

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.net.host_network.conftest import Host

IFA_F_NODAD = 0x02


@pytest.fixture(autouse=True)
def resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "resolv.conf"
    monkeypatch.setattr(view_module, "RESOLV_CONF", path)
    return path


@pytest.mark.tap
def test_a_host_that_is_on_no_network(host: Host) -> None:
    host.add_interface("up0", "198.51.100.5")
    seen = host.namespace.run(look)
    assert seen == HostView()
    assert not seen.is_connected


@pytest.mark.tap
def test_the_default_route_of_least_priority_counts(host: Host) -> None:
    host.add_interface("up0", "198.51.100.5")
    host.add_interface("up1", "203.0.113.7", 26)
    host.add_address("up1", "203.0.113.8", 26)
    host.route("198.51.100.1", priority=200)
    host.route("203.0.113.1", priority=100)
    seen = host.namespace.run(look)
    assert seen.ipv4 == Family(
        host.index("up1"), "203.0.113.1", frozenset({"203.0.113.7/26", "203.0.113.8/26"})
    )
    assert seen.ipv6 == Family()
    assert seen.is_connected


@pytest.mark.tap
def test_ipv6_without_addresses_that_come_and_go(host: Host) -> None:
    host.add_interface("up0")
    host.add_address("up0", "2001:db8::5", 64, flags=IFA_F_NODAD)
    deprecated = {"ifa_preferred": 0, "ifa_valid": 1000}
    host.add_address("up0", "2001:db8::77", 64, flags=IFA_F_NODAD, IFA_CACHEINFO=deprecated)
    host.route("2001:db8::1")
    seen = host.namespace.run(look)
    assert seen.ipv6 == Family(host.index("up0"), "2001:db8::1", frozenset({"2001:db8::5/64"})), (
        "neither the deprecated address nor that of the link"
    )
    assert seen.ipv4 == Family()


@pytest.mark.parametrize(
    ("text", "servers", "search"),
    [
        ("", (), ()),
        ("nameserver 192.0.2.53\nnameserver 2001:db8::53\n", ("192.0.2.53", "2001:db8::53"), ()),
        ("search a.test b.test\nsearch c.test\n", (), ("c.test",)),
        (
            "# nameserver 192.0.2.1\n  nameserver\t192.0.2.2 # ours\nnameserver\n",
            ("192.0.2.2",),
            (),
        ),
        ("options ndots:5\nnameserver 192.0.2.2", ("192.0.2.2",), ()),
    ],
)
def test_resolv_conf(
    resolv_conf: Path, text: str, servers: tuple[str, ...], search: tuple[str, ...]
) -> None:
    resolv_conf.write_text(text)
    assert view_module.read_resolv_conf(resolv_conf) == (servers, search)


def test_a_resolv_conf_that_cannot_be_read_has_nothing(resolv_conf: Path) -> None:
    assert view_module.read_resolv_conf(resolv_conf) == ((), ())
    resolv_conf.mkdir()
    assert view_module.read_resolv_conf(resolv_conf) == ((), ())


def test_of_a_resolv_conf_without_end_a_part_is_read(resolv_conf: Path) -> None:
    resolv_conf.write_bytes(b"nameserver 192.0.2.53\n" + b"\xff" * (1 << 20))
    assert view_module.read_resolv_conf(resolv_conf) == (("192.0.2.53",), ())


@pytest.mark.tap
def test_the_answer_for_a_family_that_a_kernel_lacks_is_nothing(host: Host) -> None:
    """Such a kernel answers for all others; this one lacks AX.25, as others lack IPv6."""
    host.add_interface("up0", "198.51.100.5")
    host.route("198.51.100.1")

    def ask() -> list[object]:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, rtnetlink.NETLINK_ROUTE) as netlink:
            family, index = socket.AF_AX25, socket.if_nametoindex("up0")
            dump = view_module._dump
            kinds = (rtnetlink.RTM_GETROUTE, rtnetlink.RTM_NEWROUTE)
            assert list(dump(netlink, *kinds, family)), "or this shows nothing"
            routes = view_module._default_routes(netlink, family)
            return [*routes, *view_module._addresses(netlink, family, index)]

    assert host.namespace.run(ask) == []
