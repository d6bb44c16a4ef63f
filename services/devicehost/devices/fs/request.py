"""One FUSE request: bytes in guest memory, taken apart and answered in place.

A driver may cut a request into descriptors wherever it likes. Whatever is interpreted is copied out
of guest memory first, exactly once, so that a guest that changes it meanwhile gains nothing; only
the data of READ and WRITE stays where it is. Must not know what requests mean.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.errors import refusal
from services.wire.fuse import EXT_HEADER, FUSE_EXT_GROUPS, IN_HEADER, OUT_HEADER

if TYPE_CHECKING:
    from struct import Struct

    Segments = list[memoryview]

MAX_BODY_BYTES: Final = (1 << 20) + 4096
"""Most that is ever copied out of guest memory for one request: a BATCH_FORGET of 1 MiB."""
NAME_MAX: Final = 255
"""Longest name of an entry, in bytes."""
_IOV_MAX: Final = 1024


class Request:
    """A request whose header has been read.

    Attributes:
        opcode, unique, nodeid, uid, gid, pid: As in fuse_in_header; nothing of it is checked.
        args: The fixed part that follows the header, unpacked by `load`.
        payload: What follows the fixed part, still in guest memory; only of streamed requests.
        space: Where the reply's data go: the writable buffers without the room of the header.
    """

    __slots__ = (
        "_body",
        "_extension_bytes",
        "_extensions",
        "_length",
        "_rest",
        "_writable",
        "answerable",
        "args",
        "gid",
        "nodeid",
        "opcode",
        "payload",
        "pid",
        "space",
        "uid",
        "unique",
    )

    def __init__(self, readable: Segments, writable: Segments) -> None:
        """Read the header.

        Args:
            readable: What the driver wrote, at least 40 bytes.
            writable: Where the reply goes.
        """
        header, self._rest = _take(readable, IN_HEADER.size)
        (
            self._length,
            self.opcode,
            self.unique,
            self.nodeid,
            self.uid,
            self.gid,
            self.pid,
            extensions,
        ) = IN_HEADER.unpack(header)
        self._extension_bytes = extensions * 8
        self._writable = writable
        self._body = self._extensions = b""
        self.args: tuple[int, ...] = ()
        self.payload: Segments = []
        self.answerable = _count(writable) >= OUT_HEADER.size
        self.space = _skip(writable, OUT_HEADER.size) if self.answerable else []

    def load(self, layout: Struct | None, *, streamed: bool) -> None:
        """Read what follows the header.

        Args:
            layout: The fixed part; None when there is none.
            streamed: Leave what follows the fixed part in guest memory, as `payload`.

        Raises:
            OSError: EINVAL when the header's length is not what the driver handed over, or the
                request is shorter than its fixed part; E2BIG when too much would be copied.
        """
        present = _count(self._rest) if self._rest else 0
        fixed = layout.size if layout else 0
        if self._length != IN_HEADER.size + present or present < fixed + self._extension_bytes:
            raise refusal(errno.EINVAL)
        if streamed:
            head, self.payload = _take(self._rest, fixed)
        elif present > MAX_BODY_BYTES:
            raise refusal(errno.E2BIG)
        else:
            head, _ = _take(self._rest, present) if present else (b"", [])
            end = present - self._extension_bytes
            self._body, self._extensions = head[fixed:end], head[end:]
        if layout:
            self.args = layout.unpack_from(head)

    @property
    def body(self) -> bytes:
        """What follows the fixed part, copied."""
        return self._body

    @property
    def names_groups(self) -> bool:
        """Whether it says that its user is in the directory's group, which is not `gid`."""
        position = 0
        while position + EXT_HEADER.size <= len(self._extensions):
            size, kind = EXT_HEADER.unpack_from(self._extensions, position)
            if kind == FUSE_EXT_GROUPS:
                return True
            position += max(size, EXT_HEADER.size)
        return False

    def strings(self, count: int) -> list[bytes]:
        """Take the rest of the request as exactly `count` strings, each ended by NUL.

        Raises:
            OSError: EINVAL when there are more or fewer, or the last NUL is missing.
        """
        *found, tail = self._body.split(b"\0")
        if len(found) != count or tail:
            raise refusal(errno.EINVAL)
        return found

    def names(self, count: int) -> list[bytes]:
        """Take the rest of the request as exactly `count` names of directory entries.

        Raises:
            OSError: As `entry_name` and `strings`.
        """
        return [entry_name(name) for name in self.strings(count)]

    def space_of(self, size: int) -> Segments:
        """Tell which part of `space` holds the first `size` bytes of the reply's data.

        Raises:
            OSError: EIO when there is less room than that: a short read would look like the end of
                the file; EINVAL when it is in more pieces than one system call takes.
        """
        if size > self.space_bytes():
            raise refusal(errno.EIO)
        return _limit(_first(self.space, size))

    def payload_of(self, size: int) -> Segments:
        """Tell where the `size` bytes of payload are.

        Raises:
            OSError: EINVAL when the payload is longer or shorter, or cut into too many pieces.
        """
        if _count(self.payload) != size:
            raise refusal(errno.EINVAL)
        return _limit(self.payload)

    def space_bytes(self) -> int:
        """Tell how many bytes of data the reply may have."""
        return _count(self.space)

    def reply(self, data: bytes) -> int:
        """Place the reply's data and tell its length.

        Raises:
            OSError: EIO when the driver left too little room.
        """
        if len(data) > self.space_bytes():
            raise refusal(errno.EIO)
        _place(self.space, data)
        return len(data)

    def finish(self, error: int, length: int = 0) -> int:
        """Place the reply's header; data, if any, have been placed already.

        Args:
            error: 0 or a positive errno.
            length: Bytes of data; 0 with an error.

        Returns:
            Bytes written from the start of the writable buffers; 0 when not even the header fits.
        """
        if not self.answerable:
            return 0
        total = OUT_HEADER.size + length
        _place(self._writable, OUT_HEADER.pack(total, -error, self.unique))
        return total


