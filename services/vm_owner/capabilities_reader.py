"""The reading of a WSLC guest's capabilities: its guest init is asked, for whoever asks the owner.

Owns the connection to guest init, its errors, and the event of a read. It applies nothing. Must not
know gRPC.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from services.handshake import events
from services.handshake.errors import UnavailableError
from services.vm_owner.operations import Operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from services.vm_owner.localhost_forwarding import Listener
    from services.vm_owner.record import VmRecord
    from services.vm_owner.reports import Report


class GuestInit(Protocol):
    """A connected guest init; every failure of a call is a PortholeError."""

    async def capabilities(self) -> Report:
        """Ask for what the guest's kernel publishes now."""

    def listeners(self) -> AsyncIterator[list[Listener]]:
        """Stream all ports on which the guest listens, whenever they change."""

    async def close(self) -> None:
        """Disconnect; a call that is waiting is cancelled."""


class CapabilitiesReader:
    """Reads the capabilities of one guest.

    Args:
        record: The VM's record.
        dial: Connects to the guest init at an address, once it answers.
    """

    def __init__(self, record: VmRecord, dial: Callable[[str], Awaitable[GuestInit]]) -> None:
        self._record = record
        self._dial = dial
        self._address = ""
        self._guest_init: GuestInit | None = None

    async def connect(self, address: str) -> None:
        """Wait until the guest init at an address answers.

        Raises:
            UnavailableError: GUEST_INIT_UNREACHABLE; the message has the bound of the wait.
            FailedPreconditionError: API_VERSION_MISMATCH.
        """
        self._address = address
        try:
            self._guest_init = await self._dial(address)
        except UnavailableError as failure:
            raise self._unreachable(failure.message) from None

    async def read(self) -> Report:
        """Ask guest init; the VM's lock is not needed, because nothing changes.

        Raises:
            FailedPreconditionError: WRONG_VM_KIND, or the state does not allow it.
            UnavailableError: GUEST_INIT_UNREACHABLE.
            DeadlineExceededError: GUEST_INIT_SILENT.
            InvalidArgumentError: The guest answered more than an owner keeps; see
                convert.report_from_proto.
        """
        self._require()
        if self._guest_init is None:
            raise self._unreachable("it is not connected")
        try:
            report = await self._guest_init.capabilities()
        except UnavailableError as failure:
            self._require()
            raise self._unreachable(failure.message) from None
        except asyncio.CancelledError:
            # `close` cancels the call as well; its caller is to know that the VM has ended.
            task = asyncio.current_task()
            if task is None or not task.cancelling():
                self._require()
            raise
        self._record.emit(events.wslc_read(self._record.vm_id, report.as_announced()))
        return report

    async def close(self) -> None:
        """Disconnect; a second call does nothing."""
        guest_init, self._guest_init = self._guest_init, None
        if guest_init is not None:
            await guest_init.close()

    def _require(self) -> None:
        self._record.require(Operation.READ_CAPABILITIES)
        self._record.require_session(Operation.READ_CAPABILITIES)

    def _unreachable(self, why: str) -> UnavailableError:
        vm_id, address = self._record.vm_id, self._address
        return UnavailableError(
            "GUEST_INIT_UNREACHABLE",
            f"guest init of VM {vm_id}, at {address}, cannot be reached: {why}",
            vm_id=vm_id,
            address=address,
        )
