"""The states of VMs and of their devices, as data (docs/handshake.md section 10).

Owns the states of a VM and of a device, the order in which a device is added, removed and undone,
and the operations that a VM allows in each state. services.vm_owner and services.devicehost do the
steps, and fire an event when its step is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError
from services.handshake.state_machine import StateMachine

if TYPE_CHECKING:
    from collections.abc import Mapping


class VmState(StrEnum):
    """The state of a VM, as its owner sees it."""

    CREATED = "CREATED"
    BOOTED = "BOOTED"
    """The guest is up; its capabilities have not been read."""
    RUNNING = "RUNNING"
    """The capabilities have been read; devices may be added."""
    SHUTTING_DOWN = "SHUTTING_DOWN"
    TERMINATED = "TERMINATED"


class VmEvent(StrEnum):
    """An event that changes the state of a VM."""

    BOOT = "boot"
    READ_CAPABILITIES = "read capabilities"
    SHUT_DOWN = "shut down"
    TERMINATE = "terminate"


VM_TRANSITIONS: Final[Mapping[tuple[VmState, VmEvent], VmState]] = {
    (VmState.CREATED, VmEvent.BOOT): VmState.BOOTED,
    (VmState.BOOTED, VmEvent.READ_CAPABILITIES): VmState.RUNNING,
    # A guest that reported no pool may report one later.
    (VmState.RUNNING, VmEvent.READ_CAPABILITIES): VmState.RUNNING,
    (VmState.CREATED, VmEvent.SHUT_DOWN): VmState.SHUTTING_DOWN,
    (VmState.BOOTED, VmEvent.SHUT_DOWN): VmState.SHUTTING_DOWN,
    (VmState.RUNNING, VmEvent.SHUT_DOWN): VmState.SHUTTING_DOWN,
    (VmState.SHUTTING_DOWN, VmEvent.TERMINATE): VmState.TERMINATED,
}


class DeviceLife(StrEnum):
    """How far the VM owner has come with adding or removing one device."""

    ABSENT = "ABSENT"
    IDENTIFIED = "IDENTIFIED"
    """It has an instance id."""
    REGISTERED = "REGISTERED"
    """Its entry exists: id and tag are taken."""
    CREATED = "CREATED"
    """The device host listens on its socket."""
    STORED = "STORED"
    """The entry knows the socket."""
    ATTACHED = "ATTACHED"
    """The guest has it."""
    SHUTTING_DOWN = "SHUTTING_DOWN"
    TORN_DOWN = "TORN_DOWN"
    FORGOTTEN = "FORGOTTEN"
    DETACHED = "DETACHED"


class DeviceStep(StrEnum):
    """One step of adding or removing a device."""

    IDENTIFY = "identify"
    REGISTER = "register"
    CREATE = "create"
    STORE = "store"
    ATTACH = "attach"
    MARK_SHUTTING_DOWN = "mark shutting down"
    TEAR_DOWN = "tear down"
    FORGET = "forget"
    DETACH = "detach"


DEVICE_TRANSITIONS: Final[Mapping[tuple[DeviceLife, DeviceStep], DeviceLife]] = {
    (DeviceLife.ABSENT, DeviceStep.IDENTIFY): DeviceLife.IDENTIFIED,
    (DeviceLife.IDENTIFIED, DeviceStep.REGISTER): DeviceLife.REGISTERED,
    (DeviceLife.REGISTERED, DeviceStep.CREATE): DeviceLife.CREATED,
    (DeviceLife.CREATED, DeviceStep.STORE): DeviceLife.STORED,
    (DeviceLife.STORED, DeviceStep.ATTACH): DeviceLife.ATTACHED,
    (DeviceLife.REGISTERED, DeviceStep.MARK_SHUTTING_DOWN): DeviceLife.SHUTTING_DOWN,
    (DeviceLife.CREATED, DeviceStep.MARK_SHUTTING_DOWN): DeviceLife.SHUTTING_DOWN,
    (DeviceLife.STORED, DeviceStep.MARK_SHUTTING_DOWN): DeviceLife.SHUTTING_DOWN,
    (DeviceLife.ATTACHED, DeviceStep.MARK_SHUTTING_DOWN): DeviceLife.SHUTTING_DOWN,
    (DeviceLife.SHUTTING_DOWN, DeviceStep.TEAR_DOWN): DeviceLife.TORN_DOWN,
    (DeviceLife.TORN_DOWN, DeviceStep.FORGET): DeviceLife.FORGOTTEN,
    (DeviceLife.FORGOTTEN, DeviceStep.DETACH): DeviceLife.DETACHED,
}

ADD_ORDER: Final = (
    DeviceStep.IDENTIFY,
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

UNDO: Final[Mapping[DeviceLife, tuple[DeviceStep, ...]]] = {
    DeviceLife.ABSENT: (),
    DeviceLife.IDENTIFIED: (),
    # The device host may have created the device though its answer was lost.
    DeviceLife.REGISTERED: SHUTDOWN_ORDER,
    DeviceLife.CREATED: SHUTDOWN_ORDER,
    # The machine may have attached it, likewise.
    DeviceLife.STORED: REMOVE_ORDER,
    DeviceLife.ATTACHED: REMOVE_ORDER,
}
"""The steps that undo a failed addition, by how far it had come."""

BEST_EFFORT: Final = frozenset({DeviceStep.TEAR_DOWN, DeviceStep.DETACH})
"""Steps whose failure is reported but does not stop a removal: a peer that is gone has nothing left
to remove, and the rest must be removed all the same."""


def vm_life(vm_id: str) -> StateMachine[VmState, VmEvent]:
    """Return the state machine of a new VM."""
    return StateMachine(f"VM {vm_id}", VmState.CREATED, VM_TRANSITIONS)


def guest_device_life(subject: str) -> StateMachine[DeviceLife, DeviceStep]:
    """Return the state machine of a device that is about to be added."""
    return StateMachine(subject, DeviceLife.ABSENT, DEVICE_TRANSITIONS)


class Operation(StrEnum):
    """An operation on a VM, by the name of its RPC."""

    ADD_SHARE = "AddShare"
    ADD_DEVICE = "AddGuestDevice"
    CONFIGURE_NETWORKING = "ConfigureNetworking"
    REMOVE_SHARE = "RemoveShare"
    REMOVE_DEVICE = "RemoveGuestDevice"
    APPLY_CAPABILITIES = "ApplyGuestCapabilities"
    TERMINATE = "TerminateVm"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a state does not allow an operation: a reason for programs, an explanation for people."""

    reason: str
    why: str


