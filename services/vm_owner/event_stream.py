"""A bounded stream of events, for any number of watchers.

Owns the queues. A watcher that does not read loses its stream with an error, so that it neither
slows down the VM nor fills memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from services.handshake.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

QUEUE_LIMIT: Final = 256
"""Most items that wait for one watcher, in addition to its snapshot."""


class Subscription(Generic[T]):
    """The items of one watcher: its snapshot, then everything published since, in order.

    It is an async iterator, which ends when the stream is closed and all items have been read.
    Close it (`with`) when it is no longer read.
    """

    def __init__(self, stream: EventStream[T], first: Iterable[T], limit: int) -> None:
        self._stream = stream
        self._items: deque[T] = deque(first)
        self._limit = len(self._items) + limit
        self._news = asyncio.Event()
        self._overflowed = False

    def offer(self, item: T) -> None:
        """Append an item, or cut the watcher off at the limit."""
        if len(self._items) >= self._limit:
            self._overflowed = True
            self.close()
        else:
            self._items.append(item)
        self._news.set()

    def wake(self) -> None:
        """Wake the watcher, because the stream was closed."""
        self._news.set()

    def close(self) -> None:
        """Stop receiving items; a second call does nothing."""
        self._stream.drop(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._overflowed:
                raise ResourceExhaustedError(
                    "WATCHER_TOO_SLOW",
                    f"more than {self._limit} events waited for this watcher; watch again, the "
                    "present state comes first",
                    limit=self._limit,
                )
            if self._stream.closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._items.popleft()


class EventStream(Generic[T]):
    """Publishes items to all watchers."""

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        self._limit = limit
        self._subscriptions: set[Subscription[T]] = set()
        self.closed = False

    def publish(self, item: T) -> None:
        """Append an item for every watcher; never waits."""
        for subscription in tuple(self._subscriptions):
            subscription.offer(item)

    def subscribe(self, first: Iterable[T] = ()) -> Subscription[T]:
        """Add a watcher, whose snapshot is `first`."""
        subscription = Subscription(self, first, self._limit)
        self._subscriptions.add(subscription)
        return subscription

    def drop(self, subscription: Subscription[T]) -> None:
        """Forget a watcher."""
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """End the stream; each watcher may still read the items that wait for it."""
        self.closed = True
        for subscription in self._subscriptions:
            subscription.wake()
