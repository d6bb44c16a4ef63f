"""Frames on a stream: cut anywhere, lengths that lie, a peer that does not read."""

from __future__ import annotations

import os
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.devicehost.devices.net.user.stream import (
    MAX_STREAM_FRAME_BYTES,
    Stream,
    StreamEndedError,
    stream_pair,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def made() -> Iterator[tuple[Stream, socket.socket]]:
    stream, theirs = stream_pair()
    try:
        yield stream, theirs
    finally:
        stream.release()
        theirs.close()


def framed(frame: bytes) -> bytes:
    return struct.pack(">I", len(frame)) + frame


def read(stream: Stream) -> bytes:
    buffer = memoryview(bytearray(MAX_STREAM_FRAME_BYTES))
    return bytes(buffer[: stream.read_frame(buffer)])


def received(theirs: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += theirs.recv(count - len(data))
    return data


def test_only_our_end_does_not_block() -> None:
    """With a descriptor that does not block passt drops the rest of a frame that has no room."""
    with made() as (stream, theirs):
        assert not os.get_blocking(stream.fd)
        assert os.get_blocking(theirs.fileno())


def test_the_peer_has_the_bigger_buffer() -> None:
    with made() as (stream, theirs), socket.socket(fileno=os.dup(stream.fd)) as ours:
        sizes = [each.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for each in (ours, theirs)]
        assert sizes[0] <= sizes[1]
        if os.geteuid() == 0:
            assert sizes[1] >= 4 << 20


@given(
    frames=st.lists(st.binary(min_size=14, max_size=3000), max_size=6),
    cuts=st.lists(st.integers(1, 4000), max_size=20),
)
def test_frames_survive_any_cut(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(map(framed, frames))
    found = []
    with made() as (stream, theirs):
        for cut in [*cuts, len(data)]:
            theirs.sendall(data[:cut])
            data = data[cut:]
            while frame := read(stream):
                found.append(frame)
    assert found == frames


def test_the_longest_frames_follow_each_other() -> None:
    frames = [os.urandom(MAX_STREAM_FRAME_BYTES) for _ in range(4)]
    with made() as (stream, theirs):
        for frame in frames:
            theirs.sendall(framed(frame)[:-1])
            assert read(stream) == b""
            theirs.sendall(frame[-1:])
            assert read(stream) == frame


@pytest.mark.parametrize("length", [0, 13, 65536, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_ends_the_stream(length: int) -> None:
    with made() as (stream, theirs):
        theirs.sendall(framed(bytes(14)) + struct.pack(">I", length) + bytes(100))
        assert read(stream) == bytes(14)
        with pytest.raises(StreamEndedError, match=f"{length} bytes"):
            read(stream)


def test_a_frame_comes_out_behind_its_length() -> None:
    with made() as (stream, theirs):
        stream.write_frame([b"ab", memoryview(b"c" * 20)])
        assert not stream.has_unsent
        assert received(theirs, 26) == framed(b"ab" + b"c" * 20)


def test_what_has_no_room_waits_and_the_frames_stay_whole() -> None:
    frames = []
    with made() as (stream, theirs):
        while not stream.has_unsent:
            frames.append(os.urandom(50_000))
            stream.write_frame([frames[-1]])
        assert not stream.flush()
        data = b""
        while len(data) < sum(len(frame) + 4 for frame in frames):
            data += theirs.recv(7_000)
            stream.flush()
        assert data == b"".join(map(framed, frames))
        assert stream.flush()
        assert not stream.has_unsent


def test_a_peer_that_is_gone_ends_the_stream() -> None:
    with made() as (stream, theirs):
        theirs.sendall(framed(bytes(20))[:9])
        theirs.close()
        with pytest.raises(StreamEndedError, match="closed"):
            read(stream)
        with pytest.raises(StreamEndedError, match="pipe"):
            stream.write_frame([bytes(20)])


def test_a_peer_that_goes_while_a_frame_waits_ends_the_stream() -> None:
    with made() as (stream, theirs):
        while not stream.has_unsent:
            stream.write_frame([bytes(50_000)])
        theirs.close()
        with pytest.raises(StreamEndedError):
            stream.flush()
        assert not stream.has_unsent


def test_a_stream_that_is_shut_down_ends_for_both() -> None:
    with made() as (stream, theirs):
        stream.shut_down()
        stream.shut_down()
        assert theirs.recv(1) == b""
        with pytest.raises(StreamEndedError):
            read(stream)


def test_the_last_user_closes_the_descriptor() -> None:
    stream, theirs = stream_pair()
    theirs.close()
    assert stream.acquire()
    stream.release()
    os.fstat(stream.fd)
    stream.release()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(stream.fd)
    assert not stream.acquire()
