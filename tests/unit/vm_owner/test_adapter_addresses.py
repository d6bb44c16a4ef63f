"""The addresses of adapters: what may be asked for, and the defaults."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from services.handshake.errors import InvalidArgumentError
from services.vm_owner.adapter_addresses import (
    AdapterAddresses,
    RequestedAddresses,
    requested_addresses,
)
from services.vm_owner.wslconfig import NetworkingMode as Mode

SUBNET = IPv4Network("10.231.0.4/30")


def test_without_a_request_all_follows_from_the_subnet() -> None:
    asked = requested_addresses("", Mode.NAT)
    assert asked == RequestedAddresses()
    assert asked.complete(SUBNET) == AdapterAddresses(
        IPv4Interface("10.231.0.6/30"), IPv4Address("10.231.0.5"), "52:54:0a:e7:00:06"
    )


@pytest.mark.parametrize(
    ("options", "due"),
    [
        (
            "client_ip=192.0.2.9/24",
            AdapterAddresses(
                IPv4Interface("192.0.2.9/24"), IPv4Address("192.0.2.1"), "52:54:c0:00:02:09"
            ),
        ),
        (
            "client_ip=192.0.2.1/24;;",
            AdapterAddresses(
                IPv4Interface("192.0.2.1/24"), IPv4Address("192.0.2.2"), "52:54:c0:00:02:01"
            ),
        ),
        (
            "gateway_ip=192.0.2.6;client_ip=192.0.2.5/30;client_mac=02:00:00:00:00:0A",
            AdapterAddresses(
                IPv4Interface("192.0.2.5/30"), IPv4Address("192.0.2.6"), "02:00:00:00:00:0a"
            ),
        ),
        (
            "client_ip_ipv6=fd00:0::2/64",
            AdapterAddresses(
                IPv4Interface("10.231.0.6/30"),
                IPv4Address("10.231.0.5"),
                "52:54:0a:e7:00:06",
                "fd00::2/64",
            ),
        ),
    ],
)
def test_what_is_asked_for_counts(options: str, due: AdapterAddresses) -> None:
    asked = requested_addresses(options, Mode.VIRTIO_PROXY)
    subnet = asked.client.network if asked.client else SUBNET
    found = asked.complete(subnet)
    assert found == due
    assert found.host == IPv4Interface((due.gateway, subnet.prefixlen))


def test_a_bridge_is_for_an_address_in_its_network() -> None:
    asked = requested_addresses("bridge=br0;client_ip=192.0.2.9/24;bridge=br0", Mode.NAT)
    assert asked == RequestedAddresses(IPv4Interface("192.0.2.9/24"), bridge="br0")


@pytest.mark.parametrize(
    ("options", "mode", "reason", "says"),
    [
        ("bridge=br0", Mode.NAT, "OPTION_VALUE", "client_ip="),
        ("bridge=br0;client_ip=192.0.2.9/24", Mode.VIRTIO_PROXY, "OPTION_VALUE", "ask for NAT"),
        ("bridge=br0;client_ip=192.0.2.9/24;bridge=br1", Mode.NAT, "OPTION_CONFLICT", "br0 and as"),
        ("bridge=;client_ip=192.0.2.9/24", Mode.NAT, "OPTION_VALUE", "1 to 15 bytes"),
        ("bridge=a234567890123456;client_ip=192.0.2.9/24", Mode.NAT, "OPTION_VALUE", "15 bytes"),
        ("bridge=a/b;client_ip=192.0.2.9/24", Mode.NAT, "OPTION_VALUE", "without '/'"),
        ("bridge=br0\n;client_ip=192.0.2.9/24", Mode.NAT, "OPTION_VALUE", "white space"),
    ],
)
def test_bridges_that_are_refused(options: str, mode: Mode, reason: str, says: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        requested_addresses(options, mode)
    assert refused.value.reason == reason
    assert says in refused.value.message


@pytest.mark.parametrize(
    ("options", "reason", "says"),
    [
        ("client_ip=192.0.2.9", "OPTION_VALUE", "8 to 30"),
        ("client_ip=192.0.2.9/31", "OPTION_VALUE", "8 to 30"),
        ("client_ip=10.0.0.1/7", "OPTION_VALUE", "8 to 30"),
        ("client_ip=192.0.2.0/24", "OPTION_VALUE", "first or last"),
        ("client_ip=192.0.2.255/24", "OPTION_VALUE", "first or last"),
        ("client_ip=127.0.0.2/8", "OPTION_VALUE", "loopback"),
        ("client_ip=224.0.0.9/24", "OPTION_VALUE", "multicast"),
        ("client_ip=240.0.0.9/24", "OPTION_VALUE", "a host can have"),
        ("client_ip=moon", "OPTION_VALUE", "IPv4 address"),
        ("gateway_ip=192.0.2.1", "OPTION_VALUE", "client_ip="),
        ("client_ip=192.0.2.9/24;gateway_ip=192.0.3.1", "OPTION_VALUE", "192.0.2.0/24"),
        ("client_ip=192.0.2.9/24;gateway_ip=fd00::1", "OPTION_VALUE", "192.0.2.0/24"),
        ("client_ip=192.0.2.9/24;gateway_ip=192.0.2.9", "OPTION_VALUE", "choose another"),
        ("client_ip=192.0.2.9/24;gateway_ip=192.0.2.255", "OPTION_VALUE", "first or last"),
        ("client_ip_ipv6=ff02::1/64", "OPTION_VALUE", "one host"),
        ("client_ip_ipv6=::1/128", "OPTION_VALUE", "one host"),
        ("client_ip_ipv6=::/64", "OPTION_VALUE", "one host"),
        ("client_mac=01:00:5e:00:00:01", "OPTION_VALUE", "must be even"),
        ("client_mac=00:00:00:00:00:00", "OPTION_VALUE", "not all may be 0"),
        ("client_mac=52-54-00-12-34-56", "OPTION_VALUE", "MAC address"),
        ("client_ip", "OPTION_SYNTAX", "client_ip=<value>"),
        ("client_mac=02:00:00:00:00:01;client_mac=02:00:00:00:00:02", "OPTION_CONFLICT", "once"),
        ("spoofing=refuse;spoofing=allow", "OPTION_CONFLICT", "as allow and as refuse; give one"),
        ("spoofing=allow;spoofing=refuse", "OPTION_CONFLICT", "as allow and as refuse; give one"),
        ("spoofing=deny", "OPTION_VALUE", "one of"),
        ("rings=inside", "OPTION_UNKNOWN", "client_ip, gateway_ip"),
        ("swiotlb=0x1000,4096", "OPTION_UNKNOWN", "client_ip, gateway_ip"),
        ("vm_id=11111111-2222-4333-8444-555555555555", "OPTION_UNKNOWN", "client_ip"),
        (f"client_ip={'1' * 4096}", "OPTIONS_TOO_LONG", "4096"),
    ],
)
def test_what_cannot_be_is_refused_with_its_value_and_bound(
    options: str, reason: str, says: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=says) as refused:
        requested_addresses(options, Mode.VIRTIO_PROXY)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("mode", "options"),
    [(Mode.NAT, "client_ip_ipv6=fd00::2/64"), (Mode.NONE, "client_ip=192.0.2.9/24")],
)
def test_a_mode_refuses_what_it_has_no_use_for(mode: Mode, options: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"networking mode {mode}") as refused:
        requested_addresses(options, mode)
    assert refused.value.reason == "OPTION_VALUE"
