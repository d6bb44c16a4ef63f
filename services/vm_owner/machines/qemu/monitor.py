"""QMP: the connection that commands one QEMU, by the library qemu.qmp.

Owns deadlines and errors of commands, and hands on events. Must not know what a command means.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from qemu.qmp import ExecuteError, QMPClient, QMPError

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    UnavailableError,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

# The library raises what it logs.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

COMMAND_DEADLINE_S: Final = 10.0
"""Longest that one command takes. QEMU waits for a device's answers meanwhile, and does nothing
else."""


class Monitor:
    """The connection to one QEMU.

    Args:
        on_event: Called with the name and the data of each event, in order.
    """

    def __init__(self, on_event: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._client = QMPClient("porthole")
        self._on_event = on_event
        self._events: asyncio.Task[None] | None = None

    async def connect(self, connection: socket.socket) -> None:
        """Take over a connected socket, and negotiate.

        Raises:
            DeadlineExceededError: QEMU_SILENT after COMMAND_DEADLINE_S.
            UnavailableError: QEMU_GONE.
        """
        try:
            async with asyncio.timeout(COMMAND_DEADLINE_S):
                await self._client.connect(connection)
        except TimeoutError:
            raise _silent("the greeting", COMMAND_DEADLINE_S) from None
        # The library asserts at the end that it is connected, which a QEMU that ends makes false.
        except (QMPError, EOFError, OSError, AssertionError) as failure:
            raise _gone(failure) from None
        self._events = asyncio.create_task(self._hand_on_events())

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        deadline_s: float = COMMAND_DEADLINE_S,
    ) -> object:
        """Give a command and return its answer.

        Raises:
            FailedPreconditionError: QEMU_REFUSED, with QEMU's words.
            DeadlineExceededError: QEMU_SILENT after the deadline.
            UnavailableError: QEMU_GONE.
        """
        try:
            async with asyncio.timeout(deadline_s):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise _silent(command, deadline_s) from None
        except ExecuteError as refusal:
            raise FailedPreconditionError(
                "QEMU_REFUSED",
                f"QEMU refused {command}: {refusal}",
                command=command,
            ) from None
        except (QMPError, EOFError, OSError) as failure:
            raise _gone(failure) from None

    async def close(self) -> None:
        """Disconnect; a second call does nothing."""
        if self._events is not None:
            self._events.cancel()
            await asyncio.wait([self._events])
            self._events = None
        with contextlib.suppress(QMPError, EOFError, OSError):
            await self._client.disconnect()

    async def _hand_on_events(self) -> None:
        # All are taken, also those that nobody waits for: the library keeps them until then.
        async for event in self._client.events:
            data = event.get("data", {})
            self._on_event(str(event["event"]), data if isinstance(data, dict) else {})


def _silent(command: str, deadline_s: float) -> DeadlineExceededError:
    return DeadlineExceededError(
        "QEMU_SILENT",
        f"QEMU did not answer {command} within {deadline_s:g} s",
        command=command,
    )


def _gone(failure: BaseException) -> UnavailableError:
    return UnavailableError("QEMU_GONE", f"QEMU's monitor is gone: {failure or 'it closed'}")
