"""A bounded stream of events, for any number of watchers.

Owns the numbers of the events, the last of them for watchers that come back, and the queues. A
watcher that does not read loses its stream with an error, so that it neither slows down the VM nor
fills memory.
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
"""Most items that wait for one watcher, in addition to what it begins with."""

HISTORY_LIMIT: Final = 256
"""Items that are kept for watchers that come back."""


class Subscription(Generic[T]):
    """The items of one watcher: what it begins with, then everything published since, in order.

    It is an async iterator, which ends when the stream is closed and all items have been read.
    Close it (`with`) when it is no longer read.

    Attributes:
        sequence: Number of the item that was returned last; that of a snapshot's item is the number
            of the last event that the snapshot includes.
        resumed: Whether it begins with the events after one that its watcher knows; otherwise it
            begins with a snapshot.
    """

    def __init__(
        self,
        stream: EventStream[T],
        first: Iterable[tuple[int, T]],
        limit: int,
        *,
        sequence: int,
        resumed: bool,
    ) -> None:
        self._stream = stream
        self._items = deque(first)
        self._limit = len(self._items) + limit
        self._news = asyncio.Event()
        self._overflowed = False
        self.sequence = sequence
        self.resumed = resumed

    def take_snapshot(self) -> list[T]:
        """Take the snapshot away and return it; the iteration then begins after it.

        Call it before the iteration. It returns nothing for a watcher that came back.
        """
        snapshot: list[T] = []
        while not self.resumed and self._items and self._items[0][0] <= self.sequence:
            snapshot.append(self._items.popleft()[1])
        return snapshot

    def offer(self, sequence: int, item: T) -> None:
        """Append an item, or cut the watcher off at the limit."""
        if len(self._items) >= self._limit:
            self._overflowed = True
            self.close()
        else:
            self._items.append((sequence, item))
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
                    f"more than {self._limit} events waited for this watcher; watch again after "
                    f"event {self.sequence}, and read faster",
                    limit=self._limit,
                    sequence=self.sequence,
                )
            if self._stream.closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self.sequence, item = self._items.popleft()
        return item


class EventStream(Generic[T]):
    """Publishes items to all watchers.

    Args:
        limit: Most items that wait for one watcher.
        history: Items that are kept for watchers that come back.

    Attributes:
        sequence: Number of the item that was published last; the first one has 1.
        closed: Whether the stream has ended.
    """

    def __init__(self, limit: int = QUEUE_LIMIT, history: int = HISTORY_LIMIT) -> None:
        self._limit = limit
        self._subscriptions: set[Subscription[T]] = set()
        self._history: deque[tuple[int, T]] = deque(maxlen=history)
        self.sequence = 0
        self.closed = False

    def publish(self, item: T) -> None:
        """Append an item for every watcher; never waits."""
        self.sequence += 1
        self._history.append((self.sequence, item))
        for subscription in tuple(self._subscriptions):
            subscription.offer(self.sequence, item)

    def subscribe(self, snapshot: Iterable[T] = (), after: int = 0) -> Subscription[T]:
        """Add a watcher.

        Args:
            snapshot: What it begins with, unless it comes back.
            after: Number of the last event that a watcher has which comes back. It gets those after
                that one if all of them are kept, and otherwise the snapshot; 0: the snapshot.
        """
        oldest = self.sequence - len(self._history)
        resumed = 0 < after <= self.sequence and after >= oldest
        first = (
            [(number, item) for number, item in self._history if number > after]
            if resumed
            else [(self.sequence, item) for item in snapshot]
        )
        subscription = Subscription(
            self,
            first,
            self._limit,
            sequence=after if resumed else self.sequence,
            resumed=resumed,
        )
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
