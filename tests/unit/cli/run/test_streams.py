"""The standard streams: bytes pass, ends are seen, and no wait lasts beyond `stop`."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from services.cli.run.streams import StandardStreams, streams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIMIT_S = 10


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    ends = list(os.pipe())
    yield ends
    for fd in ends:
        if fd >= 0:
            os.close(fd)


async def read_all(standard: StandardStreams, fd: int) -> bytes:
    said = b""
    while data := await standard.read(fd):
        said += data
    return said


async def test_bytes_pass_a_pipe_in_both_directions(pipe: list[int]) -> None:
    sent = os.urandom(1 << 20)
    with streams() as standard:
        reading = asyncio.create_task(read_all(standard, pipe[0]))
        await standard.write(pipe[1], sent)
        os.close(pipe[1])
        pipe[1] = -1
        assert await asyncio.wait_for(reading, LIMIT_S) == sent


async def test_a_file_is_read_to_its_end_and_written(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 200_000)
    with (
        (tmp_path / "in").open("rb") as source,
        (tmp_path / "out").open("wb") as sink,
        streams() as standard,
    ):
        await standard.write(sink.fileno(), await read_all(standard, source.fileno()))
    assert (tmp_path / "out").read_bytes() == b"x" * 200_000


def test_descriptors_that_the_caller_has_closed_are_opened() -> None:
    program = (
        "import os\n"
        "from services.cli.run.streams import open_standard_descriptors\n"
        "os.close(0), os.close(1)\n"
        "open_standard_descriptors()\n"
        "assert os.path.samefile('/proc/self/fd/0', os.devnull)\n"
        "assert os.path.samefile('/proc/self/fd/1', os.devnull)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


async def test_a_pipe_that_nobody_reads_is_broken(pipe: list[int]) -> None:
    os.close(pipe[0])
    pipe[0] = -1
    with streams() as standard, pytest.raises(BrokenPipeError):
        await standard.write(pipe[1], b"x")


async def test_a_full_disk_is_an_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with streams() as standard, pytest.raises(OSError, match="No space left"):
            await standard.write(full, b"x")
    finally:
        os.close(full)


async def test_what_waits_ends_when_it_is_told_to(pipe: list[int]) -> None:
    other = os.pipe()
    try:
        with streams() as standard:
            reading = asyncio.create_task(standard.read(pipe[0]))
            writing = asyncio.create_task(standard.write(other[1], b"x" * (1 << 20)))
            await asyncio.sleep(0.1)
            assert {reading.done(), writing.done()} == {False}
            standard.stop()
            assert await asyncio.wait_for(reading, LIMIT_S) == b""
            await asyncio.wait_for(writing, LIMIT_S)
    finally:
        for fd in other:
            os.close(fd)


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(pipe: list[int]) -> None:
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with streams() as standard:
        reading = asyncio.create_task(standard.read(pipe[0]))
        await asyncio.sleep(0.05)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    os.write(pipe[1], b"for the next program")
    assert os.read(pipe[0], 100) == b"for the next program"
    assert set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
