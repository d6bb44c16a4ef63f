"""What a user-mode network may be, and what passt is told of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.devicehost.devices.net.host_network import Family, HostView
from services.devicehost.devices.net.user.settings import (
    UserSettings,
    arguments,
    check,
    given,
    what_moved,
)
from services.handshake.errors import InvalidArgumentError
from services.handshake.options import NetOptions

VM_ID = "6f1a2f5e-5f3e-4f53-9d5c-2b8f0a4f7c11"
BARE = ["--foreground", "--quiet", "--no-map-gw", "--mtu", "65520"]


def test_without_settings_passt_takes_the_hosts_values_but_not_its_loopback() -> None:
    check(UserSettings())
    assert arguments(UserSettings(), NetOptions(name="eth0", vm_id=VM_ID)) == BARE


def test_each_setting_is_an_argument() -> None:
    settings = UserSettings(
        dns=("9.9.9.9", "2620:fe::fe"),
        search_domains=("example.test", "corp.example.test."),
        dns_forward=("10.9.0.53", "fd00::53"),
        dns_host=("127.0.0.53",),
        host_loopback=("10.9.0.127", "fd00::127"),
        gateway_ip_ipv6="fe80::1",
        mtu=1500,
    )
    options = NetOptions(
        name="eth0",
        vm_id=VM_ID,
        client_ip="10.9.0.2/20",
        client_ip_ipv6="fd00::2/64",
        gateway_ip="10.9.0.1",
    )
    check(settings)
    assert arguments(settings, options) == [
        *("--foreground", "--quiet", "--no-map-gw", "--mtu", "1500"),
        *("--address", "10.9.0.2", "--netmask", "20", "--address", "fd00::2"),
        *("--gateway", "10.9.0.1", "--gateway", "fe80::1"),
        *("--dns", "9.9.9.9", "--dns", "2620:fe::fe"),
        *("--search", "example.test", "--search", "corp.example.test."),
        *("--dns-forward", "10.9.0.53", "--dns-forward", "fd00::53"),
        *("--dns-host", "127.0.0.53"),
        *("--map-host-loopback", "10.9.0.127", "--map-host-loopback", "fd00::127"),
    ]


def test_a_guest_is_told_of_the_address_that_forwards_its_queries() -> None:
    settings = UserSettings(dns_forward=("10.9.0.53",))
    told = arguments(settings, NetOptions(name="eth0", vm_id=VM_ID))
    assert told == [*BARE, "--dns", "10.9.0.53", "--dns-forward", "10.9.0.53"]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (UserSettings(mtu=1279), "mtu"),
        (UserSettings(mtu=65521), "mtu"),
        (UserSettings(dns=("10.0.0.1",) * 9), "dns"),
        (UserSettings(dns=("dns.example.test",)), "dns"),
        (UserSettings(dns=("0.0.0.0",)), "dns"),
        (UserSettings(dns=("fe80::1%eth0",)), "dns"),
        (UserSettings(dns=("--help",)), "dns"),
        (UserSettings(search_domains=("example.test",) * 9), "search_domains"),
        (UserSettings(search_domains=("",)), "search_domains"),
        (UserSettings(search_domains=("a b",)), "search_domains"),
        (UserSettings(search_domains=("--help",)), "search_domains"),
        (UserSettings(search_domains=("a" * 64,)), "search_domains"),
        (UserSettings(search_domains=(".".join(["a" * 50] * 6),)), "search_domains"),
        (UserSettings(dns_forward=("10.0.0.1", "10.0.0.2")), "dns_forward"),
        (UserSettings(dns_host=("::1", "::2")), "dns_host"),
        (UserSettings(host_loopback=("10.0.0.1", "10.0.0.2")), "host_loopback"),
        (UserSettings(host_loopback=("224.0.0.1",)), "host_loopback"),
        (UserSettings(gateway_ip_ipv6="10.0.0.1"), "gateway_ip_ipv6"),
    ],
)
def test_what_a_network_cannot_be_is_refused_with_its_name(
    settings: UserSettings, name: str
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        check(settings)
    assert raised.value.reason == "USER_NETWORK_VALUE"
    assert raised.value.metadata == {"setting": name}


IPV4 = Family(2, "192.0.2.1", frozenset({"192.0.2.5/24"}))
IPV6 = Family(2, "fe80::1", frozenset({"2001:db8::5/64"}))
HOST = HostView(IPV4, IPV6, ("127.0.0.53", "192.0.2.53", "2001:db8::53"), ("example.test",))
OPTIONS = NetOptions(name="eth0", vm_id=VM_ID)
ALL_OPTIONS = replace(OPTIONS, client_ip="10.9.0.2/24", client_ip_ipv6="fd00::2/64")


@pytest.mark.parametrize(
    ("settings", "options", "due"),
    [
        (UserSettings(), OPTIONS, HOST),
        (UserSettings(), replace(OPTIONS, client_ip="10.9.0.2/24"), replace(HOST, ipv4=Family())),
        (
            UserSettings(gateway_ip_ipv6="fe80::9"),
            replace(OPTIONS, gateway_ip="192.0.2.9"),
            replace(HOST, ipv4=replace(IPV4, gateway=""), ipv6=replace(IPV6, gateway="")),
        ),
        (UserSettings(dns=("9.9.9.9",)), OPTIONS, replace(HOST, name_servers=())),
        (
            UserSettings(dns_forward=("10.9.0.1",)),
            OPTIONS,
            replace(HOST, name_servers=("127.0.0.53", "2001:db8::53")),
        ),
        (
            UserSettings(dns_forward=("10.9.0.1",), dns_host=("127.0.0.1",)),
            OPTIONS,
            replace(HOST, name_servers=()),
        ),
        (
            UserSettings(dns=("9.9.9.9",), search_domains=("a.test",)),
            ALL_OPTIONS,
            HostView(),
        ),
    ],
    ids=["nothing", "address", "gateways", "servers", "forwarded", "forwarded to one", "all"],
)
def test_what_a_request_decides_is_not_the_hosts(
    settings: UserSettings, options: NetOptions, due: HostView
) -> None:
    assert given(settings, options, HOST) == due


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (replace(HOST, ipv4=Family(2, "192.0.2.1", frozenset({"192.0.2.6/24"}))), "192.0.2.6/24"),
        (replace(HOST, ipv4=replace(IPV4, gateway="192.0.2.2")), "via 192.0.2.2"),
        (replace(HOST, ipv4=replace(IPV4, interface=3)), "IPv4"),
        (replace(HOST, ipv6=Family()), "IPv6 is no address via no gateway"),
        (replace(HOST, name_servers=("192.0.2.54",)), "name servers are 192.0.2.54"),
        (replace(HOST, name_servers=HOST.name_servers[::-1]), "name servers"),
        (replace(HOST, search_domains=()), "search domains are none"),
    ],
)
def test_what_is_not_right_any_more_is_named(now: HostView, says: str) -> None:
    assert says in what_moved(HOST, now)


def test_a_network_that_was_not_there_is_one_that_moved() -> None:
    assert "2001:db8::5/64" in what_moved(replace(HOST, ipv6=Family()), HOST)


@pytest.mark.parametrize(
    "now",
    [
        HOST,
        replace(HOST, ipv4=replace(IPV4, addresses=IPV4.addresses | {"192.0.2.6/24"})),
        replace(HOST, name_servers=()),
    ],
    ids=["nothing", "a further address", "no name servers, which is not better"],
)
def test_what_does_not_matter_has_not_moved(now: HostView) -> None:
    assert what_moved(HOST, now) == ""


def test_queries_that_are_forwarded_go_to_the_host_s_name_servers() -> None:
    host = ("192.0.2.53", "fe80::1%eth0", "nonsense")
    forwarding = UserSettings(dns_forward=("10.9.0.1",))
    own = UserSettings(dns_forward=("10.9.0.1",), dns_host=("192.0.2.54",))
    told = arguments(forwarding.with_resolver(host), NetOptions(name="eth0", vm_id=VM_ID))
    assert told[told.index("--dns-host") :][:2] == ["--dns-host", "192.0.2.53"]
    assert told.count("--dns-host") == 1
    assert own.with_resolver(host) == own
    assert UserSettings().with_resolver(host) == UserSettings()
