"""The thin shell around a back-end: the one thread that reads from its front-ends.

Serves one front-end at a time; a second one waits in the socket's queue until the first has gone.
A front-end may be silent for as long as it likes, but not in the middle of a message.
Owns every received descriptor until the back-end takes it. Must not know rings, guest memory or
virtio devices: what a message does to them is the back-end's business.
"""

from __future__ import annotations

import array
import logging
import math
import os
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from services.devicehost import peer_writes
from services.devicehost.throttle import Throttle
from services.devicehost.vhost_user.connection import Connection
from services.devicehost.vhost_user.messages import Command, ProtocolError
from services.handshake.errors import PortholeError
from services.wire.vhost_user import (
    HEADER_BYTES,
    MAX_MESSAGE_FDS,
    MAX_PAYLOAD_BYTES,
    Header,
    request_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.vhost_user.backend import Backend
    from services.devicehost.vhost_user.sockets import ListeningSocket

_LOG = logging.getLogger(__name__)

ACCEPT_RETRY_MS: Final = 1000
"""How long to wait before accepting again after EMFILE; nothing signals that a descriptor became
free."""

MESSAGE_DEADLINE_S: Final = 10.0
"""How long a message may take from its first byte to its last, and a reply to be taken."""

CLOSE_DEADLINE_S: Final = 15.0
"""How long the front-end thread may take to end; its workers may take worker.STOP_DEADLINE_S."""

_FD_BYTES: Final = array.array("i").itemsize


class _ListenerClosedError(BaseException):
    """The listener is being closed. It is no Exception, so that no handler of faults catches it."""


class Listener:
    """The vhost-user socket of one device; connectable from construction to `close`."""

    def __init__(self, sock: ListeningSocket, backend: Backend) -> None:
        """Serve front-ends on a thread of the listener's own.

        Args:
            sock: Where they connect; the listener's from now on.
            backend: Executes the commands of front-ends.
        """
        self._listening = sock
        self._socket = sock.socket
        self._path = sock.path
        self._backend = backend
        self._throttle = Throttle()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._has_ended = False
        self._at_the_end: Callable[[], None] | None = None
        name = f"vhost-{self._path.stem}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self, then: Callable[[], None] = lambda: None) -> None:
        """Drop the front-end, if there is one, and remove the socket. Call once.

        A front-end cannot prevent that. If its thread is stuck elsewhere it is left behind after
        CLOSE_DEADLINE_S; the name of the socket is free all the same.

        Args:
            then: Called once when the device is not used any more: by this thread, or by the
                front-end thread if that is left behind.
        """
        os.eventfd_write(self._stop_fd, 1)
        self._backend.ask_to_stop()
        peer_writes.join(self._thread, CLOSE_DEADLINE_S)
        with self._lock:
            is_left_behind = not self._has_ended
            if is_left_behind:
                _LOG.error(
                    "%s does not end within %g s of being stopped; leaving it behind",
                    *(self._thread.name, CLOSE_DEADLINE_S),
                )
                self._listening.remove_file()
                self._at_the_end = then
        if not is_left_behind:
            self._release()
            then()

    def _run(self) -> None:
        try:
            while True:
                with self._accept() as stream:
                    stream.setblocking(False)
                    self._serve(stream)
        except _ListenerClosedError:
            pass
        finally:
            with self._lock:
                self._has_ended = True
            if self._at_the_end is not None:
                self._release()
                self._at_the_end()

    def _release(self) -> None:
        self._listening.close()
        os.close(self._stop_fd)

    def _accept(self) -> socket.socket:
        """Wait for a front-end, and for a free descriptor to take it with."""
        while True:
            self._await(self._socket, select.POLLIN)
            try:
                return self._socket.accept()[0]
            except OSError as error:
                _LOG.warning("%s: cannot accept a front-end: %s", self._path.name, error.strerror)
                self._await(None, 0, ACCEPT_RETRY_MS)

    def _serve(self, stream: socket.socket) -> None:
        """Serve one front-end until it goes, breaks the protocol, or the listener is closed."""
        self._backend.connect()
        connection = Connection(self._backend.offer)
        try:
            while self._exchange(stream, connection):
                pass
        except ProtocolError as error:
            self._warn("connection closed", error)
        except OSError as error:
            _LOG.info("%s: the front-end is gone: %s", self._path.name, error)
        except Exception:
            _LOG.exception("%s: connection closed by a fault of the back-end", self._path.name)
        finally:
            self._backend.disconnect()

    def _exchange(self, stream: socket.socket, connection: Connection) -> bool:
        """Take one message and send its reply; False when the front-end has closed."""
        fds: list[int] = []  # those that the back-end did not take are closed before the reply
        while not self._await(stream, select.POLLIN, self._backend.look_interval_ms()):
            self._backend.look()
        deadline = time.monotonic() + MESSAGE_DEADLINE_S
        try:
            head = self._receive(stream, HEADER_BYTES, deadline, fds)
            if not head:
                return False
            header = Header.parse(head)
            if header.size > MAX_PAYLOAD_BYTES:
                raise ProtocolError(
                    "MESSAGE_PAYLOAD",
                    f"{request_name(header.request)} announces {header.size} bytes; "
                    f"{MAX_PAYLOAD_BYTES} are the most",
                    size=header.size,
                    bound=MAX_PAYLOAD_BYTES,
                )
            payload = self._receive(stream, header.size, deadline) if header.size else b""
            step = connection.receive(header, payload, fds)
            answer = self._execute(connection, step) if isinstance(step, Command) else step
        finally:
            for fd in fds:
                os.close(fd)
        if answer is not None:
            self._send(stream, answer)
        return True

    def _execute(self, connection: Connection, command: Command) -> bytes | None:
        try:
            outcome = self._backend.execute(command)
        except PortholeError as error:
            self._warn(f"{command.request.name} refused", error)
            return connection.refusal_reply(command, error)
        return connection.answer(command, outcome)

    def _warn(self, what: str, error: PortholeError) -> None:
        held_back = self._throttle.admit()
        if held_back is not None:
            _LOG.warning(
                "%s: %s: %s [%d more warnings not logged]", self._path.name, what, error, held_back
            )

    def _receive(
        self, stream: socket.socket, length: int, deadline: float, fds: list[int] | None = None
    ) -> bytes:
        """Read exactly `length` bytes; descriptors that come with them go to `fds`.

        Without a list of descriptors the kernel closes any that come.

        Returns:
            The bytes; none when the front-end closed between messages.

        Raises:
            ProtocolError: It closed within one, or did not send all of it by the deadline, or sent
                more descriptors than a message may carry.
        """
        data = b""
        room = socket.CMSG_SPACE(MAX_MESSAGE_FDS * _FD_BYTES) if fds is not None else 0
        while len(data) < length:
            self._await_by(
                deadline, stream, select.POLLIN, f"sent {len(data)} of {length} bytes of a message"
            )
            part, ancillary, flags, _ = stream.recvmsg(
                length - len(data), room, socket.MSG_CMSG_CLOEXEC
            )
            if fds is not None:
                for level, kind, content in ancillary:
                    if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                        whole = len(content) - len(content) % _FD_BYTES
                        fds.extend(array.array("i", content[:whole]))
                if flags & socket.MSG_CTRUNC or len(fds) > MAX_MESSAGE_FDS:
                    raise ProtocolError(
                        "MESSAGE_DESCRIPTORS",
                        f"a message carries more than {MAX_MESSAGE_FDS} descriptors",
                        bound=MAX_MESSAGE_FDS,
                    )
            if not part:
                if not data and fds is not None:
                    return b""
                raise ProtocolError(
                    "MESSAGE_TRUNCATED",
                    f"the front-end closed after {len(data)} of {length} bytes",
                )
            data += part
        return data

    def _send(self, stream: socket.socket, data: bytes) -> None:
        deadline = time.monotonic() + MESSAGE_DEADLINE_S
        while data:
            self._await_by(
                deadline, stream, select.POLLOUT, f"left {len(data)} bytes of a reply unread"
            )
            data = data[stream.send(data) :]

    def _await_by(self, deadline: float, stream: socket.socket, event: int, done: str) -> None:
        """Wait until a stream is ready.

        Args:
            deadline: On the monotonic clock.
            stream: Of the front-end.
            event: Of poll(2).
            done: What the front-end has done so far, for people.

        Raises:
            ProtocolError: MESSAGE_DEADLINE.
            _ListenerClosedError: The listener is being closed.
        """
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not self._await(stream, event, math.ceil(left_s * 1000)):
            raise ProtocolError(
                "MESSAGE_DEADLINE",
                f"the front-end {done} and then waited for more than {MESSAGE_DEADLINE_S:g} s; "
                "send a message whole, and read its reply",
                bound=math.ceil(MESSAGE_DEADLINE_S),
            )

    def _await(self, sock: socket.socket | None, event: int, timeout_ms: int | None = None) -> bool:
        """Wait until a socket, if any, is ready, or the time is over.

        Returns:
            Whether the socket is ready.

        Raises:
            _ListenerClosedError: The listener is being closed.
        """
        poll = select.poll()
        if sock is not None:
            poll.register(sock, event)
        poll.register(self._stop_fd, select.POLLIN)
        ready = poll.poll(timeout_ms)
        if any(fd == self._stop_fd for fd, _ in ready):
            raise _ListenerClosedError
        return bool(ready)
