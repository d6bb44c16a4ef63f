"""Frames of the channel: any bytes in, the messages of whole frames out."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.guest_init.channel.frames import MESSAGE_LIMIT_BYTES, FrameReader, frame

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGES = st.lists(st.binary(min_size=1, max_size=300), max_size=8)
# No byte of it can begin a header.
GARBAGE = st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"P", b"p")), max_size=8)


def pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[start:end] for start, end in pairwise(places)]


@given(MESSAGES, GARBAGE, st.lists(st.integers(0, 4000), max_size=20))
def test_messages_survive_garbage_between_them_however_the_stream_is_cut(
    messages: list[bytes], garbage: list[bytes], cuts: list[int]
) -> None:
    parts = [b"".join(pair) for pair in zip(garbage, map(frame, messages), strict=False)]
    sent = messages[: len(parts)]
    reader = FrameReader()
    got = [message for piece in pieces(b"".join(parts), cuts) for message in reader.feed(piece)]
    assert got == sent
    assert reader.skipped_bytes == sum(map(len, garbage[: len(parts)]))


@given(st.lists(st.binary(max_size=200), max_size=20), st.binary(min_size=1, max_size=50))
def test_any_bytes_are_survived(stream: list[bytes], message: bytes) -> None:
    reader = FrameReader()
    for piece in stream:
        reader.feed(piece)
    # A header in the garbage may claim what follows, a message of the largest length at most.
    rest = frame(b"x" * MESSAGE_LIMIT_BYTES) + frame(message)
    assert reader.feed(rest * 2)[-1] == message


@pytest.mark.parametrize("length", [0, MESSAGE_LIMIT_BYTES + 1, 1 << 31])
def test_a_header_with_a_wrong_length_is_skipped(length: int) -> None:
    reader = FrameReader()
    wrong = b"PHI1" + length.to_bytes(4, "little")
    assert reader.feed(wrong + frame(b"after")) == [b"after"]
    assert reader.skipped_bytes == len(wrong)


@pytest.mark.parametrize("length", [0, MESSAGE_LIMIT_BYTES + 1])
def test_such_a_frame_is_not_written(length: int) -> None:
    with pytest.raises(ValueError, match=f"{length} bytes"):
        frame(b"x" * length)


def test_the_largest_message_passes() -> None:
    message = bytes(MESSAGE_LIMIT_BYTES)
    assert FrameReader().feed(frame(message)) == [message]
