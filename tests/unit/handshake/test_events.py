"""Events of the trace: the words here are those that others' dashboards and alerts are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities, KernelVersion
from services.handshake.events import Sizing
from services.handshake.features import feature_list
from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.handshake.events import Event

BASE, SIZE = 0x1_0000_0000, 64 << 20
POOL = SwiotlbPool(Gpa(BASE), SIZE)
POOL_ATTRIBUTES = {"porthole.pool.base": BASE, "porthole.pool.size_bytes": SIZE}
NO_POOL = {"porthole.pool.base": 0, "porthole.pool.size_bytes": 0}
VM = {"porthole.vm.id": "vm"}
RELEASE = {"porthole.kernel.release": "6.18.26.3"}
DEVICE = {
    **VM,
    "porthole.device.id": "device",
    "porthole.device.class": "virtio-fs",
    "porthole.device.tag": "tag",
}
OF_DEVICE = ("vm", "device", events.FS, "tag")


def reported(pool: SwiotlbPool | None, *, seccomp: bool | None = None) -> GuestCapabilities:
    return GuestCapabilities(
        pool=pool, kernel_release="6.18.26.3", seccomp_user_notification=seccomp
    )


def sized(configured_bytes: int | None) -> Sizing:
    return Sizing(
        ram_bytes=4 << 30,
        virtio=True,
        device_bounces=False,
        configured_bytes=configured_bytes,
        requested_bytes=SIZE,
    )


def created(configured_bytes: int) -> dict[str, object]:
    return {
        **VM,
        "porthole.vm.kind": "wsl2",
        "porthole.vm.ram_bytes": 4 << 30,
        "porthole.vm.virtio": True,
        "porthole.vm.device_bounces": False,
        "porthole.pool.configured_bytes": configured_bytes,
        "porthole.pool.requested_bytes": SIZE,
    }


def kernel(major: int, minor: int, patch: int, *, seccomp: bool) -> dict[str, object]:
    return {
        **VM,
        **RELEASE,
        "porthole.kernel.major": major,
        "porthole.kernel.minor": minor,
        "porthole.kernel.patch": patch,
        "porthole.kernel.seccomp_user_notification": seccomp,
    }


def judged(stage: str, verdict: str, rules: str) -> dict[str, object]:
    return {
        **VM,
        "porthole.handshake.stage": stage,
        "porthole.handshake.verdict": verdict,
        "porthole.handshake.broken_rules": rules,
    }


@pytest.mark.parametrize(
    ("make", "name", "attributes"),
    [
        (lambda: events.vm_created("vm", "wsl2", sized(None)), "VmCreated", created(-1)),
        (lambda: events.vm_created("vm", "wsl2", sized(0)), "VmCreated", created(0)),
        (lambda: events.vm_created("vm", "wsl2", sized(7)), "VmCreated", created(7)),
        (lambda: events.guest_booted("vm", 7), "GuestBooted", {**VM, "porthole.vm.ram_base": 7}),
        (
            lambda: events.guest_kernel_info(
                "vm", reported(POOL, seccomp=True), KernelVersion(6, 18, 26)
            ),
            "GuestKernelInfo",
            {**kernel(6, 18, 26, seccomp=True), **POOL_ATTRIBUTES},
        ),
        (
            lambda: events.guest_kernel_info("vm", reported(None), None),
            "GuestKernelInfo",
            {**kernel(0, 0, 0, seccomp=False), **NO_POOL},
        ),
        (
            lambda: events.wslc_read("vm", reported(POOL)),
            "WSLCReadGuestCapabilities",
            {**VM, **POOL_ATTRIBUTES, **RELEASE},
        ),
        (
            lambda: events.wslc_apply("vm", BASE, SIZE, "6.18.26.3"),
            "WSLCApplyGuestCapabilities",
            {**VM, **POOL_ATTRIBUTES, **RELEASE},
        ),
        (
            lambda: events.pool_latched("vm", POOL, "swiotlb=…"),
            "PoolLatched",
            {**VM, **POOL_ATTRIBUTES, "porthole.pool.token": "swiotlb=…"},
        ),
        (
            lambda: events.pool_not_as_requested("vm", POOL, 7),
            "PoolNotAsRequested",
            {**VM, **POOL_ATTRIBUTES, "porthole.pool.requested_bytes": 7},
        ),
        (
            lambda: events.pool_refused("vm", BASE, SIZE, "WHY", "in words"),
            "PoolRefused",
            {**VM, **POOL_ATTRIBUTES, "porthole.reason": "WHY", "porthole.detail": "in words"},
        ),
        (
            lambda: events.kernel_unsupported("vm", "in words"),
            "MessageSwiotlbKernelUnsupported",
            {**VM, "porthole.detail": "in words"},
        ),
        (
            lambda: events.device_host_unsupported("vm", "in words"),
            "SwiotlbDeviceHostUnsupported",
            {**VM, "porthole.detail": "in words"},
        ),
        (
            lambda: events.device_added(*OF_DEVICE, "options", "features"),
            "AddGuestDevice",
            {
                **DEVICE,
                "porthole.device.options": "options",
                "porthole.device_host.features": "features",
            },
        ),
        (
            lambda: events.aperture_created(*OF_DEVICE, POOL),
            "ApertureCreated",
            {**DEVICE, **POOL_ATTRIBUTES},
        ),
        (lambda: events.windows_enabled(*OF_DEVICE), "WindowsEnabled", {**DEVICE, **NO_POOL}),
        (lambda: events.first_request(*OF_DEVICE), "FirstRequestCompleted", DEVICE),
        (
            lambda: events.link_changed(*OF_DEVICE, up=False, why="passt has ended"),
            "AdapterLinkChanged",
            {**DEVICE, "porthole.link": "down", "porthole.detail": "passt has ended"},
        ),
        (lambda: events.device_removed(*OF_DEVICE), "RemoveGuestDevice", DEVICE),
        (
            lambda: events.guest_init_ended("vm", "signal 9"),
            "GuestInitEnded",
            {**VM, "porthole.detail": "signal 9"},
        ),
        (
            lambda: events.handshake_verdict("vm", events.RUNNING, ()),
            "HandshakeVerdict",
            judged("running", "valid", ""),
        ),
        (
            lambda: events.handshake_verdict("vm", events.ENDED, ["A_RULE", "ANOTHER"]),
            "HandshakeVerdict",
            judged("ended", "broken", "A_RULE ANOTHER"),
        ),
        (
            lambda: events.handshake_verdict("vm", events.ENDED, None),
            "HandshakeVerdict",
            judged("ended", "unknown", ""),
        ),
        (lambda: events.vm_terminated("vm"), "VmTerminated", VM),
    ],
)
def test_each_event_has_its_name_and_its_attributes(
    make: Callable[[], Event], name: str, attributes: dict[str, object]
) -> None:
    event = make()
    assert (event.name, event.attributes) == (name, attributes)


def test_features_are_words_in_order() -> None:
    assert feature_list(frozenset({"b", "c", "a"})) == "a b c"


def test_numbers_that_no_trace_has_are_the_largest_that_one_has() -> None:
    largest = (1 << 63) - 1
    for number, shown in ((largest, largest), (largest + 1, largest), ((1 << 64) - 1, largest)):
        attributes = events.wslc_apply("vm", number, number, "").attributes
        assert attributes["porthole.pool.base"] == shown
        assert attributes["porthole.pool.size_bytes"] == shown
