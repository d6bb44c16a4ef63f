"""The protocol of sd_notify(3): reports the state of a process to systemd (Type=notify)."""

from __future__ import annotations

import logging
import os
import socket

_LOG = logging.getLogger(__name__)


def notify(state: str) -> None:
    """Send a state, for instance "READY=1", to NOTIFY_SOCKET, if it is set."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    name = f"\0{address[1:]}" if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), name)
    except OSError as error:
        _LOG.warning("cannot send %s to NOTIFY_SOCKET=%s: %s", state, address, error.strerror)
