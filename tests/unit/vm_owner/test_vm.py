"""Reading capabilities and latching: handshake.md section 4, rule by rule."""

from __future__ import annotations

import pytest

from services.handshake import events
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError, PortholeError
from services.handshake.events import Event
from services.handshake.pool import Gpa, SwiotlbPool
from services.handshake.states import VmEvent, VmState
from services.vm_owner import warnings
from services.vm_owner.manifest import load_manifest
from services.vm_owner.vm import PoolLatched, Report, Vm, VmFacts, VmKind
from services.vm_owner.wslconfig import NetworkingMode

MIB = 1 << 20
GOOD = Report(0x3C00_0000, 64 * MIB, "6.18.26.3-microsoft", True, b"\x01")
NONE = Report(kernel_release="5.15.167.4-microsoft")


class Traced(list[Event]):
    @property
    def names(self) -> list[str]:
        return [event.name for event in self]


def make(kind: VmKind = VmKind.WSL2, requested_bytes: int = 64 * MIB) -> tuple[Vm, Traced]:
    facts = VmFacts(
        vm_id="vm-1",
        kind=kind,
        ram_bytes=2048 * MIB,
        low_ram_bytes=2048 * MIB,
        requested_bytes=requested_bytes,
        kernel_command_line="",
        networking_mode=NetworkingMode.VIRTIO_PROXY,
        virtio=True,
        traceparent="",
    )
    trace = Traced()
    vm = Vm(facts, load_manifest(), trace.append)
    vm.fire(VmEvent.BOOT)
    return vm, trace


def warned(vm: Vm) -> list[str]:
    return [warning.id for warning in vm.warnings]


def test_a_pool_is_latched_and_the_token_formatted_once() -> None:
    vm, trace = make()
    assert vm.read_capabilities(GOOD) is False
    assert vm.state is VmState.RUNNING
    assert vm.pool == SwiotlbPool(Gpa(0x3C00_0000), 64 * MIB)
    token = vm.token
    assert token == "swiotlb=0x3c000000,67108864"
    assert vm.read_capabilities(GOOD) is True
    assert vm.token is token
    assert trace.names == [
        events.GUEST_KERNEL_INFO,
        events.POOL_LATCHED,
        events.GUEST_KERNEL_INFO,
    ]
    assert trace[0].attributes[events.KERNEL_PATCH] == 26
    assert trace[0].attributes[events.SECCOMP] is True
    assert trace[1].attributes[events.TOKEN] == token
    assert vm.warnings == []


@pytest.mark.parametrize(
    "other",
    [
        Report(0x3C00_0000, 32 * MIB),
        Report(0x1000_0000, 64 * MIB),
        Report(),
    ],
)
def test_other_values_than_the_latched_change_nothing(other: Report) -> None:
    vm, trace = make(VmKind.WSLC)
    vm.read_capabilities(GOOD)
    pool, token = vm.pool, vm.token
    with pytest.raises(FailedPreconditionError) as refused:
        vm.read_capabilities(other)
    assert refused.value.reason == "SWIOTLB_ALREADY_LATCHED"
    assert "0x3c000000" in refused.value.message
    assert (vm.pool, vm.report, vm.state) == (pool, GOOD, VmState.RUNNING)
    assert vm.token is token
    assert vm.warnings == []
    assert trace.names[-2:] == [events.WSLC_APPLY, events.POOL_REFUSED]


BAD = [
    (Report(0, 64 * MIB), "SWIOTLB_HALF_POOL"),
    (Report(0x1000, 0), "SWIOTLB_HALF_POOL"),
    (Report(0x1001, 64 * MIB), "SWIOTLB_BASE_UNALIGNED"),
    (Report(0x1000, 4097), "SWIOTLB_SIZE_UNALIGNED"),
    (Report((1 << 64) - 4096, 8192), "SWIOTLB_OVERFLOW"),
    (Report((1 << 32) - 4096, 8192), "SWIOTLB_ABOVE_4G"),
    (Report(2048 * MIB - 4096, 8192), "SWIOTLB_OUTSIDE_RAM"),
]


