"""The size of the pool that a VM requests: computed from its RAM and configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.pool import reserved_pool_bytes
from services.handshake.sizing import RAM_BASES, is_ram, requested_pool_bytes
from services.handshake.trace.clause import Absence, Clause, Hops, Value, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.vm_trace import VmTrace


def _ram_invalid(vm: VmTrace) -> Iterator[str]:
    if vm.created and not is_ram(vm.ram_bytes):
        yield f"{vm.ram_bytes} bytes of RAM, which no VM may have"
    if vm.ram_base not in RAM_BASES:
        yield f"RAM that begins at 0x{vm.ram_base:x}, which that of no machine does"


def _requested_mismatch(vm: VmTrace) -> Iterator[str]:
    if vm.created is None:
        return
    configured_bytes = vm.created.number(events.CONFIGURED_BYTES)
    due = requested_pool_bytes(
        vm.ram_bytes,
        device_bounces=vm.created.truth(events.DEVICE_BOUNCES),
        configured_bytes=None if configured_bytes == events.NOT_CONFIGURED else configured_bytes,
    )
    if vm.requested_bytes != due:
        yield (
            f"a pool of {vm.requested_bytes} bytes was requested; RAM and configuration make it "
            f"{due}"
        )


def _virtio_off(vm: VmTrace) -> Iterator[str]:
    if vm.created is None or vm.created.truth(events.VIRTIO):
        return
    if vm.created.truth(events.DEVICE_BOUNCES):
        yield "virtio is off, and a device that bounces is allowed"
    if vm.created.number(events.CONFIGURED_BYTES) != events.NOT_CONFIGURED:
        yield "virtio is off, and a configured pool was not dropped"


def _device_unexpected(vm: VmTrace) -> Iterator[str]:
    if vm.created and not vm.created.truth(events.DEVICE_BOUNCES):
        for device in vm.added_devices:
            yield f"{device} was added to a VM whose configuration allows no devices"


def _pool_not_as_requested(vm: VmTrace) -> Iterator[str]:
    if vm.created and vm.latched:
        size_bytes, due = vm.latched.numbers[1], reserved_pool_bytes(vm.requested_bytes)
        if size_bytes != due:
            yield (
                f"a pool of {size_bytes} bytes was latched; {vm.requested_bytes} bytes were "
                f"requested, which a kernel rounds up to {due}"
            )


def _not_as_requested_misreported(vm: VmTrace) -> Iterator[str]:
    said = vm.first(events.POOL_NOT_AS_REQUESTED)
    if vm.created is None:
        return
    due = vm.latched is not None and bool(list(_pool_not_as_requested(vm)))
    if due and said is None:
        yield f"the latched pool is not what was requested, and there is no {_SAID}"
    if said is not None and not due:
        yield f"{_SAID}, although the latched pool, if any, is what was requested"
    if said is not None and vm.latched is not None:
        shown = (*said.numbers, said.number(events.REQUESTED_BYTES))
        true = (*vm.latched.numbers, vm.requested_bytes)
        if shown != true:
            yield f"{_SAID} has base, size and request {shown}; they are {true}"


_SAID: Final = events.POOL_NOT_AS_REQUESTED
_CREATED: Final = events.VM_CREATED
_LATCHED: Final = values(events.POOL_LATCHED, keys=(events.POOL_BASE, events.POOL_SIZE_BYTES))

CLAUSES: Final = (
    Clause(
        "RAM_INVALID",
        5,
        "A VM has RAM within the bounds, in whole MiB, which begins where a machine has it.",
        (Value(_CREATED, events.RAM_BYTES), Value(events.GUEST_BOOTED, events.RAM_BASE)),
        _ram_invalid,
    ),
    Clause(
        "REQUESTED_MISMATCH",
        5,
        "The pool that is requested follows from RAM, devices that bounce, and configuration.",
        values(
            _CREATED,
            keys=(
                events.RAM_BYTES,
                events.DEVICE_BOUNCES,
                events.CONFIGURED_BYTES,
                events.REQUESTED_BYTES,
            ),
        ),
        _requested_mismatch,
    ),
    Clause(
        "VIRTIO_OFF",
        5,
        "Without virtio no device that bounces is allowed, and a configured pool is dropped.",
        values(_CREATED, keys=(events.VIRTIO, events.DEVICE_BOUNCES, events.CONFIGURED_BYTES)),
        _virtio_off,
    ),
    Clause(
        "DEVICE_UNEXPECTED",
        5,
        "A VM whose configuration allows no device that bounces has no devices.",
        (Value(_CREATED, events.DEVICE_BOUNCES),),
        _device_unexpected,
    ),
    Clause(
        "POOL_NOT_AS_REQUESTED",
        1,
        "The latched pool has the size that was requested, rounded up to 2 MiB; none is latched if "
        "none was requested.",
        (
            Hops(),
            Value(_CREATED, events.REQUESTED_BYTES),
            *_LATCHED,
        ),
        _pool_not_as_requested,
    ),
    Clause(
        "NOT_AS_REQUESTED_MISREPORTED",
        4,
        "A latched pool that is not what was requested is reported, with both sizes, and no other.",
        (
            Hops(),
            Absence(_SAID),
            Value(_CREATED, events.REQUESTED_BYTES),
            *_LATCHED,
            *values(_SAID, keys=(events.POOL_BASE, events.POOL_SIZE_BYTES, events.REQUESTED_BYTES)),
        ),
        _not_as_requested_misreported,
    ),
)
