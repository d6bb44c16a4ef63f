"""The warnings of a kernel without a pool, and of a device host without tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.trace.clause import Absence, Clause, Once, Presence, Value, values
from services.handshake.trace.recorded import NO_POOL
from services.handshake.trace.vocabulary import WSL2

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.vm_trace import VmTrace


def _due(vm: VmTrace) -> bool:
    if vm.kind != WSL2 or vm.requested_bytes == 0:
        return False
    latched = vm.position(vm.latched) if vm.latched else len(vm.events)
    pushes = vm.all(events.GUEST_KERNEL_INFO)
    return any(e.numbers == NO_POOL and vm.position(e) < latched for e in pushes)


def _warning_missing(vm: VmTrace) -> Iterator[str]:
    if _due(vm) and not vm.all(events.KERNEL_UNSUPPORTED):
        yield (
            f"{vm.requested_bytes} bytes were requested, the kernel published no pool, and nobody "
            "was warned"
        )


def _warning_unexpected(vm: VmTrace) -> Iterator[str]:
    if vm.all(events.KERNEL_UNSUPPORTED) and vm.kind and not _due(vm):
        why = (
            "none was requested"
            if vm.requested_bytes == 0
            else "it is no WSL2 VM"
            if vm.kind != WSL2
            else "the kernel published one"
        )
        yield f"the user was warned of a kernel without a pool, although {why}"


def _warning_repeated(vm: VmTrace) -> Iterator[str]:
    count = len(vm.all(events.KERNEL_UNSUPPORTED))
    if count > 1:
        yield f"the user was warned {count} times"


def _device_host_warning(vm: VmTrace) -> Iterator[str]:
    count = len(vm.all(events.DEVICE_HOST_UNSUPPORTED))
    if vm.tokens_left_out and count != 1:
        device = vm.tokens_left_out[0]
        yield f"{device} lacks its token, and the user was warned {count} times, not once"
    elif count and not vm.tokens_left_out:
        yield "the user was warned of a device host without tokens, although no token was left out"


_READS: Final = (
    *values(events.VM_CREATED, keys=(events.VM_KIND, events.REQUESTED_BYTES)),
    *values(events.GUEST_KERNEL_INFO, keys=(events.POOL_BASE, events.POOL_SIZE_BYTES)),
)

CLAUSES: Final = (
    Clause(
        "WARNING_MISSING",
        4,
        "The user of a WSL2 VM is warned when a pool was requested and the kernel published none.",
        (Presence(events.KERNEL_UNSUPPORTED), *_READS),
        _warning_missing,
    ),
    Clause(
        "WARNING_UNEXPECTED",
        4,
        "The user is not warned when no pool was requested, one was published, or the VM is WSLC.",
        (
            Absence(events.KERNEL_UNSUPPORTED),
            *_READS,
        ),
        _warning_unexpected,
    ),
    Clause(
        "WARNING_REPEATED",
        4,
        "The user is warned once.",
        (Once(events.KERNEL_UNSUPPORTED),),
        _warning_repeated,
    ),
    Clause(
        "DEVICE_HOST_WARNING",
        8,
        "The user is warned once when a device lacks its token because its device host takes none.",
        (
            Presence(events.DEVICE_HOST_UNSUPPORTED),
            Absence(events.DEVICE_HOST_UNSUPPORTED),
            Once(events.DEVICE_HOST_UNSUPPORTED),
            Value(events.DEVICE_ADDED, events.DEVICE_HOST_FEATURES),
        ),
        _device_host_warning,
    ),
)