@pytest.mark.parametrize("kind", VmKind)
@pytest.mark.parametrize(("report", "reason"), BAD)
def test_a_bad_pool_is_refused_and_the_vm_runs_without(
    kind: VmKind, report: Report, reason: str
) -> None:
    vm, trace = make(kind)
    with pytest.raises(InvalidArgumentError) as refused:
        vm.read_capabilities(report)
    assert refused.value.reason == reason
    assert (vm.state, vm.pool, vm.token) == (VmState.RUNNING, None, None)
    assert trace.names[-1] == events.POOL_REFUSED
    assert trace[-1].attributes[events.REASON] == reason
    assert warned(vm) == [warnings.POOL_REFUSED]
    assert reason in vm.warnings[0].text


def test_a_guest_that_repeats_itself_is_warned_of_once() -> None:
    vm, _ = make()
    for _ in range(5):
        with pytest.raises(InvalidArgumentError):
            vm.read_capabilities(Report(0x1001, 64 * MIB, "no version here"))
    assert warned(vm) == [warnings.KERNEL_RELEASE_UNREADABLE, warnings.POOL_REFUSED]


def test_a_bad_pool_does_not_shake_a_latched_one() -> None:
    vm, _ = make()
    vm.read_capabilities(GOOD)
    with pytest.raises(InvalidArgumentError):
        vm.read_capabilities(Report(0x1001, 64 * MIB))
    assert vm.report is GOOD
    assert vm.token == "swiotlb=0x3c000000,67108864"
    assert vm.warnings == []


@pytest.mark.parametrize("first", [Report(), BAD[0][0]])
def test_no_pool_may_be_followed_by_a_pool(first: Report) -> None:
    vm, _ = make(VmKind.WSLC)
    try:
        assert vm.read_capabilities(first) is False
    except PortholeError:
        assert vm.pool is None
    assert vm.token is None
    assert vm.read_capabilities(GOOD) is False
    assert vm.token == "swiotlb=0x3c000000,67108864"


@pytest.mark.parametrize(
    ("kind", "requested_bytes", "due"),
    [
        (VmKind.WSL2, 64 * MIB, True),
        (VmKind.WSL2, 0, False),
        (VmKind.WSLC, 64 * MIB, False),
    ],
)
def test_the_old_kernel_warning_comes_once_and_only_when_due(
    kind: VmKind, requested_bytes: int, due: bool
) -> None:
    vm, trace = make(kind, requested_bytes)
    vm.read_capabilities(NONE)
    vm.read_capabilities(NONE)
    assert warned(vm) == [warnings.KERNEL_UNSUPPORTED] * due
    assert trace.names.count(events.KERNEL_UNSUPPORTED) == due
    if due:
        assert "5.15.167.4" in vm.warnings[0].text
        assert "slower" in vm.warnings[0].text


def test_capabilities_are_not_read_before_boot_nor_after_the_end() -> None:
    facts = make()[0].facts
    vm = Vm(facts, load_manifest(), Traced().append)
    with pytest.raises(FailedPreconditionError, match="ApplyGuestCapabilities") as early:
        vm.read_capabilities(GOOD)
    vm.fire(VmEvent.BOOT)
    vm.fire(VmEvent.SHUT_DOWN)
    with pytest.raises(FailedPreconditionError) as late:
        vm.read_capabilities(GOOD)
    assert (early.value.reason, late.value.reason) == ("VM_NOT_BOOTED", "VM_SHUTTING_DOWN")
    assert vm.token is None


async def test_a_watcher_sees_the_present_first_then_everything_in_order() -> None:
    vm, _ = make()
    with vm.watch() as early:
        vm.read_capabilities(GOOD)
        vm.read_capabilities(GOOD)  # changes nothing, so there is nothing to see
        with vm.watch() as late:
            vm.fire(VmEvent.SHUT_DOWN)
            vm.fire(VmEvent.TERMINATE)
            latched = PoolLatched(SwiotlbPool(Gpa(0x3C00_0000), 64 * MIB))
            ending = [VmState.SHUTTING_DOWN, VmState.TERMINATED]
            assert [item async for item in early] == [
                VmState.BOOTED,
                latched,
                VmState.RUNNING,
                *ending,
            ]
            assert [item async for item in late] == [VmState.RUNNING, latched, *ending]
