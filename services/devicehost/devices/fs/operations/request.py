"""One FUSE request: bytes in guest memory, taken apart and answered in place.

A driver may cut a request into descriptors at any byte. Bytes are copied out of guest memory
exactly once before they are interpreted, so a guest that changes them meanwhile gains nothing. Only
the data of READ and WRITE stay in guest memory. Must not know operations.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.credentials import User
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.host_files.syscalls import NAME_MAX
from services.wire.fuse import EXT_HEADER, FUSE_EXT_GROUPS, IN_HEADER, OUT_HEADER

if TYPE_CHECKING:
    from struct import Struct

    from services.devicehost.virtio.chain import Chain

    Segments = list[memoryview]

MAX_BODY_BYTES: Final = (1 << 20) + 4096
"""The most that is copied out of guest memory for one request: a BATCH_FORGET of 1 MiB."""
_IOV_MAX: Final = 1024
_COPIED_BYTES: Final = 512
"""How much of a request is copied at once: all but the payload of WRITE, SETXATTR or BATCH_FORGET.
Copying some bytes of a payload in vain costs less than finding out first."""


class Request:
    """A request whose header has been read.

    Attributes:
        opcode, unique, nodeid, uid, gid, pid: Fields of fuse_in_header, unchecked.
        args: The fixed part that follows the header, unpacked by `load`.
        body: The bytes after the fixed part, copied by `load`; not of streamed requests.
        payload: The bytes after the fixed part of a streamed request, still in guest memory.
        space_bytes: How many bytes of data the reply may have.
    """

    __slots__ = (
        "_answer",
        "_chain",
        "_data",
        "_extension_bytes",
        "_length",
        "args",
        "body",
        "gid",
        "nodeid",
        "opcode",
        "payload",
        "pid",
        "space_bytes",
        "uid",
        "unique",
    )

    args: tuple[int, ...]
    body: bytes
    payload: Segments

    def __init__(self, chain: Chain) -> None:
        """Read the header.

        Args:
            chain: The driver's request, at least 40 bytes, and the room for the reply.
        """
        self._chain = chain
        if chain.readable_bytes <= _COPIED_BYTES:
            self._data = b"".join(chain.readable)
        else:
            self._data = b"".join(_first(chain.readable, _COPIED_BYTES))
        (
            self._length,
            self.opcode,
            self.unique,
            self.nodeid,
            self.uid,
            self.gid,
            self.pid,
            extensions,
        ) = IN_HEADER.unpack_from(self._data)
        self._extension_bytes = extensions * 8
        self._answer = b""
        space_bytes = chain.writable_bytes - OUT_HEADER.size
        self.space_bytes = space_bytes if space_bytes > 0 else 0

    def load(self, layout: Struct | None, *, streamed: bool) -> None:
        """Read the bytes after the header.

        Args:
            layout: The fixed part; None when there is none.
            streamed: Leave the bytes after the fixed part in guest memory, as `payload`; the fixed
                part then lies in the first 512 bytes.

        Raises:
            OSError: EINVAL when the header's length is not that of the chain, or the request is
                shorter than its fixed part; E2BIG when too much would be copied.
        """
        length = self._length
        start = IN_HEADER.size + layout.size if layout else IN_HEADER.size
        end = length - self._extension_bytes
        if length != self._chain.readable_bytes or start > end:
            raise refusal(errno.EINVAL)
        if streamed:
            self.payload = _skip(self._chain.readable, start)
        else:
            if len(self._data) < length:
                self._copy_rest()
            self.body = self._data[start:end]
        self.args = layout.unpack_from(self._data, IN_HEADER.size) if layout else ()

    def _copy_rest(self) -> None:
        if self._length > IN_HEADER.size + MAX_BODY_BYTES:
            raise refusal(errno.E2BIG)
        rest = _skip(self._chain.readable, len(self._data))
        self._data = b"".join((self._data, *rest))

    @property
    def names_groups(self) -> bool:
        """Whether its user is in the directory's group by a supplementary group."""
        position = self._length - self._extension_bytes
        while position + EXT_HEADER.size <= self._length:
            size, kind = EXT_HEADER.unpack_from(self._data, position)
            if kind == FUSE_EXT_GROUPS:
                return True
            position += max(size, EXT_HEADER.size)
        return False

    @property
    def user(self) -> User:
        """The user that the request acts for."""
        return User(self.uid, self.gid, self.names_groups)

    def strings(self, count: int) -> list[bytes]:
        """Take the rest of the request as exactly `count` strings, each ended by NUL.

        Raises:
            OSError: EINVAL when there are more or fewer, or the last NUL is missing.
        """
        *found, tail = self.body.split(b"\0")
        if len(found) != count or tail:
            raise refusal(errno.EINVAL)
        return found

    def name(self) -> bytes:
        """Take the rest of the request as exactly one name of a directory entry.

        Raises:
            OSError: An error of `entry_name`; EINVAL when there is not exactly one string.
        """
        body = self.body
        last = len(body) - 1
        if body.find(b"\0") != last or last < 0:
            raise refusal(errno.EINVAL)
        return entry_name(body[:last])

    def space_of(self, size: int) -> Segments:
        """Return the buffers for the first `size` bytes of the reply's data.

        Raises:
            OSError: EIO when there is less room than that: a short read would look like the end of
                the file; EINVAL when it is in more pieces than one system call takes.
        """
        if size > self.space_bytes:
            raise refusal(errno.EIO)
        space = _skip(self._chain.writable, OUT_HEADER.size)
        return _limit(space if size == self.space_bytes else _first(space, size))

    def payload_of(self, size: int) -> Segments:
        """Return the buffers with the `size` bytes of payload.

        Raises:
            OSError: EINVAL when the payload is longer or shorter, or cut into too many pieces.
        """
        if sum(map(len, self.payload)) != size:
            raise refusal(errno.EINVAL)
        return _limit(self.payload)

    def reply(self, data: bytes) -> int:
        """Take the reply's data for `finish`; returns their length.

        Raises:
            OSError: EIO when the driver left too little room.
        """
        if len(data) > self.space_bytes:
            raise refusal(errno.EIO)
        self._answer = data
        return len(data)

    def finish(self, error: int, length: int = 0) -> int:
        """Place the reply: its header, and the data that `reply` took.

        Args:
            error: 0 or a positive errno; with an errno there are no data.
            length: Bytes of data, taken by `reply` or in their place already; 0 with an error.

        Returns:
            Bytes written from the start of the writable buffers; 0 when not even the header fits.
        """
        if self._chain.writable_bytes < OUT_HEADER.size:
            return 0
        total = OUT_HEADER.size + length
        header = OUT_HEADER.pack(total, -error, self.unique)
        _place(self._chain.writable, header if error else header + self._answer)
        return total


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


def _first(segments: Segments, count: int) -> Segments:
    """Return the buffers with the first `count` bytes, or all when there are fewer."""
    result = []
    for segment in segments:
        if count <= 0:
            break
        result.append(segment if len(segment) <= count else segment[:count])
        count -= len(segment)
    return result


def _skip(segments: Segments, count: int) -> Segments:
    """Return the buffers after the first `count` bytes."""
    for index, segment in enumerate(segments):
        if count < len(segment):
            rest = segments[index:]
            if count:
                rest[0] = segment[count:]
            return rest
        count -= len(segment)
    return []


def _place(segments: Segments, data: bytes) -> None:
    """Write data from the first byte on; there must be room."""
    position, left = 0, len(data)
    for segment in segments:
        room = len(segment)
        if left <= room:
            segment[:left] = data[position:]
            return
        segment[:] = data[position : position + room]
        position += room
        left -= room


def _limit(segments: Segments) -> Segments:
    if len(segments) > _IOV_MAX:
        raise refusal(errno.EINVAL)
    return segments
