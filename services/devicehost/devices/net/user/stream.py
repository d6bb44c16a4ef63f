"""Frames on a stream socket, as passt takes and gives them: a length, then a bare Ethernet frame.

Owns the framing (QEMU's `-netdev stream`: 32 bits, big endian), what was read ahead, what is left
of a frame that the socket took in part, and the descriptor, which is closed when nobody uses it any
more. The native loop goes on with the same state (fastpath.PhStream). Must not know processes,
virtio headers or queues.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from struct import Struct
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.wire.virtio_net import ETHERNET_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

LENGTH: Final = Struct(">I")
"""The length of the frame that follows."""
MAX_STREAM_FRAME_BYTES: Final = 65535
"""passt's L2_MAX_LEN_PASST (tap.h); it ends when a longer frame comes."""

_PEER_BUFFER_BYTES: Final = 4 << 20
"""What passt may have on its way to us: it waits inside a frame for which there is no room."""


class StreamEndedError(Exception):
    """The other end has closed the stream, or broke its framing. It is of no further use."""


def stream_pair() -> tuple[Stream, socket.socket]:
    """Make a stream; return our end, which does not block, and that of passt, which does.

    passt takes a write for done when its descriptor does not block, and tears the stream then. The
    flag is one of the end, so it is set on ours alone, afterwards.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _PEER_BUFFER_BYTES)
    except PermissionError:  # as much as an ordinary user may have
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PEER_BUFFER_BYTES)
    ours.setblocking(False)
    return Stream(ours.detach()), theirs


class Stream:
    """One end of a stream, from its start to its end; one thread reads and one thread writes.

    Each user calls `acquire` before it uses the descriptor, and `release` afterwards.

    Attributes:
        fd: The descriptor, which does not block.
        wake_fd: Readable once it was shut down.
        state: What was read ahead and what waits for room, for the native loop as well.
    """

    def __init__(self, fd: int) -> None:
        """Take over a stream socket that does not block; its maker is its first user."""
        self.fd: Final = fd
        self.wake_fd: Final = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._users = 1
        self._lock = threading.Lock()
        self.state: Final = fastpath.PhStream()
        self._read: Final = memoryview(self.state.read).cast("B")
        self._unsent: Final = memoryview(self.state.unsent).cast("B")

    def acquire(self) -> bool:
        """Begin to use the descriptor; return False when it is closed."""
        with self._lock:
            if not self._users:
                return False
            self._users += 1
            return True

    def release(self) -> None:
        """End a use; the last one closes the descriptor."""
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self.fd)
                os.close(self.wake_fd)

    def shut_down(self) -> None:
        """End the stream for both ends, at once; whoever waits for a descriptor of it wakes up."""
        os.eventfd_write(self.wake_fd, 1)
        with socket.socket(fileno=os.dup(self.fd)) as same:
            try:
                same.shutdown(socket.SHUT_RDWR)
            except OSError:  # the other end has done so
                return

    def read_frame(self, buffer: memoryview) -> int:
        """Take the next frame, if all of it has come.

        Args:
            buffer: MAX_STREAM_FRAME_BYTES or more.

        Returns:
            Its length; 0 when it has not come.

        Raises:
            StreamEndedError: Also for a length below 14 or above MAX_STREAM_FRAME_BYTES.
        """
        state = self.state
        while True:
            have = state.read_end - state.read_start
            if have >= LENGTH.size:
                length = self._announced()
                if not ETHERNET_HEADER_BYTES <= length <= MAX_STREAM_FRAME_BYTES:
                    raise StreamEndedError(self.why_it_ended(errno.EPROTO))
                if have >= LENGTH.size + length:
                    at = state.read_start + LENGTH.size
                    buffer[:length] = self._read[at : at + length]
                    state.read_start = at + length
                    return length
            if not self._fill():
                return 0

    def why_it_ended(self, number: int) -> str:
        """Return what an errno of the native loop means: ECONNRESET, EPROTO, or one of a write."""
        if number == errno.EPROTO:
            return f"the stream announced a frame of {self._announced()} bytes"
        if number == errno.ECONNRESET:
            return "the stream was closed"
        return f"the stream has ended: {os.strerror(number)}"

    def _announced(self) -> int:
        length: int = LENGTH.unpack_from(self._read, self.state.read_start)[0]
        return length

    def _fill(self) -> bool:
        """Read what has come; return False when nothing has."""
        state = self.state
        have = state.read_end - state.read_start
        if state.read_start:
            self._read[:have] = bytes(self._read[state.read_start : state.read_end])
            state.read_start, state.read_end = 0, have
        try:
            count = os.readv(self.fd, [self._read[have:]])
        except BlockingIOError:
            return False
        except OSError as error:
            raise StreamEndedError(self.why_it_ended(error.errno or 0)) from error
        if not count:
            raise StreamEndedError(self.why_it_ended(errno.ECONNRESET))
        state.read_end += count
        return True

    @property
    def has_unsent(self) -> bool:
        """Whether a part of a frame waits for room: `flush` comes before the next `write_frame`."""
        return self.state.unsent_start < self.state.unsent_end

    def write_frame(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send one frame; what the socket has no room for is kept for `flush`.

        Args:
            parts: The frame, 14 to MAX_STREAM_FRAME_BYTES in all.

        Raises:
            StreamEndedError: The stream has ended.
        """
        length = sum(len(part) for part in parts)
        framed = [LENGTH.pack(length), *parts]
        sent = self._write(framed)
        left = LENGTH.size + length - sent
        if left:
            self._unsent[:left] = b"".join(framed)[sent:]
            self.state.unsent_start, self.state.unsent_end = 0, left

    def flush(self) -> bool:
        """Send what waits for room; return whether all of it went.

        Raises:
            StreamEndedError: The stream has ended.
        """
        state = self.state
        if self.has_unsent:
            state.unsent_start += self._write([self._unsent[state.unsent_start : state.unsent_end]])
        return not self.has_unsent

    def _write(self, parts: Sequence[bytes | memoryview]) -> int:
        try:
            return os.writev(self.fd, parts)
        except BlockingIOError:
            return 0
        except OSError as error:
            self.state.unsent_start = self.state.unsent_end = 0
            raise StreamEndedError(self.why_it_ended(error.errno or 0)) from error


_SO_SNDBUFFORCE: Final = 32
"""SO_SNDBUFFORCE (asm-generic/socket.h), which Python does not name."""
