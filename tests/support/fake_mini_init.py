"""A mini_init that a test plays: the other end of the channel's socket.

It answers what its test lets it answer, and can say anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from porthole.guest.v1 import guest_control_pb2, mini_init_pb2
from porthole.handshake.v1 import guest_capabilities_pb2

from services.guest_init.channel.frames import FrameReader, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    Answer = Callable[[mini_init_pb2.ToMiniInit], list[mini_init_pb2.FromMiniInit]]

POOL = guest_capabilities_pb2.SwiotlbPool(base=0x3C00_0000, size_bytes=64 << 20)
RELEASE = "6.12.95-porthole"


def hello(request_id: int = 0, **fields: object) -> mini_init_pb2.FromMiniInit:
    """Make a Hello with a pool from sysfs."""
    said = mini_init_pb2.Hello(
        capabilities=guest_capabilities_pb2.GuestCapabilities(
            swiotlb_pool=POOL, kernel_release=RELEASE, seccomp_user_notification=True
        ),
        pool_source=mini_init_pb2.POOL_SOURCE_VIRTIO,
        started_ns=1_000_000_000,
        read_ns=1_200_000_000,
        sent_ns=1_300_000_000,
    )
    said.MergeFrom(mini_init_pb2.Hello(**fields))  # type: ignore[arg-type]
    return mini_init_pb2.FromMiniInit(request_id=request_id, hello=said)


def done(request_id: int) -> mini_init_pb2.FromMiniInit:
    """Say that a request was carried out."""
    return mini_init_pb2.FromMiniInit(request_id=request_id, done=mini_init_pb2.Done())


def failure(request_id: int, error_number: int, text: str) -> mini_init_pb2.FromMiniInit:
    """Say that a request was not carried out."""
    failed = mini_init_pb2.Failure(error_number=error_number, text=text)
    return mini_init_pb2.FromMiniInit(request_id=request_id, failure=failed)


def ended(run_id: int, exit_code: int) -> mini_init_pb2.FromMiniInit:
    """Say that a command has exited."""
    end = guest_control_pb2.Ended(exit_code=exit_code)
    return mini_init_pb2.FromMiniInit(output=mini_init_pb2.RunOutput(run_id=run_id, ended=end))


def output(run_id: int, data: bytes) -> mini_init_pb2.FromMiniInit:
    """Write to a command's standard output."""
    said = mini_init_pb2.RunOutput(run_id=run_id, standard_output=data)
    return mini_init_pb2.FromMiniInit(output=said)


class FakeMiniInit:
    """One guest, which may be connected several times.

    Attributes:
        received: Every message of the host, in order.
        answer: Makes the answers to one message; by default it greets back and does everything.
    """

    def __init__(self) -> None:
        self.received: asyncio.Queue[mini_init_pb2.ToMiniInit] = asyncio.Queue()
        self.answer: Answer = everything_done
        self._writers: set[asyncio.StreamWriter] = set()

    def say(self, *messages: mini_init_pb2.FromMiniInit) -> None:
        """Send messages to the host."""
        self.say_bytes(b"".join(frame(message.SerializeToString()) for message in messages))

    def say_bytes(self, data: bytes) -> None:
        """Send bytes to the host."""
        for writer in self._writers:
            writer.write(data)

    def hang_up(self) -> None:
        """Close the connection."""
        for writer in self._writers:
            writer.close()

    async def next(self, kind: str) -> mini_init_pb2.ToMiniInit:
        """Return the next message of a kind; those before it are dropped."""
        async with asyncio.timeout(20):
            while (message := await self.received.get()).WhichOneof("message") != kind:
                pass
            return message

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        frames = FrameReader()
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                for raw in frames.feed(data):
                    message = mini_init_pb2.ToMiniInit.FromString(raw)
                    self.received.put_nowait(message)
                    self.say(*self.answer(message))
        self._writers.discard(writer)
        writer.close()


def everything_done(message: mini_init_pb2.ToMiniInit) -> list[mini_init_pb2.FromMiniInit]:
    """Greet back; do what is asked; a command exits with 0."""
    match message.WhichOneof("message"):
        case "greeting":
            return [hello(message.request_id)]
        case "input" | "credit":
            return []
        case "run":
            return [done(message.request_id), ended(message.request_id, 0)]
        case _:
            return [done(message.request_id)]


@asynccontextmanager
async def fake_mini_init(path: Path) -> AsyncIterator[FakeMiniInit]:
    """A mini_init whose channel is at a path."""
    guest = FakeMiniInit()
    server = await asyncio.start_unix_server(guest.serve, path)
    try:
        yield guest
    finally:
        server.close()
        guest.hang_up()
