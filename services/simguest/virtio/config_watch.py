"""A device's messages that its configuration space has changed (CONFIG_CHANGE_MSG).

Owns the channel that the device sends them on (SET_BACKEND_REQ_FD), and the thread that reads it.
The device is not trusted: a message that breaks the protocol ends the channel, nothing else. Must
not know what is in the configuration space.
"""

from __future__ import annotations

import logging
import socket
import threading
from typing import TYPE_CHECKING

from services.handshake.errors import FailedPreconditionError, PortholeError
from services.wire.vhost_user import (
    HEADER_BYTES,
    U64,
    VERSION,
    BackendRequest,
    Header,
    Request,
    reply,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.simguest.virtio.front_end import FrontEnd

_LOG = logging.getLogger(__name__)


class ConfigWatch:
    """The channel of one device."""

    def __init__(self, front_end: FrontEnd, device: str, on_change: Callable[[], None]) -> None:
        """Hand the channel to the device, and read it on a thread of its own.

        Args:
            front_end: Of the device, which has accepted BACKEND_REQ and CONFIG.
            device: Its name, for messages.
            on_change: Called after each change, on that thread; it may ask the device.

        Raises:
            PortholeError: An error of `FrontEnd.send`.
        """
        self._device = device
        self._on_change = on_change
        self._channel, theirs = socket.socketpair()
        try:
            with theirs:
                front_end.send(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
        except BaseException:
            self._channel.close()
            raise
        self._thread = threading.Thread(target=self._run, name=f"config-{device}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the present call of `on_change`. Call it once."""
        self._channel.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._channel.close()

    def _run(self) -> None:
        try:
            while self._take():
                self._on_change()
        except (PortholeError, OSError) as error:
            _LOG.warning("%s: its changes are not heard any more: %s", self._device, error)

    def _take(self) -> bool:
        """Wait for a message; return False when the device, or `close`, has ended the channel.

        Raises:
            FailedPreconditionError: DEVICE_ANSWER.
        """
        data = self._channel.recv(HEADER_BYTES, socket.MSG_WAITALL)
        if not data:
            return False
        header = Header.parse(data) if len(data) == HEADER_BYTES else None
        expected = (BackendRequest.CONFIG_CHANGE_MSG, VERSION, 0)
        if header is None or (header.request, header.version, header.size) != expected:
            raise FailedPreconditionError(
                "DEVICE_ANSWER",
                f"{self._device} sent {header or data!r} against the vhost-user protocol; it may "
                "send CONFIG_CHANGE_MSG alone",
            )
        if header.need_reply:
            self._channel.sendall(reply(header.request, U64.pack(0)))
        return True
