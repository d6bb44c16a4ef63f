"""The bounded stream: order, slow watchers, ends."""

from __future__ import annotations

import asyncio

import pytest

from services.handshake.errors import ResourceExhaustedError
from services.vm_owner.event_stream import EventStream


async def test_every_watcher_gets_everything_since_it_began() -> None:
    stream: EventStream[int] = EventStream()
    one = stream.subscribe([0])
    stream.publish(1)
    two = stream.subscribe()
    stream.publish(2)
    stream.close()
    assert [item async for item in one] == [0, 1, 2]
    assert [item async for item in two] == [2]


async def test_a_watcher_that_waits_is_woken() -> None:
    stream: EventStream[int] = EventStream()
    watcher = stream.subscribe()
    reading = asyncio.ensure_future(anext(watcher))
    await asyncio.sleep(0)
    assert not reading.done()
    stream.publish(7)
    assert await reading == 7
    ending = asyncio.ensure_future(anext(watcher, None))
    await asyncio.sleep(0)
    stream.close()
    assert await ending is None


async def test_a_slow_watcher_is_cut_off_with_the_reason() -> None:
    stream: EventStream[int] = EventStream(limit=2)
    slow, quick = stream.subscribe(), stream.subscribe()
    seen = []
    for number in range(5):
        stream.publish(number)
        seen.append(await anext(quick))
    assert seen == [0, 1, 2, 3, 4]
    assert [await anext(slow), await anext(slow)] == [0, 1]
    with pytest.raises(ResourceExhaustedError, match="watch again") as cut:
        await anext(slow)
    assert cut.value.reason == "WATCHER_TOO_SLOW"


async def test_a_closed_watcher_holds_nothing() -> None:
    stream: EventStream[int] = EventStream(limit=1)
    with stream.subscribe():
        pass
    for number in range(3):
        stream.publish(number)
    with stream.subscribe() as fresh:
        stream.close()
        assert [item async for item in fresh] == []


async def test_a_watcher_may_be_closed_twice() -> None:
    stream: EventStream[int] = EventStream()
    watcher = stream.subscribe()
    watcher.close()
    watcher.close()
    stream.publish(1)
