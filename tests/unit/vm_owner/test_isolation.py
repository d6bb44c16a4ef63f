"""Strict isolation as the owner sees it: a place for each device, and a part of the pool with it.

The machine of these tests is one that has places; the others are in tests/unit/vm_owner/machines.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.handshake.pool import Gpa, SwiotlbPool
from services.vm_owner.assembly import MachineSpec, QemuSpec
from services.vm_owner.guest_devices import DeviceSpec
from services.vm_owner.machines import Isolation, Placement
from services.vm_owner.shares import ShareSpec
from tests.support.owner_peers import POOL, TOKEN

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.events import Event
    from services.vm_owner.vm import Vm
    from tests.support.owner_peers import Rig

MIB = 1 << 20
STRICT = MachineSpec(qemu=QemuSpec(isolation=Isolation.STRICT))
BOOM = UnavailableError("BOOM", "the peer fell over")


def part(number: int) -> SwiotlbPool:
    return SwiotlbPool(Gpa(POOL.base + number * 8 * MIB), 8 * MIB)


@dataclass
class Places:
    """The places of a machine, each with a part of the pool."""

    parts: list[SwiotlbPool] = field(default_factory=lambda: [part(0), part(1)])
    taken: dict[str, int] = field(default_factory=dict)

    def reserve(self, instance_id: str) -> Placement:
        free = [n for n in range(len(self.parts)) if n not in self.taken.values()]
        if not free:
            raise ResourceExhaustedError("GUEST_PORTS_EXHAUSTED", "all ports have a device")
        self.taken[instance_id] = free[0]
        return Placement(self.parts[free[0]])

    def give_back(self, instance_id: str) -> None:
        del self.taken[instance_id]


async def strict_vm(rig: Rig, monkeypatch: pytest.MonkeyPatch, places: Places) -> Vm:
    vm = await rig.owner.create(rig.vm_spec(machine=STRICT))
    monkeypatch.setattr(vm.machine, "reserve", places.reserve)
    monkeypatch.setattr(vm.machine, "give_back", places.give_back)
    rig.script.journal.clear()
    return vm


def fs(tmp_path: Path, tag: str) -> DeviceSpec:
    return DeviceSpec(events.FS, tag, "ro", str(tmp_path))


async def test_the_machine_is_asked_for_the_pool_and_not_the_kernel(rig: Rig) -> None:
    vm = await rig.owner.create(rig.vm_spec(machine=STRICT))
    assert "swiotlb" not in rig.machine.boots[0].kernel_command_line
    facts = vm.record.facts
    assert (facts.divides_pool, facts.requested_bytes) == (True, 64 * MIB)
    shared = await rig.owner.create(rig.vm_spec(machine=MachineSpec(qemu=QemuSpec())))
    assert "hv_pci_swiotlb=67108864" in rig.machine.boots[1].kernel_command_line
    assert not shared.record.facts.divides_pool


async def test_each_device_has_the_whole_token_and_its_own_part(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vm = await strict_vm(rig, monkeypatch, Places())
    for tag in ("one", "two"):
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, tag))
    written = [text for _, call, text in rig.script.journal if call == "CreateDevice"]
    assert written == [
        f"one;ro;{TOKEN};aperture=0x3c000000,8388608;vm_id={vm.vm_id}",
        f"two;ro;{TOKEN};aperture=0x3c800000,8388608;vm_id={vm.vm_id}",
    ]
    assert rig.device_host.pools == {vm.vm_id: [TOKEN, TOKEN]}


async def test_without_a_free_place_nothing_is_begun(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, trace: list[Event], tmp_path: Path
) -> None:
    places = Places(parts=[])
    vm = await strict_vm(rig, monkeypatch, places)
    trace.clear()
    with pytest.raises(ResourceExhaustedError) as refused:
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, "one"))
    assert refused.value.reason == "GUEST_PORTS_EXHAUSTED"
    assert rig.script.journal == []
    assert trace == []
    assert vm.devices.all() == []


@pytest.mark.parametrize(
    ("announced", "shown"),
    [
        (None, "no pool"),
        (SwiotlbPool(Gpa(0x2000_0000), 64 * MIB), "[0x20000000, 0x24000000)"),
        (SwiotlbPool(Gpa(POOL.base + MIB), 64 * MIB), "[0x3c100000, 0x40100000)"),
    ],
)
async def test_a_guest_that_has_not_the_pool_that_was_placed_gets_no_device(
    rig: Rig,
    monkeypatch: pytest.MonkeyPatch,
    trace: list[Event],
    tmp_path: Path,
    announced: SwiotlbPool | None,
    shown: str,
) -> None:
    assert rig.machine.capabilities is not None
    rig.machine.capabilities.ClearField("swiotlb_pool")
    if announced is not None:
        rig.machine.capabilities.swiotlb_pool.base = announced.base
        rig.machine.capabilities.swiotlb_pool.size_bytes = announced.size_bytes
    places = Places()
    vm = await strict_vm(rig, monkeypatch, places)
    trace.clear()
    with pytest.raises(FailedPreconditionError) as refused:
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, "one"))
    assert refused.value.reason == "ISOLATION_WITHOUT_POOL"
    assert shown in refused.value.message
    assert rig.script.journal == []
    assert trace == []
    assert places.taken == {}


@pytest.mark.parametrize("lacking", ["swiotlb-token", "aperture"])
async def test_a_device_host_that_would_give_a_device_more_is_refused(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lacking: str
) -> None:
    rig.device_host.features = tuple(f for f in rig.device_host.features if f != lacking)
    places = Places()
    vm = await strict_vm(rig, monkeypatch, places)
    with pytest.raises(FailedPreconditionError, match=repr(lacking)) as refused:
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, "one"))
    assert refused.value.reason == "DEVICE_HOST_FEATURE"
    assert "CreateDevice" not in rig.script.calls()
    assert places.taken == {}


@pytest.mark.parametrize("lacking", ["aperture"])
async def test_with_shared_memory_the_feature_does_not_matter(
    rig: Rig, tmp_path: Path, lacking: str
) -> None:
    rig.device_host.features = tuple(f for f in rig.device_host.features if f != lacking)
    vm = await rig.owner.create(rig.vm_spec())
    device = await rig.owner.add_device(vm.vm_id, fs(tmp_path, "one"))
    assert "aperture" not in device.options


@pytest.mark.parametrize(
    ("call", "given_back"), [("SetSwiotlb", True), ("CreateDevice", True), ("AttachDevice", False)]
)
async def test_a_failed_addition_gives_its_place_back_unless_the_guest_may_have_the_device(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, given_back: bool
) -> None:
    places = Places()
    vm = await strict_vm(rig, monkeypatch, places)
    rig.script.failures[call] = BOOM
    with pytest.raises(UnavailableError):
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, "one"))
    assert (places.taken == {}) is given_back
    # Of a device that the guest may have, detaching frees the place, in the machine.
    assert ("DetachDevice" in rig.script.calls()) is not given_back


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (DeviceSpec(events.FS, "one", "colour=red", "/"), "OPTION_UNKNOWN"),
        (DeviceSpec(events.FS, "one", "aperture=0x3c000000,4096", "/"), "OPTION_RESERVED"),
        (DeviceSpec(events.FS, "o/e", "", "/"), "DEVICE_NAME"),
    ],
)
async def test_a_device_that_cannot_be_registered_keeps_no_place(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, spec: DeviceSpec, reason: str
) -> None:
    places = Places()
    vm = await strict_vm(rig, monkeypatch, places)
    with pytest.raises(InvalidArgumentError) as refused:
        await rig.owner.add_device(vm.vm_id, spec)
    assert refused.value.reason == reason
    assert places.taken == {}


async def test_a_client_cannot_choose_its_shares_part(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vm = await strict_vm(rig, monkeypatch, Places())
    with pytest.raises(PortholeError) as refused:
        await rig.owner.add_share(
            vm.vm_id, ShareSpec(str(tmp_path), options="aperture=0x3c000000,4096")
        )
    assert refused.value.reason == "OPTION_RESERVED"


async def test_the_shares_of_an_aggregate_have_one_part(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = Places()
    vm = await strict_vm(rig, monkeypatch, places)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        await rig.owner.add_share(vm.vm_id, ShareSpec(str(tmp_path / name), aggregate=True))
    assert len(places.taken) == 1
    children = [text for _, call, text in rig.script.journal if call == "AddChild"]
    assert len(children) == 2
    assert not any("aperture" in text for text in children)