def receive(readable: Segments, writable: Segments) -> Request | None:
    """Take a request from a chain; None when there is not even a header."""
    if _count(readable) < IN_HEADER.size:
        return None
    return Request(readable, writable)


def entry_name(name: bytes) -> bytes:
    """Check the name of a directory entry: one component, neither "." nor "..".

    Raises:
        OSError: ENOENT when it is empty, ENAMETOOLONG beyond 255 bytes, EINVAL otherwise.
    """
    if not name:
        raise refusal(errno.ENOENT)
    if len(name) > NAME_MAX:
        raise refusal(errno.ENAMETOOLONG)
    if b"/" in name or b"\0" in name or name in (b".", b".."):
        raise refusal(errno.EINVAL)
    return name


def _count(segments: Segments) -> int:
    return len(segments[0]) if len(segments) == 1 else sum(map(len, segments))


def _take(segments: Segments, count: int) -> tuple[bytes, Segments]:
    """Copy the first `count` bytes, which must be there; return them and what follows."""
    if not count:
        return b"", segments
    first = segments[0]
    if len(first) == count:
        return bytes(first), segments[1:]
    if len(first) > count:
        return bytes(first[:count]), [first[count:], *segments[1:]]
    return b"".join(_first(segments, count)), _skip(segments, count)


def _first(segments: Segments, count: int) -> Segments:
    """Tell where the first `count` bytes are, or all when there are fewer."""
    result = []
    for segment in segments:
        if count <= 0:
            break
        result.append(segment if len(segment) <= count else segment[:count])
        count -= len(segment)
    return result


def _skip(segments: Segments, count: int) -> Segments:
    """Tell what follows the first `count` bytes."""
    for index, segment in enumerate(segments):
        if count < len(segment):
            rest = segments[index + 1 :]
            return [segment[count:], *rest] if count else segments[index:]
        count -= len(segment)
    return []


def _place(segments: Segments, data: bytes) -> None:
    """Write data, for which there must be room, from the first byte on."""
    if segments and len(segments[0]) >= len(data):
        segments[0][: len(data)] = data
        return
    position = 0
    for segment in _first(segments, len(data)):
        segment[:] = data[position : position + len(segment)]
        position += len(segment)


def _limit(segments: Segments) -> Segments:
    if len(segments) > _IOV_MAX:
        raise refusal(errno.EINVAL)
    return segments
