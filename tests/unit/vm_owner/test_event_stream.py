"""The bounded stream: order, slow watchers, ends."""

from __future__ import annotations

import asyncio

import pytest

from services.handshake.errors import ResourceExhaustedError
from services.vm_owner.event_stream import EventStream, Subscription


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


async def read(watcher: Subscription[int]) -> list[tuple[int, int]]:
    return [(watcher.sequence, item) async for item in watcher]


async def test_items_are_numbered_and_a_snapshot_has_the_number_of_the_last_one() -> None:
    stream: EventStream[int] = EventStream()
    before = stream.subscribe([-1])
    stream.publish(10)
    stream.publish(20)
    between = stream.subscribe([-2, -3])
    stream.publish(30)
    stream.close()
    assert (before.sequence, between.sequence) == (0, 2)
    assert await read(before) == [(0, -1), (1, 10), (2, 20), (3, 30)]
    assert await read(between) == [(2, -2), (2, -3), (3, 30)]


async def test_a_snapshot_can_be_taken_away_from_what_follows() -> None:
    stream: EventStream[int] = EventStream()
    stream.publish(10)
    watcher, back = stream.subscribe([-1, -2]), stream.subscribe([-1], after=1)
    stream.publish(20)
    stream.close()
    assert (watcher.take_snapshot(), back.take_snapshot()) == ([-1, -2], [])
    assert await read(watcher) == await read(back) == [(2, 20)]


@pytest.mark.parametrize(
    ("after", "resumed", "items"),
    [
        (0, False, [-1]),
        (1, False, [-1]),
        (2, True, [30, 40]),
        (3, True, [40]),
        (4, True, []),
        (5, False, [-1]),
    ],
)
async def test_a_watcher_goes_on_where_it_was_if_the_rest_is_kept(
    after: int, resumed: bool, items: list[int]
) -> None:
    stream: EventStream[int] = EventStream(history=2)
    for item in (10, 20, 30, 40):
        stream.publish(item)
    watcher = stream.subscribe([-1], after)
    stream.close()
    assert watcher.resumed is resumed
    assert watcher.sequence == (after if resumed else 4)
    assert [item async for item in watcher] == items


async def test_a_watcher_that_comes_back_to_much_is_not_cut_for_it() -> None:
    stream: EventStream[int] = EventStream(limit=1, history=5)
    for item in range(5):
        stream.publish(item)
    watcher = stream.subscribe(after=1)
    stream.publish(5)
    stream.close()
    assert [item async for item in watcher] == [1, 2, 3, 4, 5]
