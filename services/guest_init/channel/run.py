"""A command that runs in the guest: its streams, with their windows, and its end.

Owns the accounting of credits. Must not know sockets. The guest is not trusted: output beyond the
window, which would fill this process's memory, ends the command.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from porthole.guest.v1 import guest_control_pb2, mini_init_pb2

from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from services.handshake.errors import PortholeError

    Send = Callable[[mini_init_pb2.ToMiniInit], Awaitable[None]]

WINDOW_BYTES: Final = 262_144
"""Bytes of each stream that may be under way."""

PIECE_BYTES: Final = 32_768
"""Most input of one message."""

_CREDIT_BYTES: Final = WINDOW_BYTES // 4
"""Taken bytes are reported when they are this many."""

_SIGKILL: Final = 9
_STREAMS: Final = {
    "standard_output": mini_init_pb2.STREAM_STANDARD_OUTPUT,
    "standard_error": mini_init_pb2.STREAM_STANDARD_ERROR,
}


class Run:
    """A command of one number.

    Args:
        run_id: The number of the request that started it.
        send: Sends a message to the guest.

    Attributes:
        run_id: As above.
    """

    def __init__(self, run_id: int, send: Send) -> None:
        self.run_id = run_id
        self._send = send
        self._outputs: deque[mini_init_pb2.RunOutput] = deque()
        self._under_way = dict.fromkeys(_STREAMS, 0)
        self._input_room = WINDOW_BYTES
        self._input_taken = 0
        self._failure: PortholeError | None = None
        self._ended = False
        self._changed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether the guest has nothing more for it: it has ended, or its guest is lost."""
        return self._ended or self._failure is not None

    def take_output(self, output: mini_init_pb2.RunOutput) -> None:
        """The guest has sent output, or the end."""
        kind = output.WhichOneof("output")
        if self.over or kind is None:
            return
        if kind == "ended":
            self._ended = True
        else:
            self._under_way[kind] += len(getattr(output, kind))
            if self._under_way[kind] > WINDOW_BYTES:
                self.fail(
                    FailedPreconditionError(
                        "GUEST_ANSWER",
                        f"the guest sends more output than its window of {WINDOW_BYTES} bytes; "
                        "the command was ended",
                        limit=WINDOW_BYTES,
                    )
                )
                return
        self._outputs.append(output)
        self._changed.set()

    def take_credit(self, count: int) -> None:
        """The guest has taken input; more than was sent to it is not believed."""
        taken = min(count, WINDOW_BYTES - self._input_room)
        self._input_room += taken
        self._input_taken += taken
        self._changed.set()

    def fail(self, error: PortholeError) -> None:
        """End it with an error, after the output that has arrived."""
        if not self.over:
            self._failure = error
            self._changed.set()

    async def responses(self) -> AsyncGenerator[guest_control_pb2.RunResponse]:
        """Yield output, and what was taken of the input, until the end, which is the last.

        Raises:
            PortholeError: That of `fail`.
        """
        taken = dict.fromkeys(_STREAMS, 0)
        while True:
            if self._input_taken:
                input_taken, self._input_taken = self._input_taken, 0
                yield guest_control_pb2.RunResponse(input_taken=input_taken)
                continue
            if not self._outputs:
                if self._failure is not None:
                    raise self._failure
                await self._wait()
                continue
            output = self._outputs.popleft()
            kind = output.WhichOneof("output")
            response = guest_control_pb2.RunResponse()
            if kind == "ended":
                response.ended.CopyFrom(output.ended)
                yield response
                return
            data: bytes = getattr(output, str(kind))
            setattr(response, str(kind), data)
            yield response
            taken[str(kind)] += len(data)
            if taken[str(kind)] >= _CREDIT_BYTES:
                await self._credit(str(kind), taken[str(kind)])
                taken[str(kind)] = 0

    async def write(self, data: bytes) -> None:
        """Send input, when the guest has room for it; dropped when the command is over."""
        for place in range(0, len(data), PIECE_BYTES):
            piece = data[place : place + PIECE_BYTES]
            while self._input_room < len(piece) and not self.over:
                await self._wait()
            if self.over:
                return
            self._input_room -= len(piece)
            await self._input(mini_init_pb2.RunInput(standard_input=piece))

    async def end_input(self) -> None:
        """Say that there is no further input."""
        await self._input(mini_init_pb2.RunInput(end_of_input=guest_control_pb2.EndOfInput()))

    async def resize(self, window: guest_control_pb2.WindowSize) -> None:
        """Change the size of its terminal."""
        await self._input(mini_init_pb2.RunInput(window=window))

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""
        await self._input(mini_init_pb2.RunInput(signal=number))

    async def close_output(self, kind: str) -> None:
        """Say that nobody reads an output any more: "standard_output" or "standard_error"."""
        closed = guest_control_pb2.OutputClosed()
        if kind == "standard_output":
            await self._input(mini_init_pb2.RunInput(standard_output_closed=closed))
        else:
            await self._input(mini_init_pb2.RunInput(standard_error_closed=closed))

    async def kill(self) -> None:
        """End it, and allow all output of it, which is dropped."""
        await self.signal(_SIGKILL)
        for kind in _STREAMS:
            await self._credit(kind, WINDOW_BYTES)

    async def _credit(self, kind: str, count: int) -> None:
        self._under_way[kind] = max(self._under_way[kind] - count, 0)
        credit = mini_init_pb2.OutputCredit(run_id=self.run_id, stream=_STREAMS[kind], bytes=count)
        await self._send(mini_init_pb2.ToMiniInit(credit=credit))

    async def _input(self, given: mini_init_pb2.RunInput) -> None:
        given.run_id = self.run_id
        await self._send(mini_init_pb2.ToMiniInit(input=given))

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