_NOT_READ: Final = Refusal(
    "CAPABILITIES_NOT_READ",
    "its guest capabilities have not been read yet; wait until it is RUNNING (a WSLC session calls "
    "ApplyGuestCapabilities first)",
)
_NOT_BOOTED: Final = Refusal("VM_NOT_BOOTED", "its guest is still starting; wait until it is up")
_ENDING: Final = Refusal("VM_SHUTTING_DOWN", "it is shutting down; create a new VM")
_ENDED: Final = Refusal("VM_TERMINATED", "it has ended; create a new VM")

_ADDING: Final[Mapping[VmState, Refusal]] = {
    VmState.CREATED: _NOT_READ,
    VmState.BOOTED: _NOT_READ,
    VmState.SHUTTING_DOWN: _ENDING,
    VmState.TERMINATED: _ENDED,
}
_REMOVING: Final[Mapping[VmState, Refusal]] = {
    VmState.SHUTTING_DOWN: _ENDING,
    VmState.TERMINATED: _ENDED,
}

REFUSALS: Final[Mapping[Operation, Mapping[VmState, Refusal]]] = {
    Operation.ADD_SHARE: _ADDING,
    Operation.ADD_DEVICE: _ADDING,
    Operation.CONFIGURE_NETWORKING: _ADDING,
    Operation.REMOVE_SHARE: _REMOVING,
    Operation.REMOVE_DEVICE: _REMOVING,
    Operation.APPLY_CAPABILITIES: {VmState.CREATED: _NOT_BOOTED, **_REMOVING},
    Operation.TERMINATE: {},
}
"""The states in which an operation is refused, and why. All other states allow it."""


def require(operation: Operation, vm_id: str, state: VmState) -> None:
    """Refuse an operation that the state of a VM does not allow.

    Raises:
        FailedPreconditionError: The reason is that of REFUSALS; the message names VM and state.
    """
    refusal = REFUSALS[operation].get(state)
    if refusal is not None:
        raise FailedPreconditionError(
            refusal.reason,
            f"{operation} is refused: VM {vm_id} is {state}: {refusal.why}",
            vm_id=vm_id,
            state=state,
        )
