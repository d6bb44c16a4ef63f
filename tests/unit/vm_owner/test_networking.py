"""The network engine: adapters, modes, and TAPs that are never left behind."""

from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from pyroute2 import IPRoute

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
    UnavailableError,
)
from services.handshake.features import FEATURES, SPOOFING, USER_NETWORK
from services.handshake.options import parse_net_options
from services.vm_owner import taps
from services.vm_owner.networking import Network, NetworkRequest
from services.vm_owner.states import VmState
from services.vm_owner.sweep import sweep
from services.vm_owner.wslconfig import NetworkingMode as Mode
from tests.support.owner_peers import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from services.handshake.events import Event
    from services.vm_owner.vm import Vm
    from tests.support.owner_peers import Rig

NAT = NetworkRequest(Mode.NAT)


class FakeTaps:
    """Keeps TAPs as entries. A TAP whose name is in `broken` cannot be made."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.taps: dict[str, IPv4Interface | str] = {}
        self.broken = ""

    def create_tap(self, name: str, place: IPv4Interface | str) -> None:
        if self.broken and self.broken in name:
            raise FailedPreconditionError("TAP_UNAVAILABLE", f"no rights for {name}")
        self.log.append(f"create {name}")
        self.taps[name] = place

    def delete_tap(self, name: str) -> None:
        self.log.append(f"delete {name}")
        del self.taps[name]

    def host_networks(self) -> Iterable[IPv4Network]:
        return [IPv4Network("10.231.0.0/30"), IPv4Network("10.0.0.0/8")]


def networked(trace: list[Event]) -> list[Mapping[str, events.Attribute]]:
    return [event.attributes for event in trace if event.name == events.NETWORKING_CONFIGURED]


async def a_vm(rig: Rig, wslconfig: str = "") -> tuple[Vm, FakeTaps]:
    vm = await rig.owner.create(rig.vm_spec(wslconfig=wslconfig))
    fake = FakeTaps([])
    vm._network._taps = fake
    return vm, fake


async def test_two_adapters_each_with_token_tap_and_addresses(rig: Rig) -> None:
    vm, fake = await a_vm(rig)
    vm_id = vm.vm_id
    network = await rig.owner.configure_networking(vm_id, NAT)
    eth0, loopback0 = network.adapters
    assert list(fake.taps.values()) == [
        IPv4Interface("10.231.0.5/30"),
        IPv4Interface("10.231.0.9/30"),
    ]
    assert [name[-3:] for name in fake.taps] == ["-e0", "-l0"]
    assert all(len(name) <= 15 and name.startswith("ph") for name in fake.taps)
    assert network.gateway_address == "10.231.0.5"
    assert eth0.options == (
        "eth0;client_ip=10.231.0.6/30;client_mac=52:54:0a:e7:00:06;gateway_ip=10.231.0.5;"
        "spoofing=refuse;"
        f"{TOKEN};vm_id={vm_id}"
    )
    assert loopback0.options == (
        "loopback0;client_ip=10.231.0.10/30;client_mac=52:54:0a:e7:00:0a;spoofing=refuse;"
        f"{TOKEN};vm_id={vm_id}"
    )
    for adapter in network.adapters:
        assert parse_net_options(adapter.options).client_mac is not None
    attached = rig.machine.attached
    assert attached[eth0.instance_id].client_address == "10.231.0.6/30"
    assert attached[eth0.instance_id].gateway_address == "10.231.0.5"
    assert attached[loopback0.instance_id].gateway_address == ""


async def test_configuring_twice(rig: Rig) -> None:
    vm, _ = await a_vm(rig)
    await rig.owner.configure_networking(vm.vm_id, NAT)
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.configure_networking(vm.vm_id, NAT)
    assert refused.value.reason == "NETWORKING_CONFIGURED"
    assert [device.spec.tag for device in vm.devices.all()] == ["eth0", "loopback0"]


@pytest.mark.parametrize(
    ("wslconfig", "asked", "reason"),
    [
        ("[wsl2]\nnetworkingMode=none\n", Mode.NAT, "NETWORKING_MODE"),
        ("[wsl2]\nnetworkingMode=mirrored\n", None, "NETWORKING_MODE"),
        ("[wsl2]\nnetworkingMode=mirrored\n", Mode.VIRTIO_PROXY, "NETWORKING_MODE"),
        ("[experimental]\nnetworkingMode=bridged\n", None, "NETWORKING_MODE"),
        ("", Mode.BRIDGED, "NETWORKING_MODE"),
        ("", Mode.MIRRORED, "NETWORKING_MODE"),
        ("[wsl2]\nsafeMode=true\n", Mode.NAT, "VIRTIO_OFF"),
        ("[wsl2]\nvirtio=false\n", Mode.NAT, "VIRTIO_OFF"),
        ("[wsl2]\nvirtio=false\nnetworkingMode=VirtioProxy\n", None, "VIRTIO_OFF"),
    ],
)
async def test_a_mode_that_the_vm_may_not_have_is_refused_and_another_may_follow(
    rig: Rig, trace: list[Event], wslconfig: str, asked: Mode | None, reason: str
) -> None:
    vm, fake = await a_vm(rig, wslconfig)
    with pytest.raises(FailedPreconditionError) as refused:
        await rig.owner.configure_networking(vm.vm_id, NetworkRequest(asked))
    assert refused.value.reason == reason
    assert refused.value.metadata["vm_id"] == vm.vm_id
    assert (fake.log, networked(trace)) == ([], [])
    none = await rig.owner.configure_networking(vm.vm_id, NetworkRequest(Mode.NONE))
    assert none == Network(Mode.NONE)


@pytest.mark.parametrize(
    ("wslconfig", "asked", "mode"),
    [
        ("[wsl2]\nnetworkingMode=nat\n", None, Mode.NAT),
        ("[wsl2]\nnetworkingMode=nat\nvirtiofs=false\n", None, Mode.NAT),
        ("[wsl2]\nnetworkingMode=virtioproxy\n", Mode.NAT, Mode.NAT),
        ("", None, Mode.VIRTIO_PROXY),
        ("[wsl2]\nnetworkingMode=nat\n", Mode.VIRTIO_PROXY, Mode.VIRTIO_PROXY),
    ],
)
async def test_the_request_chooses_among_the_modes_with_adapters(
    rig: Rig, trace: list[Event], wslconfig: str, asked: Mode | None, mode: Mode
) -> None:
    vm, fake = await a_vm(rig, wslconfig)
    network = await rig.owner.configure_networking(vm.vm_id, NetworkRequest(asked))
    assert (network.mode, network.warning) == (mode, None)
    assert [adapter.spec.tag for adapter in network.adapters] == ["eth0", "loopback0"]
    assert len(fake.taps) == (2 if mode is Mode.NAT else 0)
    ids = " ".join(adapter.instance_id for adapter in network.adapters)
    assert networked(trace) == [
        {
            events.VM_ID: vm.vm_id,
            events.NETWORKING_ASKED: mode,
            events.NETWORKING_MODE: mode,
            events.NETWORKING_ADAPTERS: ids,
        }
    ]


@pytest.mark.parametrize(
    ("wslconfig", "asked"),
    [
        ("[wsl2]\nnetworkingMode=none\n", None),
        ("[wsl2]\nsafeMode=true\n", None),
        ("[wsl2]\nnetworkingMode=bridged\n", Mode.NONE),
        ("", Mode.NONE),
    ],
)
async def test_no_networking_has_no_adapters_and_is_configured_once(
    rig: Rig, trace: list[Event], wslconfig: str, asked: Mode | None
) -> None:
    vm, fake = await a_vm(rig, wslconfig)
    network = await rig.owner.configure_networking(vm.vm_id, NetworkRequest(asked))
    assert network == Network(Mode.NONE)
    assert (fake.log, vm.devices.all()) == ([], [])
    assert [event[events.NETWORKING_ADAPTERS] for event in networked(trace)] == [""]
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.configure_networking(vm.vm_id, NetworkRequest(asked))
    assert refused.value.reason == "NETWORKING_CONFIGURED"
    assert len(networked(trace)) == 1


async def test_the_addresses_that_are_asked_for_are_those_of_eth0(rig: Rig) -> None:
    vm, fake = await a_vm(rig)
    options = "client_ip=192.0.2.9/24;gateway_ip=192.0.2.254;client_mac=52:54:00:AB:cd:01"
    network = await rig.owner.configure_networking(vm.vm_id, NetworkRequest(Mode.NAT, options))
    eth0, loopback0 = network.adapters
    assert list(fake.taps.values()) == [
        IPv4Interface("192.0.2.254/24"),
        IPv4Interface("10.231.0.5/30"),
    ]
    assert network.gateway_address == "192.0.2.254"
    assert eth0.options.split(";")[1:4] == [
        "client_ip=192.0.2.9/24",
        "client_mac=52:54:00:ab:cd:01",
        "gateway_ip=192.0.2.254",
    ]
    assert rig.machine.attached[eth0.instance_id].client_address == "192.0.2.9/24"
    assert loopback0.options.startswith("loopback0;client_ip=10.231.0.6/30;")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("client_ip=10.231.0.2/30", "SUBNET_TAKEN"),
        ("client_ip=10.0.0.9/8", "SUBNET_TAKEN"),
        ("client_ip=10.231.0.2/24", "SUBNET_TAKEN"),
        ("client_ip=192.0.2.9/24;ro", "OPTION_UNKNOWN"),
        ("client_ip_ipv6=fd00::2/64", "OPTION_VALUE"),
    ],
)
async def test_addresses_that_cannot_be_had_are_refused_and_others_may_follow(
    rig: Rig, trace: list[Event], options: str, reason: str
) -> None:
    vm, fake = await a_vm(rig)
    with pytest.raises(PortholeError) as refused:
        await rig.owner.configure_networking(vm.vm_id, NetworkRequest(Mode.NAT, options))
    assert refused.value.reason == reason
    assert (fake.taps, vm.devices.all(), networked(trace)) == ({}, [], [])
    network = await rig.owner.configure_networking(vm.vm_id, NAT)
    assert network.gateway_address == "10.231.0.5"


async def test_user_mode_adapters_need_no_tap_and_have_the_same_token(rig: Rig) -> None:
    vm, fake = await a_vm(rig)
    options = "client_ip=10.0.0.9/8;gateway_ip=10.0.0.1;client_ip_ipv6=fd00::9/64"
    asked = NetworkRequest(Mode.VIRTIO_PROXY, options, host_loopback=True)
    network = await rig.owner.configure_networking(vm.vm_id, asked)
    eth0, loopback0 = network.adapters
    assert fake.log == []
    assert (network.gateway_address, network.host_loopback_address) == ("10.0.0.1", "10.231.0.5")
    assert eth0.options == (
        "eth0;client_ip=10.0.0.9/8;client_ip_ipv6=fd00::9/64;client_mac=52:54:0a:00:00:09;"
        f"gateway_ip=10.0.0.1;spoofing=refuse;{TOKEN};vm_id={vm.vm_id}"
    )
    assert loopback0.options == (
        "loopback0;client_ip=10.231.0.6/30;client_mac=52:54:0a:e7:00:06;spoofing=refuse;"
        f"{TOKEN};vm_id={vm.vm_id}"
    )
    first, second = (rig.device_host.backends[each.instance_id].user for each in network.adapters)
    assert (list(first.dns_forward), list(first.host_loopback)) == (["10.0.0.1"], [])
    assert (list(second.dns_forward), list(second.host_loopback)) == ([], ["10.231.0.5"])
    assert eth0.spec.name_servers == ("10.0.0.1",)
    assert loopback0.spec.name_servers == ()
    await rig.owner.terminate(vm.vm_id)
    assert (fake.log, rig.device_host.devices) == ([], {})


async def test_the_hosts_loopback_is_out_of_reach_unless_it_is_asked_for(rig: Rig) -> None:
    vm, _ = await a_vm(rig)
    network = await rig.owner.configure_networking(vm.vm_id, NetworkRequest())
    assert network.host_loopback_address == ""
    for adapter in network.adapters:
        assert not rig.device_host.backends[adapter.instance_id].user.host_loopback


@pytest.mark.parametrize("mode", [Mode.NAT, Mode.NONE])
async def test_the_hosts_loopback_is_for_user_mode_networks(rig: Rig, mode: Mode) -> None:
    vm, _ = await a_vm(rig)
    with pytest.raises(InvalidArgumentError, match="host_loopback") as refused:
        await rig.owner.configure_networking(vm.vm_id, NetworkRequest(mode, host_loopback=True))
    assert refused.value.reason == "OPTION_VALUE"
    assert vm.devices.all() == []


async def test_vms_may_have_the_same_addresses_on_user_mode_networks(rig: Rig) -> None:
    asked = NetworkRequest(Mode.VIRTIO_PROXY, "client_ip=10.0.2.15/24")
    for _ in range(2):
        vm, _ = await a_vm(rig)
        network = await rig.owner.configure_networking(vm.vm_id, asked)
        assert network.gateway_address == "10.0.2.1"


@pytest.mark.parametrize("reason", ["PASST_MISSING", "PASST_TOO_OLD", "PASST_FAILED"])
async def test_without_passt_there_is_no_networking_and_one_warning(
    rig: Rig, trace: list[Event], reason: str
) -> None:
    vm, fake = await a_vm(rig)
    rig.script.failures["CreateDevice"] = FailedPreconditionError(reason, "install passt")
    network = await rig.owner.configure_networking(vm.vm_id, NetworkRequest())
    assert (network.mode, network.adapters) == (Mode.NONE, ())
    assert (fake.log, vm.devices.all(), rig.device_host.devices) == ([], [], {})
    [warning] = vm.record.warnings
    assert network.warning == warning
    assert f"({reason}): install passt" in warning.text
    names = [event.name for event in trace]
    assert names.count(events.NETWORKING_FALLBACK) == 1
    assert networked(trace)[0][events.NETWORKING_ASKED] == Mode.VIRTIO_PROXY


async def test_a_device_host_without_user_mode_networks_is_a_reason_for_a_fallback(
    rig: Rig,
) -> None:
    vm, _ = await a_vm(rig)
    rig.device_host.features = tuple(f for f in FEATURES if f != USER_NETWORK)
    network = await rig.owner.configure_networking(vm.vm_id, NetworkRequest())
    assert network.mode is Mode.NONE
    assert network.warning is not None
    assert "DEVICE_HOST_FEATURE" in network.warning.text
    assert "CreateDevice" not in rig.script.calls()


async def test_a_second_adapter_that_cannot_be_takes_the_first_one_with_it(rig: Rig) -> None:
    vm, _ = await a_vm(rig)
    rig.script.failures["AttachDevice"] = FailedPreconditionError("PASST_FAILED", "it ended")
    network = await rig.owner.configure_networking(vm.vm_id, NetworkRequest())
    assert network.mode is Mode.NONE
    assert (vm.devices.all(), rig.device_host.devices, rig.machine.attached) == ([], {}, {})


async def test_a_network_that_a_client_chose_is_free_again_after_its_vm(rig: Rig) -> None:
    asked = NetworkRequest(Mode.NAT, "client_ip=192.0.2.9/24")
    first, _ = await a_vm(rig)
    second, _ = await a_vm(rig)
    await rig.owner.configure_networking(first.vm_id, asked)
    with pytest.raises(FailedPreconditionError, match="an adapter of this owner") as refused:
        await rig.owner.configure_networking(second.vm_id, asked)
    assert refused.value.reason == "SUBNET_TAKEN"
    await rig.owner.terminate(first.vm_id)
    await rig.owner.configure_networking(second.vm_id, asked)


async def test_the_tap_of_eth0_is_on_the_bridge_that_is_asked_for(rig: Rig) -> None:
    """Its network is one that the host is on, which it could not be otherwise."""
    vm, fake = await a_vm(rig)
    request = NetworkRequest(Mode.NAT, "client_ip=10.0.0.9/8;bridge=br0;gateway_ip=10.0.0.254")
    network = await rig.owner.configure_networking(vm.vm_id, request)
    assert list(fake.taps.values()) == ["br0", IPv4Interface("10.231.0.5/30")]
    eth0 = network.adapters[0]
    assert "client_ip=10.0.0.9/8;" in eth0.options
    assert "gateway_ip=10.0.0.254" in eth0.options
    assert "bridge" not in eth0.options
    await rig.owner.terminate(vm.vm_id)
    assert fake.taps == {}


async def test_a_bridge_that_does_not_exist_is_an_error_and_another_may_follow(
    rig: Rig, trace: list[Event]
) -> None:
    vm, fake = await a_vm(rig)
    made = fake.create_tap

    def refuse(name: str, place: IPv4Interface | str) -> None:
        if place == "br7":
            raise FailedPreconditionError("BRIDGE_UNAVAILABLE", "this host has no bridge 'br7'")
        made(name, place)

    fake.create_tap = refuse  # type: ignore[method-assign]
    with pytest.raises(FailedPreconditionError) as refused:
        await rig.owner.configure_networking(
            vm.vm_id, NetworkRequest(Mode.NAT, "client_ip=10.0.0.9/8;bridge=br7")
        )
    assert refused.value.reason == "BRIDGE_UNAVAILABLE"
    assert (fake.taps, networked(trace)) == ({}, [])
    network = await rig.owner.configure_networking(
        vm.vm_id, NetworkRequest(Mode.NAT, "client_ip=10.0.0.9/8;bridge=br0")
    )
    assert network.mode is Mode.NAT


async def test_vms_whose_ids_begin_alike_have_taps_of_their_own(rig: Rig) -> None:
    """A client that chooses UUIDv7 ids begins those of one minute alike."""
    names: set[str] = set()
    for number in range(2):
        vm_id = f"01992f3c-0000-7000-8000-{number:012x}"
        vm = await rig.owner.create(replace(rig.vm_spec(), vm_id=vm_id))
        vm._network._taps = fake = FakeTaps([])
        await rig.owner.configure_networking(vm_id, NAT)
        names.update(fake.taps)
        await rig.owner.terminate(vm_id)  # the pool of the tests has too few subnets for both
    assert len(names) == 4


@pytest.mark.parametrize("broken", ["-e0", "-l0"])
async def test_no_rights_leave_nothing_behind_but_one_warning(
    rig: Rig, trace: list[Event], caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    vm, fake = await a_vm(rig)
    fake.broken = broken
    network = await rig.owner.configure_networking(vm.vm_id, NAT)
    assert (fake.taps, vm.devices.all(), rig.device_host.devices) == ({}, [], {})
    assert (network.mode, network.adapters, network.gateway_address) == (Mode.NONE, (), "")
    warning = network.warning
    assert warning is not None
    assert warning.id == "NetworkingFallback"
    assert warning.text.startswith("networking mode nat cannot be set up (TAP_UNAVAILABLE): ")
    assert vm.record.warnings == [warning]
    assert [line for line in caplog.messages if warning.text in line] == [
        f"VM {vm.vm_id}: {warning.text}"
    ]
    [said] = [event for event in trace if event.name == events.NETWORKING_FALLBACK]
    assert said.attributes[events.REASON] == "TAP_UNAVAILABLE"
    assert said.attributes[events.DETAIL] == warning.text
    [configured] = networked(trace)
    assert configured[events.NETWORKING_ASKED] == Mode.NAT
    assert configured[events.NETWORKING_MODE] == Mode.NONE
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.configure_networking(vm.vm_id, NAT)
    assert refused.value.reason == "NETWORKING_CONFIGURED"
    assert vm.record.warnings == [warning]


async def test_a_device_host_that_may_not_open_the_tap_is_no_right_either(rig: Rig) -> None:
    vm, fake = await a_vm(rig)
    rig.script.failures["CreateDevice"] = FailedPreconditionError("TAP_NOT_PERMITTED", "no right")
    network = await rig.owner.configure_networking(vm.vm_id, NAT)
    assert (network.mode, fake.taps, rig.device_host.devices) == (Mode.NONE, {}, {})


async def test_a_fault_that_passes_is_an_error_and_it_may_be_tried_again(
    rig: Rig, trace: list[Event]
) -> None:
    vm, fake = await a_vm(rig)
    rig.script.failures["CreateDevice"] = FailedPreconditionError("TAP_BUSY", "another has it")
    with pytest.raises(FailedPreconditionError) as refused:
        await rig.owner.configure_networking(vm.vm_id, NAT)
    assert refused.value.reason == "TAP_BUSY"
    assert (fake.taps, vm.record.warnings, networked(trace)) == ({}, [], [])
    del rig.script.failures["CreateDevice"]
    network = await rig.owner.configure_networking(vm.vm_id, NAT)
    assert network.mode is Mode.NAT


async def test_a_device_that_fails_leaves_no_tap(rig: Rig) -> None:
    vm, fake = await a_vm(rig)
    rig.script.failures["AttachDevice"] = UnavailableError("BOOM", "the peer fell over")
    with pytest.raises(UnavailableError):
        await rig.owner.configure_networking(vm.vm_id, NAT)
    assert (fake.taps, vm.devices.all(), rig.device_host.devices) == ({}, [], {})


async def test_the_network_goes_before_the_devices_and_they_before_the_machine(
    rig: Rig, trace: list[Event]
) -> None:
    vm, fake = await a_vm(rig)
    await rig.owner.configure_networking(vm.vm_id, NAT)
    rig.script.journal.clear()
    await rig.owner.terminate(vm.vm_id)
    assert rig.script.calls() == [
        "RemoveDevice",
        "DetachDevice",
        "RemoveDevice",
        "DetachDevice",
        "ForgetVm",
        "PowerOff",
    ]
    assert fake.taps == {}
    assert [event.name for event in trace][-3:] == [
        events.DEVICE_REMOVED,
        events.DEVICE_REMOVED,
        events.VM_TERMINATED,
    ]


async def test_an_adapter_that_was_removed_before_does_not_keep_its_vm_or_its_tap(
    rig: Rig,
) -> None:
    vm, fake = await a_vm(rig)
    vm_id = vm.vm_id
    network = await rig.owner.configure_networking(vm_id, NAT)
    await rig.owner.remove_device(vm_id, network.adapters[0].instance_id)
    await rig.owner.terminate(vm_id)
    assert (vm.record.state, fake.taps) == (VmState.TERMINATED, {})


def _in_a_network_of_its_own() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newnet = 0x4000_0000  # include/uapi/linux/sched.h
    if libc.unshare(clone_newnet) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.root
@pytest.mark.tap
def test_a_real_tap_is_made_addressed_and_removed() -> None:
    def run() -> None:
        taps.create_tap("ph-real-e0", IPv4Interface("10.9.0.1/30"))
        with IPRoute() as routes:
            [link] = [link for link in routes.get_links() if link.get("ifname") == "ph-real-e0"]
            addresses = [address.get("address") for address in routes.get_addr()]
        assert link["flags"] & 1  # IFF_UP
        assert "10.9.0.1" in addresses
        # Else the guest could become the host's IPv6 router.
        assert Path("/proc/sys/net/ipv6/conf/ph-real-e0/disable_ipv6").read_text() == "1\n"
        assert IPv4Network("10.9.0.0/30") in taps.host_networks()
        with pytest.raises(FailedPreconditionError, match="CAP_NET_ADMIN") as refused:
            taps.create_tap("ph-real-e0", IPv4Interface("10.9.0.5/30"))
        assert refused.value.reason == "TAP_UNAVAILABLE"
        taps.delete_tap("ph-real-e0")
        taps.delete_tap("ph-real-e0")
        with IPRoute() as routes:
            assert [link.get("ifname") for link in routes.get_links()] == ["lo"]

    with ThreadPoolExecutor(1, initializer=_in_a_network_of_its_own) as own:
        own.submit(run).result()


@pytest.mark.root
@pytest.mark.tap
def test_a_real_tap_on_a_bridge_leaves_with_its_vm_also_after_a_crash(tmp_path: Path) -> None:
    vm_id = "01234567-89ab-cdef-0123-456789abcdef"
    eth0, _ = taps.tap_names(vm_id)

    def links() -> dict[str, Any]:
        with IPRoute() as routes:
            return {link.get("ifname"): link for link in routes.get_links()}

    def run() -> None:
        with IPRoute() as routes:
            routes.link("add", ifname="br0", kind="bridge")
            routes.link("set", index=routes.link_lookup(ifname="br0")[0], mtu=1400)
        before = links()
        for name, kind in (("br7", "this host has no bridge 'br7'"), ("lo", "no bridge 'lo'")):
            with pytest.raises(FailedPreconditionError, match=kind) as refused:
                taps.create_tap(eth0, name)
            assert refused.value.reason == "BRIDGE_UNAVAILABLE"
            assert f"ip link add {name} type bridge" in refused.value.message
            assert set(links()) == set(before)
        taps.create_tap(eth0, "br0")
        made = links()[eth0]
        assert made.get_attr("IFLA_MASTER") == before["br0"]["index"]
        assert made.get_attr("IFLA_MTU") == 1400
        assert links()["br0"].get_attr("IFLA_MTU") == 1400
        assert made["flags"] & 1  # IFF_UP
        assert sweep(tmp_path, vm_id) == {}
        assert set(links()) == set(before)

    with ThreadPoolExecutor(1, initializer=_in_a_network_of_its_own) as own:
        own.submit(run).result()


@pytest.mark.root
@pytest.mark.tap
def test_a_real_tap_that_gets_no_address_is_not_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WithoutAddresses:
        def __init__(self) -> None:
            self._routes = IPRoute()

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self._routes.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._routes, name)

        def addr(self, *_: object, **__: object) -> None:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr("pyroute2.IPRoute", WithoutAddresses)

    def run() -> None:
        with pytest.raises(FailedPreconditionError, match="ENOBUFS"):
            taps.create_tap("ph-real-e0", IPv4Interface("10.9.0.1/30"))
        with IPRoute() as routes:
            assert [link.get("ifname") for link in routes.get_links()] == ["lo"]

    with ThreadPoolExecutor(1, initializer=_in_a_network_of_its_own) as own:
        own.submit(run).result()


@pytest.mark.root
@pytest.mark.tap
def test_without_rights_a_real_tap_is_refused_with_the_remedy() -> None:
    def as_nobody() -> None:
        _in_a_network_of_its_own()
        libc = ctypes.CDLL(None, use_errno=True)
        # The raw system call changes this thread only, and drops its capabilities.
        setresuid = 117 if os.uname().machine == "x86_64" else 147
        assert libc.syscall(setresuid, 65534, 65534, 65534) == 0

    def run() -> None:
        with pytest.raises(FailedPreconditionError, match="CAP_NET_ADMIN") as refused:
            taps.create_tap("ph-real-e0", IPv4Interface("10.9.0.1/30"))
        assert refused.value.reason == "TAP_UNAVAILABLE"
        assert refused.value.metadata["errno"] in ("1", "13")  # EPERM, EACCES
        with IPRoute() as routes:
            assert [link.get("ifname") for link in routes.get_links()] == ["lo"]

    with ThreadPoolExecutor(1, initializer=as_nobody) as own:
        own.submit(run).result()


@pytest.mark.parametrize("asked", ["", "spoofing=refuse", "spoofing=allow"])
async def test_adapters_keep_to_their_addresses_unless_it_is_asked_otherwise(
    rig: Rig, asked: str
) -> None:
    vm, _ = await a_vm(rig)
    request = NetworkRequest(Mode.VIRTIO_PROXY, asked)
    wanted = [] if asked == "spoofing=allow" else ["spoofing=refuse"]
    for adapter in (await rig.owner.configure_networking(vm.vm_id, request)).adapters:
        assert [item for item in adapter.options.split(";") if "spoofing" in item] == wanted


async def test_an_older_device_host_has_adapters_that_keep_to_no_addresses(rig: Rig) -> None:
    vm, _ = await a_vm(rig)
    rig.device_host.features = tuple(each for each in FEATURES if each != SPOOFING)
    request = NetworkRequest(NAT.mode, "spoofing=allow")
    adapters = (await rig.owner.configure_networking(vm.vm_id, request)).adapters
    assert len(adapters) == len(rig.device_host.devices) == 2
    # It would refuse an option that it does not know.
    assert not any("spoofing" in adapter.options for adapter in adapters)


async def test_a_device_host_that_cannot_keep_a_guest_to_its_addresses_is_refused(rig: Rig) -> None:
    vm, _ = await a_vm(rig)
    rig.device_host.features = tuple(each for each in FEATURES if each != SPOOFING)
    with pytest.raises(FailedPreconditionError) as refused:
        await rig.owner.configure_networking(vm.vm_id, NAT)
    assert refused.value.metadata["feature"] == SPOOFING
    assert "spoofing=allow" in refused.value.message
    assert rig.device_host.devices == {}
