"""The states of VMs and of their devices, as data (handshake.md section 10).

Owns the states of a VM and of a device, and the steps that add a device, remove it, and undo a
failed addition. Must not know how a step is done: vm.py and guest_devices.py do the steps, and fire
an event when its step is done.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.state_machine import StateMachine

if TYPE_CHECKING:
    from collections.abc import Mapping


class VmState(StrEnum):
    """The state of a VM, as its owner sees it."""

    CREATED = "CREATED"
    BOOTED = "BOOTED"
    """The guest is up; its capabilities have not been applied."""
    RUNNING = "RUNNING"
    """The capabilities have been applied, or were not reported in time; devices may be added."""
    SHUTTING_DOWN = "SHUTTING_DOWN"
    TERMINATED = "TERMINATED"


class VmEvent(StrEnum):
    """An event that changes the state of a VM."""

    BOOT = "boot"
    APPLY_CAPABILITIES = "apply capabilities"
    MISS_CAPABILITIES = "miss capabilities"
    SHUT_DOWN = "shut down"
    TERMINATE = "terminate"


VM_TRANSITIONS: Final[Mapping[tuple[VmState, VmEvent], VmState]] = {
    (VmState.CREATED, VmEvent.BOOT): VmState.BOOTED,
    (VmState.BOOTED, VmEvent.APPLY_CAPABILITIES): VmState.RUNNING,
    (VmState.BOOTED, VmEvent.MISS_CAPABILITIES): VmState.RUNNING,
    # A guest that reported no pool, or nothing, may report one later.
    (VmState.RUNNING, VmEvent.APPLY_CAPABILITIES): VmState.RUNNING,
    (VmState.CREATED, VmEvent.SHUT_DOWN): VmState.SHUTTING_DOWN,
    (VmState.BOOTED, VmEvent.SHUT_DOWN): VmState.SHUTTING_DOWN,
    (VmState.RUNNING, VmEvent.SHUT_DOWN): VmState.SHUTTING_DOWN,
    (VmState.SHUTTING_DOWN, VmEvent.TERMINATE): VmState.TERMINATED,
}


class GuestDeviceState(StrEnum):
    """The VM owner's progress in adding or removing one device."""

    ABSENT = "ABSENT"
    IDENTIFIED = "IDENTIFIED"
    """It has an instance id."""
    RESERVED = "RESERVED"
    """Its place in the machine is taken, and its aperture known."""
    REGISTERED = "REGISTERED"
    """Its entry exists: id and tag are taken."""
    CREATED = "CREATED"
    """The device host listens on its socket."""
    STORED = "STORED"
    """The entry knows the socket."""
    ATTACHED = "ATTACHED"
    """The guest has probed it."""
    SHUTTING_DOWN = "SHUTTING_DOWN"
    TORN_DOWN = "TORN_DOWN"
    FORGOTTEN = "FORGOTTEN"
    DETACHED = "DETACHED"


class DeviceStep(StrEnum):
    """One step of adding or removing a device."""

    IDENTIFY = "identify"
    RESERVE = "reserve"
    REGISTER = "register"
    CREATE = "create"
    STORE = "store"
    ATTACH = "attach"
    MARK_SHUTTING_DOWN = "mark shutting down"
    TEAR_DOWN = "tear down"
    FORGET = "forget"
    DETACH = "detach"
    GIVE_BACK = "give back"
    """The opposite of RESERVE, for a device that was never attached."""


