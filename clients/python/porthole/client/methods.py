"""What a client may do with each method of VmOwner: its deadline, and whether it may be repeated.

Owns these facts, and the ids that make CreateVm and AddGuestDevice safe to repeat.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from porthole.client.errors import PortholeError

R = TypeVar("R", bound="Message")

_READ_S: Final = 10.0
_CHANGE_S: Final = 60.0

FINAL: Final = frozenset({"VM_ENDED_EARLY", "GUEST_INIT_ENDED"})
"""Reasons of UNAVAILABLE that are no lost answer: the VM has ended, and the next would, too."""


@dataclass(frozen=True, slots=True)
class Method:
    """How one method is called.

    Attributes:
        timeout_s: Time for the call with all its repeats, where the caller gives none.
        repeated: Whether a call whose answer is lost may be made again.
        id_field: The field for the id that the client chooses; empty: there is none.
        awaited: Reasons of errors that pass by themselves; the call is made again after them, too.
    """

    timeout_s: float
    repeated: bool
    id_field: str = ""
    awaited: frozenset[str] = frozenset()

    def repeats_after(self, error: PortholeError) -> bool:
        """Return whether the call may be made again after it failed like this."""
        lost = error.code.name == "UNAVAILABLE" and error.reason not in FINAL
        return (self.repeated and lost) or error.reason in self.awaited

    def with_id(self, request: R) -> R:
        """Return the request with an id; a copy, if it has none."""
        if not self.id_field or getattr(request, self.id_field):
            return request
        copy = type(request)()
        copy.CopyFrom(request)
        setattr(copy, self.id_field, str(uuid.uuid4()))
        return copy


READ: Final = Method(_READ_S, repeated=True)
"""A method that changes nothing."""

CREATE_VM: Final = Method(_CHANGE_S, repeated=True, id_field="vm_id")
ADD_GUEST_DEVICE: Final = Method(_CHANGE_S, repeated=True, id_field="instance_id")

IDEMPOTENT: Final = Method(_CHANGE_S, repeated=True)
"""ApplyGuestCapabilities, AddShare and TerminateVm: a second call finds what the first has done."""

ONCE: Final = Method(_CHANGE_S, repeated=False)
"""RemoveShare, RemoveGuestDevice and ConfigureNetworking: the second call fails, or removes what
another client has added meanwhile."""

READ_BOOTED: Final = replace(
    READ, timeout_s=_CHANGE_S, awaited=frozenset({"VM_NOT_BOOTED", "GUEST_INIT_SILENT"})
)
"""GetGuestCapabilities, waiting for the guest to boot."""

WATCH: Final = replace(READ, awaited=frozenset({"WATCHER_TOO_SLOW"}))
"""WatchVm: a broken stream is resumed."""
