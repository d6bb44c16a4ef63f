"""Looks at paths: what a file system that never answers costs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from services.handshake.errors import DeadlineExceededError, NotFoundError
from services.vm_owner.host_paths import HostPaths


def lookers() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "host-path"]


async def test_a_look_gives_what_was_found_or_why_not() -> None:
    def missing() -> None:
        raise NotFoundError("SHARE_PATH_NOT_FOUND", "no such directory")

    paths = HostPaths()
    assert await paths.look("/here", lambda: "there") == "there"
    with pytest.raises(NotFoundError):
        await paths.look("/missing", missing)


async def test_a_file_system_that_never_answers_takes_a_thread_and_nothing_else() -> None:
    paths = HostPaths(deadline_s=0.05, max_threads=2)
    answers = threading.Event()
    try:
        for _ in range(4):
            with pytest.raises(DeadlineExceededError) as refused:
                await paths.look("/dead", answers.wait)
            assert refused.value.reason == "SHARE_PATH_SILENT"
        assert len(lookers()) == 2
        # The end of the process waits for no such thread.
        assert all(thread.daemon for thread in lookers())
    finally:
        answers.set()
    for thread in lookers():
        await asyncio.to_thread(thread.join, 10)
    assert await paths.look("/here", lambda: 1) == 1


async def test_a_caller_who_goes_away_gives_its_thread_back() -> None:
    paths = HostPaths(max_threads=1)
    answers = threading.Event()
    looking = asyncio.create_task(paths.look("/slow", answers.wait))
    await asyncio.sleep(0)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    answers.set()
    assert await paths.look("/here", lambda: 1) == 1


def test_a_look_that_outlives_the_event_loop_ends_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = threading.Event()

    async def give_up() -> None:
        with pytest.raises(DeadlineExceededError):
            await HostPaths(deadline_s=0.05).look("/dead", answers.wait)

    asyncio.run(give_up())
    answers.set()
    for thread in lookers():
        thread.join(10)
    assert caplog.records == []
