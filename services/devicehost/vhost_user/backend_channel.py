"""The channel on which a back-end tells its front-end something (SET_BACKEND_REQ_FD).

Owns the descriptor of the channel, and when its one message, CONFIG_CHANGE_MSG, may be sent. Must
not know what has changed, or threads.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import Final

from services.wire.vhost_user import (
    PROTOCOL_F_BACKEND_REQ,
    PROTOCOL_F_CONFIG,
    BackendRequest,
    message,
)

_NEEDED: Final = PROTOCOL_F_BACKEND_REQ | PROTOCOL_F_CONFIG
_CONFIG_CHANGE: Final = message(BackendRequest.CONFIG_CHANGE_MSG)
"""It wants no reply, so nothing is ever read from the channel."""


class BackendChannel:
    """The channel of the present front-end, if it has handed one in; from any thread.

    Nothing waits for a front-end that does not read: what finds no room is left out. There are
    messages like it in the channel then, and who reads one of them asks for the configuration
    space as it is at that time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._protocol_features = 0

    def negotiated(self, protocol_features: int) -> None:
        """Take note of the protocol features that the front-end has accepted, as a mask."""
        with self._lock:
            self._protocol_features = protocol_features

    def replace(self, fd: int) -> None:
        """Take over a descriptor.

        It is kept open until there is another one, or `close`: closing it would look to a front-end
        like a crashed back-end.
        """
        with self._lock:
            old, self._fd = self._fd, fd
        if old is not None:
            os.close(old)

    def close(self) -> None:
        """Forget the front-end."""
        with self._lock:
            old, self._fd = self._fd, None
            self._protocol_features = 0
        if old is not None:
            os.close(old)

    def config_changed(self) -> None:
        """Tell a front-end that can ask for the configuration space that it has changed."""
        with self._lock:
            if self._fd is None or self._protocol_features & _NEEDED != _NEEDED:
                return
            # The descriptor is the front-end's as well, and may be anything. A send on a Unix
            # socket never waits with MSG_DONTWAIT; one on something else might.
            with contextlib.suppress(OSError):
                channel = socket.socket(fileno=self._fd)
                try:
                    if (channel.family, channel.type) == (socket.AF_UNIX, socket.SOCK_STREAM):
                        channel.send(_CONFIG_CHANGE, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                finally:
                    channel.detach()
