"""The connection to the socket of the channel, which is made again whenever it is lost.

Owns the socket. Must not know what the messages mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, Protocol

from services.guest_init.channel.frames import FrameReader, frame
from services.handshake.errors import UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

PAUSE_S: Final = 0.02
"""Pause between two attempts to connect at first; it doubles up to LONGEST_PAUSE_S."""
LONGEST_PAUSE_S: Final = 1.0

_READ_BYTES: Final = 256 << 10


class LinkUser(Protocol):
    """Who has a link. The methods are called on the event loop, and must not raise."""

    def link_up(self) -> None:
        """The socket is connected. Whether the guest listens is not known."""

    def link_message(self, message: bytes) -> None:
        """The guest has sent a message."""

    def link_down(self) -> None:
        """The connection was lost; nothing that was sent is certain to have arrived."""


class Link:
    """A connection to one socket, from `start` until `close`.

    Args:
        path: The socket, on which QEMU listens. It need not exist yet.
        user: Who is called.
    """

    def __init__(self, path: Path, user: LinkUser) -> None:
        self._path = path
        self._user = user
        self._writer: asyncio.StreamWriter | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Disconnect for good."""
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def send(self, message: bytes) -> None:
        """Send a message; returns when the socket has room for another.

        Raises:
            UnavailableError: GUEST_UNREACHABLE: there is no connection, or it is lost meanwhile.
        """
        writer = self._writer
        if writer is None:
            raise unreachable()
        writer.write(frame(message))
        try:
            await writer.drain()
        except OSError:
            raise unreachable() from None

    async def _run(self) -> None:
        pause_s = PAUSE_S
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError as error:
                logger.debug("%s: %s", self._path, error.strerror)
            else:
                pause_s = PAUSE_S
                await self._serve(reader, writer)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = FrameReader()
        self._writer = writer
        self._user.link_up()
        try:
            # Messages of a flood are taken a buffer at a time, so that others run in between.
            while data := await reader.read(_READ_BYTES):
                skipped = frames.skipped_bytes
                for message in frames.feed(data):
                    self._user.link_message(message)
                if frames.skipped_bytes and not skipped:
                    logger.warning("the guest sends bytes that are no frame; they are skipped")
        except OSError as error:
            logger.debug("%s: %s", self._path, error.strerror)
        finally:
            self._writer = None
            writer.close()
            self._user.link_down()


def unreachable() -> UnavailableError:
    """Return the error of a guest that is not connected."""
    return UnavailableError(
        "GUEST_UNREACHABLE", "the guest's process 1 is not connected, or its connection was lost"
    )
