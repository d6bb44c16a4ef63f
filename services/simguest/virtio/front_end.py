"""The vhost-user front-end: one socket to one device, and the messages that are sent over it.

Owns the socket and the rules for answers (QEMU docs/interop/vhost-user.rst). The device is not
trusted: an answer that breaks the protocol costs the guest that device, nothing else. Must not know
the order in which a device is brought up; device.py owns that.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Final

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from services.rpc.address import UNIX_PATH_LIMIT_BYTES
from services.wire.vhost_user import (
    CONFIG,
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    U64,
    VERSION,
    VRING_STATE,
    Config,
    Header,
    Request,
    message,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ANSWER_DEADLINE_S: Final = 10.0
"""How long a device may take to answer one message."""


class FrontEnd:
    """A connected device. Thread-safe: one message at a time.

    Attributes:
        reply_ack: Whether REPLY_ACK is negotiated; `send` then waits for the device to acknowledge.
    """

    def __init__(self, path: Path, device: str, deadline_s: float = ANSWER_DEADLINE_S) -> None:
        """Connect.

        Args:
            path: The device's vhost-user socket.
            device: Name of the device, for messages.
            deadline_s: How long each answer may take, in seconds.

        Raises:
            InvalidArgumentError: SOCKET_PATH_TOO_LONG.
            UnavailableError: DEVICE_UNREACHABLE, when no process listens.
        """
        if len(os.fsencode(path)) > UNIX_PATH_LIMIT_BYTES:
            raise InvalidArgumentError(
                "SOCKET_PATH_TOO_LONG",
                f"vhost-user socket path {str(path)!r} is longer than {UNIX_PATH_LIMIT_BYTES} "
                "bytes; choose a shorter run directory",
                bound=UNIX_PATH_LIMIT_BYTES,
            )
        self.reply_ack = False
        self._device = device
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(deadline_s)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise UnavailableError(
                "DEVICE_UNREACHABLE",
                f"{device}: cannot connect to its vhost-user socket {path}: {error.strerror}",
                path=str(path),
            ) from None

    def fileno(self) -> int:
        """Return the socket, which hangs up when the device is gone; -1 after `close`."""
        return self._socket.fileno()

    def ask(self, request: Request, payload: bytes = b"") -> bytes:
        """Send a message that always has an answer and return the answer's payload.

        Raises:
            UnavailableError: DEVICE_GONE.
            DeadlineExceededError: DEVICE_TIMEOUT.
            FailedPreconditionError: DEVICE_ANSWER, when the answer breaks the protocol.
        """
        with self._lock:
            self._write(message(request, payload), ())
            return self._answer(request)

    def send(self, request: Request, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that has no answer of its own; with REPLY_ACK, wait for its status.

        Raises:
            FailedPreconditionError: DEVICE_REFUSED when the device could not do it.
            PortholeError: An error of `ask`.
        """
        with self._lock:
            flags = FLAG_NEED_REPLY if self.reply_ack else 0
            self._write(message(request, payload, flags), fds)
            if not self.reply_ack:
                return
            answer = self._answer(request)
        status = self._u64(request, answer)
        if status:
            raise FailedPreconditionError(
                "DEVICE_REFUSED",
                f"{self._device} refused {request.name} (status {status}); its log says why",
                request=request.name,
                status=status,
            )

    def ask_u64(self, request: Request) -> int:
        """Send a message, and return its answer, a 64-bit number."""
        return self._u64(request, self.ask(request))

    def ask_vring_base(self, index: int) -> int:
        """Stop a ring, and return its next available index."""
        request = Request.GET_VRING_BASE
        answer = self.ask(request, VRING_STATE.pack(index, 0))
        if len(answer) != VRING_STATE.size:
            raise self._misfit(request, f"{len(answer)} bytes instead of {VRING_STATE.size}")
        base: int = VRING_STATE.unpack(answer)[1]
        return base

    def ask_config(self, size: int) -> bytes:
        """Read the first `size` bytes of the configuration space."""
        request = Request.GET_CONFIG
        answer = Config.parse(self.ask(request, Config(0, size, 0, bytes(size)).pack()))
        if answer is None or len(answer.data) != size:
            got = "no configuration" if answer is None else f"{len(answer.data)} bytes"
            raise self._misfit(request, f"{got} instead of {size} bytes after {CONFIG.size}")
        return answer.data

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def _write(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            self._socket.settimeout(self._deadline_s)
            sent = socket.send_fds(self._socket, [data], list(fds)) if fds else 0
            self._socket.sendall(data[sent:])
        except TimeoutError:
            raise self._timeout() from None
        except OSError:
            raise self._gone() from None

    def _answer(self, request: Request) -> bytes:
        end = time.monotonic() + self._deadline_s
        header = Header.parse(self._receive(HEADER_BYTES, end))
        if (
            header.request != request
            or header.version != VERSION
            or not header.flags & FLAG_REPLY
            or header.size > MAX_PAYLOAD_BYTES
        ):
            raise self._misfit(request, f"{header}")
        return self._receive(header.size, end)

    def _receive(self, size: int, end: float) -> bytes:
        data = b""
        while len(data) < size:
            left = end - time.monotonic()
            if left <= 0:
                raise self._timeout()
            try:
                self._socket.settimeout(left)
                part = self._socket.recv(size - len(data))
            except TimeoutError:
                raise self._timeout() from None
            except OSError:
                raise self._gone() from None
            if not part:
                raise self._gone()
            data += part
        return data

    def _u64(self, request: Request, answer: bytes) -> int:
        if len(answer) != U64.size:
            raise self._misfit(request, f"{len(answer)} bytes instead of {U64.size}")
        number: int = U64.unpack(answer)[0]
        return number

    def _misfit(self, request: Request, what: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            "DEVICE_ANSWER",
            f"{self._device} answered {request.name} against the vhost-user protocol: {what}",
            request=request.name,
        )

    def _timeout(self) -> DeadlineExceededError:
        return DeadlineExceededError(
            "DEVICE_TIMEOUT",
            f"{self._device} did not answer within {self._deadline_s} s on its vhost-user socket",
        )

    def _gone(self) -> UnavailableError:
        return UnavailableError(
            "DEVICE_GONE", f"{self._device} is gone: it closed its vhost-user socket"
        )
