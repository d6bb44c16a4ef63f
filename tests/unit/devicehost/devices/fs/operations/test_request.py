"""Requests in guest memory that the guest changes while they are served."""

from __future__ import annotations

import errno

import pytest

from services.devicehost.devices.fs.operations.request import Request
from services.wire import fuse
from services.wire.fuse import Opcode
from tests.unit.devicehost.devices.fs.fuse_guest import buffers, chain


def mkdir(name: bytes) -> bytes:
    body = fuse.MKDIR_IN.pack(0o755, 0) + name + b"\0"
    return fuse.IN_HEADER.pack(40 + len(body), Opcode.MKDIR, 1, 1, 1000, 1000, 1, 0) + body


@pytest.mark.parametrize("length", [5, 200])
def test_a_request_that_changes_after_its_header_was_read_is_as_it_was(length: int) -> None:
    memory = buffers(mkdir(b"n" * length), 40)
    request = Request(chain(memory, []))
    for piece in memory:
        piece[:] = b"/" * len(piece)
    request.load(fuse.MKDIR_IN, streamed=False)
    assert request.args == (0o755, 0)
    assert request.name() == b"n" * length
    assert (request.opcode, request.user[:2]) == (Opcode.MKDIR, (1000, 1000))


def test_what_was_copied_of_a_long_request_is_as_it_was() -> None:
    """The rest of a long request is copied when it is loaded, and not again."""
    text = b"t" * 4000
    memory = buffers(mkdir(text), 40)
    request = Request(chain(memory, []))
    request.load(fuse.MKDIR_IN, streamed=False)
    for piece in memory:
        piece[:] = b"/" * len(piece)
    assert request.strings(1) == [text]


def test_a_header_that_changes_its_length_meanwhile_gains_nothing() -> None:
    memory = buffers(mkdir(b"name"), 40)
    request = Request(chain(memory, []))
    fuse.IN_HEADER.pack_into(memory[0], 0, 1 << 20, 0, 0, 0, 0, 0, 0, 9)
    request.load(fuse.MKDIR_IN, streamed=False)
    assert request.name() == b"name"


def test_more_than_is_ever_copied_is_refused() -> None:
    request = Request(chain(buffers(mkdir(bytes(2 << 20)), 40), []))
    with pytest.raises(OSError) as error:
        request.load(fuse.MKDIR_IN, streamed=False)
    assert error.value.errno == errno.E2BIG


def test_as_much_as_is_ever_copied_is_taken() -> None:
    body = fuse.BATCH_FORGET_IN.pack(1 << 16) + bytes(1 << 20)
    room = (1 << 20) + 4096 - len(body)
    header = fuse.IN_HEADER.pack(40 + len(body) + room, Opcode.BATCH_FORGET, 1, 1, 0, 0, 1, 0)
    request = Request(chain(buffers(header + body + bytes(room), 40), []))
    request.load(fuse.BATCH_FORGET_IN, streamed=False)
    assert len(request.body) == (1 << 20) + 4096 - fuse.BATCH_FORGET_IN.size
    header = fuse.IN_HEADER.pack(41 + len(body) + room, Opcode.BATCH_FORGET, 1, 1, 0, 0, 1, 0)
    request = Request(chain(buffers(header + body + bytes(room + 1), 40), []))
    with pytest.raises(OSError) as error:
        request.load(fuse.BATCH_FORGET_IN, streamed=False)
    assert error.value.errno == errno.E2BIG


@pytest.mark.parametrize(("pieces", "fits"), [(1024, True), (1025, False)])
def test_data_are_in_as_many_pieces_as_one_call_takes(pieces: int, fits: bool) -> None:
    """IOV_MAX of Linux is 1024 (readv(2))."""
    head = 40 + fuse.WRITE_IN.size
    write = fuse.WRITE_IN.pack(1, 0, pieces, 0, 0, 0) + bytes(pieces)
    header = fuse.IN_HEADER.pack(head + pieces, Opcode.WRITE, 1, 1, 0, 0, 1, 0)
    readable = buffers(header + write, head, *range(head, head + pieces))
    writable = buffers(bytes(16 + pieces), *range(16, 16 + pieces))
    request = Request(chain(readable, writable))
    request.load(fuse.WRITE_IN, streamed=True)
    for take in (request.space_of, request.payload_of):
        if fits:
            assert len(take(pieces)) == pieces
        else:
            with pytest.raises(OSError) as error:
                take(pieces)
            assert error.value.errno == errno.EINVAL


def test_data_take_no_more_pieces_than_they_need() -> None:
    header = fuse.IN_HEADER.pack(40 + fuse.READ_IN.size, Opcode.READ, 1, 1, 0, 0, 1, 0)
    readable = buffers(header + bytes(fuse.READ_IN.size), 40)
    request = Request(chain(readable, buffers(bytes(16 + 1100), *range(16, 1116))))
    request.load(fuse.READ_IN, streamed=False)
    for size in (0, 1, 1024):
        assert list(map(len, request.space_of(size))) == [1] * size
