"""The operations on a VM, and the states that refuse each, as data (handshake.md section 10).

Owns the reasons and the explanations of the refusals. Must not know how an operation is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError
from services.vm_owner.states import VmState

if TYPE_CHECKING:
    from collections.abc import Mapping


class Operation(StrEnum):
    """An operation on a VM, by the name of its RPC."""

    ADD_SHARE = "AddShare"
    ADD_DEVICE = "AddGuestDevice"
    CONFIGURE_NETWORKING = "ConfigureNetworking"
    MAP_PORT = "MapPort"
    SET_RATE_LIMIT = "SetRateLimit"
    REMOVE_SHARE = "RemoveShare"
    REMOVE_DEVICE = "RemoveGuestDevice"
    UNMAP_PORT = "UnmapPort"
    LIST_PORTS = "ListPorts"
    READ_CAPABILITIES = "GetGuestCapabilities"
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
    Operation.MAP_PORT: _ADDING,
    Operation.REMOVE_SHARE: _REMOVING,
    Operation.REMOVE_DEVICE: _REMOVING,
    Operation.UNMAP_PORT: _REMOVING,
    Operation.LIST_PORTS: _REMOVING,
    Operation.SET_RATE_LIMIT: _REMOVING,
    Operation.READ_CAPABILITIES: {VmState.CREATED: _NOT_BOOTED, **_REMOVING},
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
