"""What systemd is told of a process that it started with Type=notify: sd_notify(3), its protocol.

Must not know what is told.
"""

from __future__ import annotations

import logging
import os
import socket

_LOG = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send a state, for instance "READY=1", to NOTIFY_SOCKET; nothing to do without one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), name)
    except OSError as error:
        _LOG.warning("NOTIFY_SOCKET=%s cannot be told %s: %s", address, state, error.strerror)
