"""The VMs of an owner by id, those that have ended included, for a time.

Owns how a VM is found and listed, and when one that has ended is forgotten. Must not know how a VM
is created or changed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from services.handshake.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.vm_owner.vm import Vm

Spec = TypeVar("Spec")

ENDED_KEPT: Final = 64
"""Most VMs that have ended and stay listed; the one that ended first is forgotten first."""

ENDED_KEPT_S: Final = 24 * 3600.0
"""Longest that a VM that has ended stays listed."""

PREFIX_CHARACTERS: Final = 4
"""Fewest characters that stand for the id that they begin."""

_NAMED: Final = 8


@dataclass(frozen=True)
class _Entry(Generic[Spec]):
    number: int
    vm: Vm
    spec: Spec


class VmRegistry(Generic[Spec]):
    """All VMs, in the order in which they were added, each with the spec that it was created from.

    Args:
        now_s: A clock that only moves forward, in seconds.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._entries: dict[str, _Entry[Spec]] = {}
        self._ended_s: dict[str, float] = {}
        self._numbers = count(1)

    def add(self, vm: Vm, spec: Spec) -> None:
        """Add a VM.

        Raises:
            AlreadyExistsError: VM_EXISTS.
        """
        self._forget()
        if vm.vm_id in self._entries:
            raise AlreadyExistsError(
                "VM_EXISTS", f"there is a VM {vm.vm_id} already; choose another id", vm_id=vm.vm_id
            )
        self._entries[vm.vm_id] = _Entry(next(self._numbers), vm, spec)

    def discard(self, vm_id: str) -> None:
        """Forget a VM; does nothing for an unknown one."""
        self._entries.pop(vm_id, None)
        self._ended_s.pop(vm_id, None)

    def end(self, vm_id: str) -> None:
        """Note that a VM has ended; it is forgotten later. A second call does nothing."""
        if vm_id in self._entries:
            self._ended_s.setdefault(vm_id, self._now_s())
        self._forget()

    def get(self, vm_id: str) -> Vm | None:
        """Return the VM with this very id; None: there is none."""
        self._forget()
        entry = self._entries.get(vm_id)
        return entry.vm if entry else None

    def spec_of(self, vm: Vm) -> Spec:
        """Return the spec of a VM that has not been forgotten."""
        return self._entries[vm.vm_id].spec

    def find(self, given: str) -> Vm:
        """Return the VM with this id, or the only one whose id begins with it.

        Args:
            given: An id, or at least PREFIX_CHARACTERS of its beginning.

        Raises:
            NotFoundError: VM_NOT_FOUND.
            InvalidArgumentError: VM_ID_AMBIGUOUS.
        """
        vm = self.get(given)
        if vm is not None:
            return vm
        begins = given if len(given) >= PREFIX_CHARACTERS else None
        found = [i for i in self._entries if begins is not None and i.startswith(begins)]
        if not found:
            raise NotFoundError(
                "VM_NOT_FOUND",
                f"there is no VM {given!r}, and none whose id begins with these characters (at "
                f"least {PREFIX_CHARACTERS}); ListVms lists them",
                vm_id=given,
            )
        if len(found) > 1:
            named = ", ".join(found[:_NAMED]) + (", …" if len(found) > _NAMED else "")
            raise InvalidArgumentError(
                "VM_ID_AMBIGUOUS",
                f"the ids of {len(found)} VMs begin with {given!r}: {named}; give more of it",
                vm_id=given,
            )
        return self._entries[found[0]].vm

    def all(self) -> list[Vm]:
        """Return all VMs."""
        return [vm for _, vm in self.after(0)]

    def snapshot(self) -> list[Vm]:
        """Return all VMs. Unlike the other methods it forgets none, so any thread may call it."""
        return [entry.vm for entry in list(self._entries.values())]

    def after(self, number: int) -> Iterator[tuple[int, Vm]]:
        """Return the VMs that were added after the one with a number, each with its number.

        Args:
            number: Number of the last VM of the page before; 0: from the first on.
        """
        self._forget()
        entries = [entry for entry in self._entries.values() if entry.number > number]
        return ((entry.number, entry.vm) for entry in entries)

    def _forget(self) -> None:
        oldest_s = self._now_s() - ENDED_KEPT_S
        ended = list(self._ended_s.items())
        for index, (vm_id, ended_s) in enumerate(ended):
            if ended_s < oldest_s or index < len(ended) - ENDED_KEPT:
                self.discard(vm_id)
