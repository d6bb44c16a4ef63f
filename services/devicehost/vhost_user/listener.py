"""The thin shell around a back-end: the one thread that reads from its front-ends.

Serves one front-end at a time; a second one waits in the socket's queue until the first has gone.
Owns every received descriptor until the back-end takes it. Must not know rings, guest memory or
virtio devices: what a message does to them is the back-end's business.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

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
    from services.devicehost.vhost_user.backend import Backend
    from services.devicehost.vhost_user.sockets import ListeningSocket

_LOG = logging.getLogger(__name__)

ACCEPT_RETRY_MS: Final = 1000
"""How long to wait before accepting again after EMFILE; nothing signals that a descriptor became
free."""

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
        name = f"vhost-{self._path.stem}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Drop the front-end, if there is one, and remove the socket. Call once."""
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        self._listening.close()
        os.close(self._stop_fd)

    def _run(self) -> None:
        try:
            while True:
                with self._accept() as stream:
                    stream.setblocking(False)
                    self._serve(stream)
        except _ListenerClosedError:
            return

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
        try:
            head = self._receive(stream, HEADER_BYTES, fds)
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
            payload = self._receive(stream, header.size) if header.size else b""
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

    def _receive(self, stream: socket.socket, length: int, fds: list[int] | None = None) -> bytes:
        """Read exactly `length` bytes; descriptors that come with them go to `fds`.

        Without a list of descriptors the kernel closes any that come.

        Returns:
            The bytes; none when the front-end closed between messages.

        Raises:
            ProtocolError: It closed within one, or sent more descriptors than a message may carry.
        """
        data = b""
        room = socket.CMSG_SPACE(MAX_MESSAGE_FDS * _FD_BYTES) if fds is not None else 0
        while len(data) < length:
            self._await(stream, select.POLLIN)
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
        while data:
            self._await(stream, select.POLLOUT)
            data = data[stream.send(data) :]

    def _await(self, sock: socket.socket | None, event: int, timeout_ms: int | None = None) -> None:
        """Wait until a socket, if any, is ready, or the time is over.

        Raises:
            _ListenerClosedError: The listener is being closed.
        """
        poll = select.poll()
        if sock is not None:
            poll.register(sock, event)
        poll.register(self._stop_fd, select.POLLIN)
        if any(fd == self._stop_fd for fd, _ in poll.poll(timeout_ms)):
            raise _ListenerClosedError
