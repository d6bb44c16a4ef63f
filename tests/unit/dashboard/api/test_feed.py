"""The feed of changes has bounds, and forgets no VM."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from services.dashboard.api import feed as feed_module
from services.dashboard.api.feed import READERS, WAITING, Feed
from services.handshake.errors import ResourceExhaustedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def begin(feed: Feed, *, again: bool = False) -> AsyncIterator[bytes]:
    stream = feed.read({"version": "v"}, again=again)
    first = await anext(stream)
    assert first.startswith(b"retry: 2000\nid: 1\nevent: hello\n")
    return stream


async def events(stream: AsyncIterator[bytes]) -> list[tuple[str, Any]]:
    found = []
    async with asyncio.timeout(10):
        block = await anext(stream)
    for part in block.decode().split("\n\n")[:-1]:
        lines = dict(line.split(": ", 1) for line in part.split("\n"))
        found.append((lines["event"], json.loads(lines["data"])))
    return found


async def test_a_reader_gets_changes_in_their_order() -> None:
    feed = Feed()
    stream = await begin(feed)
    feed.publish("vm", "a", {"n": 1})
    feed.publish("vm", "b", {"n": 2})
    assert await events(stream) == [("vm", {"n": 1}), ("vm", {"n": 2})]


async def test_a_slow_reader_gets_the_newest_of_each() -> None:
    feed = Feed()
    stream = await begin(feed)
    for number in range(10 * WAITING):
        feed.publish("vm", str(number % 3), {"n": number})
    found = await events(stream)
    assert [data["n"] for _, data in found] == [
        10 * WAITING - 3,
        10 * WAITING - 2,
        10 * WAITING - 1,
    ]


async def test_with_too_many_changes_everything_is_to_be_read_again() -> None:
    feed = Feed()
    stream = await begin(feed)
    for number in range(WAITING + 2):
        feed.publish("vm", str(number), {"n": number})
    assert await events(stream) == [("reload", {}), ("vm", {"n": WAITING + 1})]


async def test_a_reader_that_comes_back_reads_everything_again() -> None:
    stream = await begin(Feed(), again=True)
    assert await events(stream) == [("reload", {})]


async def test_the_number_of_readers_is_bounded() -> None:
    feed = Feed()
    streams: list[Any] = [await begin(feed) for _ in range(READERS)]
    with pytest.raises(ResourceExhaustedError) as caught:
        feed.read({}, again=False)
    assert caught.value.reason == "STREAMS_EXHAUSTED"
    await streams[0].aclose()
    await begin(feed)
    for stream in streams:
        await stream.aclose()


async def test_a_stream_that_never_runs_is_not_counted() -> None:
    feed = Feed()
    for _ in range(2 * READERS):
        feed.read({}, again=False)
    await begin(feed)


async def test_streams_end_with_the_feed() -> None:
    feed = Feed()
    stream = await begin(feed)
    feed.close()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    with pytest.raises(ResourceExhaustedError):
        feed.read({}, again=False)


async def test_a_line_of_comment_comes_when_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "HEARTBEAT_S", 0.01)
    stream = await begin(Feed())
    assert await anext(stream) == b": still here\n\n"


async def test_no_text_of_a_guest_ends_an_event() -> None:
    feed = Feed()
    stream = await begin(feed)
    text = "\n\nevent: evil\r\n\u2028data: x\n\n"
    feed.publish("vm", "a", {"kernel": text})
    assert await events(stream) == [("vm", {"kernel": text})]