GUEST_DEVICE_TRANSITIONS: Final[Mapping[tuple[GuestDeviceState, DeviceStep], GuestDeviceState]] = {
    (GuestDeviceState.ABSENT, DeviceStep.IDENTIFY): GuestDeviceState.IDENTIFIED,
    (GuestDeviceState.IDENTIFIED, DeviceStep.RESERVE): GuestDeviceState.RESERVED,
    (GuestDeviceState.RESERVED, DeviceStep.REGISTER): GuestDeviceState.REGISTERED,
    (GuestDeviceState.REGISTERED, DeviceStep.CREATE): GuestDeviceState.CREATED,
    (GuestDeviceState.CREATED, DeviceStep.STORE): GuestDeviceState.STORED,
    (GuestDeviceState.STORED, DeviceStep.ATTACH): GuestDeviceState.ATTACHED,
    (GuestDeviceState.REGISTERED, DeviceStep.MARK_SHUTTING_DOWN): GuestDeviceState.SHUTTING_DOWN,
    (GuestDeviceState.CREATED, DeviceStep.MARK_SHUTTING_DOWN): GuestDeviceState.SHUTTING_DOWN,
    (GuestDeviceState.STORED, DeviceStep.MARK_SHUTTING_DOWN): GuestDeviceState.SHUTTING_DOWN,
    (GuestDeviceState.ATTACHED, DeviceStep.MARK_SHUTTING_DOWN): GuestDeviceState.SHUTTING_DOWN,
    (GuestDeviceState.SHUTTING_DOWN, DeviceStep.TEAR_DOWN): GuestDeviceState.TORN_DOWN,
    (GuestDeviceState.TORN_DOWN, DeviceStep.FORGET): GuestDeviceState.FORGOTTEN,
    (GuestDeviceState.FORGOTTEN, DeviceStep.DETACH): GuestDeviceState.DETACHED,
    (GuestDeviceState.RESERVED, DeviceStep.GIVE_BACK): GuestDeviceState.DETACHED,
    (GuestDeviceState.FORGOTTEN, DeviceStep.GIVE_BACK): GuestDeviceState.DETACHED,
}

ADD_ORDER: Final = (
    DeviceStep.IDENTIFY,
    DeviceStep.RESERVE,
    DeviceStep.REGISTER,
    DeviceStep.CREATE,
    DeviceStep.STORE,
    DeviceStep.ATTACH,
)
"""The steps of adding a device to a VM."""

REMOVE_ORDER: Final = (
    DeviceStep.MARK_SHUTTING_DOWN,
    DeviceStep.TEAR_DOWN,
    DeviceStep.FORGET,
    DeviceStep.DETACH,
)
"""The steps of removing a device from a VM that goes on running."""

SHUTDOWN_ORDER: Final = (DeviceStep.MARK_SHUTTING_DOWN, DeviceStep.TEAR_DOWN, DeviceStep.FORGET)
"""The steps for the devices of a VM that shuts down. Each step is done for all devices before
the next step. Nothing is detached, because the machine is stopped next."""

UNDO: Final[Mapping[GuestDeviceState, tuple[DeviceStep, ...]]] = {
    GuestDeviceState.ABSENT: (),
    GuestDeviceState.IDENTIFIED: (),
    GuestDeviceState.RESERVED: (DeviceStep.GIVE_BACK,),
    # The device host may have created the device although its answer was lost.
    GuestDeviceState.REGISTERED: (*SHUTDOWN_ORDER, DeviceStep.GIVE_BACK),
    GuestDeviceState.CREATED: (*SHUTDOWN_ORDER, DeviceStep.GIVE_BACK),
    # The machine may have attached the device although its answer was lost.
    GuestDeviceState.STORED: REMOVE_ORDER,
    GuestDeviceState.ATTACHED: REMOVE_ORDER,
}
"""The steps that undo a failed addition, by the progress that it had made."""

BEST_EFFORT: Final = frozenset({DeviceStep.TEAR_DOWN, DeviceStep.DETACH})
"""Steps whose failure is reported but does not stop a removal: a peer that is gone has nothing left
to remove, and the other parts must still be removed."""


def vm_life(vm_id: str) -> StateMachine[VmState, VmEvent]:
    """Return the state machine of a new VM."""
    return StateMachine(f"VM {vm_id}", VmState.CREATED, VM_TRANSITIONS)


def guest_device_life(subject: str) -> StateMachine[GuestDeviceState, DeviceStep]:
    """Return the state machine of a device that is about to be added."""
    return StateMachine(subject, GuestDeviceState.ABSENT, GUEST_DEVICE_TRANSITIONS)
