"""The feed of changes: each reader gets the newest state of what changed, however slow it is.

What waits for a reader is kept by VM, so that a reader that is slow gets less, and a bound holds.
Runs on the event loop. Must not know HTTP.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from services.handshake.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

READERS: Final = 64
"""Most readers at a time."""

WAITING: Final = 1_000
"""Most changes that wait for one reader; with more, it has to read everything again."""

HEARTBEAT_S: Final = 15.0
"""Time after which a line of comment is sent, so that both sides notice a dead connection."""

RETRY_MS: Final = 2_000
"""Time after which a browser connects again."""


class _Waiting:
    """What waits for one reader."""

    def __init__(self) -> None:
        self._changes: dict[tuple[str, str], Any] = {}
        self._some = asyncio.Event()
        self._ended = False

    def add(self, name: str, key: str, data: Any) -> None:
        self._changes.pop((name, key), None)
        self._changes[name, key] = data
        if len(self._changes) > WAITING:
            self._changes = {("reload", ""): {}}
        self._some.set()

    def end(self) -> None:
        self._ended = True
        self._some.set()

    async def take(self) -> list[tuple[str, Any]] | None:
        """Wait for changes, and return them; None at the end.

        Raises:
            TimeoutError: There are none for HEARTBEAT_S.
        """
        async with asyncio.timeout(HEARTBEAT_S):
            await self._some.wait()
        if self._ended:
            return None
        self._some.clear()
        taken, self._changes = self._changes, {}
        return [(name, data) for (name, _), data in taken.items()]


class Feed:
    """The feed, with its readers."""

    def __init__(self) -> None:
        self._readers: set[_Waiting] = set()
        self._closed = False

    def publish(self, name: str, key: str, data: Any) -> None:
        """Report a change to all readers.

        Args:
            name: Name of the event.
            key: What changed; of two changes of the same, a slow reader gets the later one.
            data: A value of JSON.
        """
        for reader in self._readers:
            reader.add(name, key, data)

    def close(self) -> None:
        """End all streams."""
        self._closed = True
        for reader in self._readers:
            reader.end()

    def read(self, hello: Any, *, again: bool) -> AsyncIterator[bytes]:
        """Return the stream of server-sent events of a new reader.

        Args:
            hello: Data of the first event.
            again: Whether the reader was there before, and may have missed changes.

        Raises:
            ResourceExhaustedError: STREAMS_EXHAUSTED.
        """
        if len(self._readers) >= READERS or self._closed:
            raise ResourceExhaustedError(
                "STREAMS_EXHAUSTED", f"there are {READERS} readers of events already", limit=READERS
            )
        return self._stream(hello, again=again)

    async def _stream(self, hello: Any, *, again: bool) -> AsyncIterator[bytes]:
        # A stream whose reader goes away before its first byte never runs, and is never counted.
        with self._counted() as waiting:
            number = 1
            yield f"retry: {RETRY_MS}\n".encode() + _written("hello", hello, number)
            if again:
                waiting.add("reload", "", {})
            while True:
                try:
                    changes = await waiting.take()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if changes is None:
                    return
                parts = []
                for name, data in changes:
                    number += 1
                    parts.append(_written(name, data, number))
                yield b"".join(parts)

    @contextmanager
    def _counted(self) -> Iterator[_Waiting]:
        waiting = _Waiting()
        self._readers.add(waiting)
        try:
            yield waiting
        finally:
            self._readers.discard(waiting)


def _written(name: str, data: Any, number: int) -> bytes:
    # JSON on one line has no line break, so nothing of a guest ends the event.
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()
