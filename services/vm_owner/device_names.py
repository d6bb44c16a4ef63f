"""The names of devices: mount tags, adapter names, and TAP interface names.

Owns their syntax and bounds. guest_devices.py checks whether a name is taken.
"""

from __future__ import annotations

import re
from typing import Final

from services.handshake import events
from services.handshake.errors import InvalidArgumentError

FS_TAG_LIMIT_BYTES: Final = 36
"""Longest mount tag (virtio 1.2, section 5.11.4, `tag`)."""

INTERFACE_LIMIT_BYTES: Final = 15
"""Longest name of a network interface (Linux include/uapi/linux/if.h, IFNAMSIZ - 1)."""

# A '/' would lead out of the directory of mount points; ';' and '=' separate options.
_FS_TAG: Final = re.compile(r"[^\x00-\x20\x7f/;=]+")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)


def check_name(device_class: str, name: str) -> None:
    """Refuse a name that no guest accepts.

    Args:
        device_class: events.FS or events.NET.
        name: The mount tag, or the adapter's name.

    Raises:
        InvalidArgumentError: DEVICE_NAME, naming the value and the bound.
    """
    if device_class == events.FS:
        _check(name, "mount tag", _FS_TAG, FS_TAG_LIMIT_BYTES, "without blanks, '/', ';' and '='")
    else:
        check_interface(name)


def check_interface(name: str) -> None:
    """Refuse a name that no network interface can have.

    Raises:
        InvalidArgumentError: DEVICE_NAME, naming the value and the bound.
    """
    allowed = "of letters, digits, '_', '-' and '.'"
    _check(name, "interface name", _INTERFACE, INTERFACE_LIMIT_BYTES, allowed)


def _check(name: str, what: str, pattern: re.Pattern[str], limit: int, allowed: str) -> None:
    length = len(name.encode("utf-8", "surrogatepass"))
    if name in (".", "..") or length > limit or not pattern.fullmatch(name):
        raise InvalidArgumentError(
            "DEVICE_NAME",
            f"{what} {name!r} has {length} bytes; it needs 1 to {limit} bytes {allowed}",
            name=name,
            limit=limit,
        )
