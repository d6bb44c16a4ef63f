"""The network engine: adapters, modes, and TAPs that are never left behind."""

from __future__ import annotations

import ctypes
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from typing import TYPE_CHECKING, Any, Self

import pytest
from pyroute2 import IPRoute

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    UnavailableError,
)
from services.handshake.options import parse_net_options
from services.vm_owner import taps
from services.vm_owner.states import VmState
from tests.support.owner_peers import TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.handshake.events import Event
    from services.vm_owner.vm import Vm
    from tests.support.owner_peers import Rig


class FakeTaps:
    """Keeps TAPs as entries. A TAP whose name is in `broken` cannot be made."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.taps: dict[str, IPv4Interface] = {}
        self.broken = ""

    def create_tap(self, name: str, host_address: IPv4Interface) -> None:
        if self.broken and self.broken in name:
            raise FailedPreconditionError("TAP_UNAVAILABLE", f"no rights for {name}")
        self.log.append(f"create {name}")
        self.taps[name] = host_address

    def delete_tap(self, name: str) -> None:
        self.log.append(f"delete {name}")
        del self.taps[name]

    def host_networks(self) -> Iterable[IPv4Network]:
        return [IPv4Network("10.231.0.0/30"), IPv4Network("10.0.0.0/8")]


async def a_vm(rig: Rig, wslconfig: str = "") -> tuple[Vm, FakeTaps]:
    vm = await rig.owner.create(rig.vm_spec(wslconfig=wslconfig))
    fake = FakeTaps([])
    vm._network._taps = fake
    return vm, fake


async def test_two_adapters_each_with_token_tap_and_addresses(rig: Rig) -> None:
    vm, fake = await a_vm(rig)
    vm_id = vm.vm_id
    network = await rig.owner.configure_networking(vm_id)
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
        f"{TOKEN};vm_id={vm_id}"
    )
    assert loopback0.options == (
        f"loopback0;client_ip=10.231.0.10/30;client_mac=52:54:0a:e7:00:0a;{TOKEN};vm_id={vm_id}"
    )
    for adapter in network.adapters:
        assert parse_net_options(adapter.options).client_mac is not None
    attached = rig.machine.attached
    assert attached[eth0.instance_id].client_address == "10.231.0.6/30"
    assert attached[eth0.instance_id].gateway_address == "10.231.0.5"
    assert attached[loopback0.instance_id].gateway_address == ""


async def test_configuring_twice(rig: Rig) -> None:
    vm, _ = await a_vm(rig)
    await rig.owner.configure_networking(vm.vm_id)
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.configure_networking(vm.vm_id)
    assert refused.value.reason == "NETWORKING_CONFIGURED"
    assert [device.spec.tag for device in vm.devices.all()] == ["eth0", "loopback0"]


@pytest.mark.parametrize(
    ("wslconfig", "mode"),
    [
        ("[wsl2]\nnetworkingMode=nat\n", "nat"),
        ("[wsl2]\nnetworkingMode=none\n", "none"),
        ("[wsl2]\nnetworkingMode=mirrored\n", "mirrored"),
        ("[experimental]\nnetworkingMode=bridged\n", "bridged"),
        ("[wsl2]\nsafeMode=true\n", "none"),
        ("[wsl2]\nvirtio=false\n", "none"),
        ("[wsl2]\nvirtio=false\nnetworkingMode=VirtioProxy\n", "nat"),
    ],
)
async def test_other_modes_have_no_adapters(rig: Rig, wslconfig: str, mode: str) -> None:
    vm, fake = await a_vm(rig, wslconfig)
    with pytest.raises(FailedPreconditionError, match=f"networking mode {mode}") as refused:
        await rig.owner.configure_networking(vm.vm_id)
    assert refused.value.reason == "NETWORKING_MODE"
    assert fake.log == []


async def test_vms_whose_ids_begin_alike_have_taps_of_their_own(rig: Rig) -> None:
    """A client that chooses UUIDv7 ids begins those of one minute alike."""
    names: set[str] = set()
    for number in range(2):
        vm_id = f"01992f3c-0000-7000-8000-{number:012x}"
        vm = await rig.owner.create(replace(rig.vm_spec(), vm_id=vm_id))
        vm._network._taps = fake = FakeTaps([])
        await rig.owner.configure_networking(vm_id)
        names.update(fake.taps)
        await rig.owner.terminate(vm_id)  # the pool of the tests has too few subnets for both
    assert len(names) == 4


@pytest.mark.parametrize("broken", ["-e0", "-l0"])
async def test_no_rights_leave_nothing_behind_and_it_may_be_tried_again(
    rig: Rig, broken: str
) -> None:
    vm, fake = await a_vm(rig)
    fake.broken = broken
    with pytest.raises(FailedPreconditionError) as refused:
        await rig.owner.configure_networking(vm.vm_id)
    assert refused.value.reason == "TAP_UNAVAILABLE"
    assert (fake.taps, vm.devices.all(), rig.device_host.devices) == ({}, [], {})
    fake.broken = ""
    network = await rig.owner.configure_networking(vm.vm_id)
    assert network.gateway_address == "10.231.0.5"


async def test_a_device_that_fails_leaves_no_tap(rig: Rig) -> None:
    vm, fake = await a_vm(rig)
    rig.script.failures["AttachDevice"] = UnavailableError("BOOM", "the peer fell over")
    with pytest.raises(UnavailableError):
        await rig.owner.configure_networking(vm.vm_id)
    assert (fake.taps, vm.devices.all(), rig.device_host.devices) == ({}, [], {})


async def test_the_network_goes_before_the_devices_and_they_before_the_machine(
    rig: Rig, trace: list[Event]
) -> None:
    vm, fake = await a_vm(rig)
    await rig.owner.configure_networking(vm.vm_id)
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
    network = await rig.owner.configure_networking(vm_id)
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
