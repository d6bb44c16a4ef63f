"""The probe for seccomp user notification in this kernel."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import logging
import platform
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_ACTIONS_FILE: Final = Path("/proc/sys/kernel/seccomp/actions_avail")
_USER_NOTIFICATION: Final = "user_notif"
_GET_NOTIF_SIZES: Final = 3  # include/uapi/linux/seccomp.h, SECCOMP_GET_NOTIF_SIZES
_NR_SECCOMP: Final = {"x86_64": 317, "aarch64": 277, "riscv64": 277}


def user_notification_available(actions_file: Path = _ACTIONS_FILE) -> bool:
    """Return whether a seccomp filter can pass a system call to a supervisor.

    Args:
        actions_file: The kernel's list of seccomp actions (Linux 4.14 and later).

    Returns:
        Whether the kernel lists SECCOMP_RET_USER_NOTIF (5.0 and later). If the list cannot be read,
        whether seccomp(SECCOMP_GET_NOTIF_SIZES) succeeds.
    """
    try:
        return _USER_NOTIFICATION in actions_file.read_text("ascii").split()
    except (OSError, UnicodeDecodeError):
        return _knows_notification_sizes()


class _NotifSizes(ctypes.Structure):
    """struct seccomp_notif_sizes, include/uapi/linux/seccomp.h."""

    _fields_ = (
        ("seccomp_notif", ctypes.c_uint16),
        ("seccomp_notif_resp", ctypes.c_uint16),
        ("seccomp_data", ctypes.c_uint16),
    )


def _knows_notification_sizes() -> bool:
    number = _NR_SECCOMP.get(platform.machine())
    if number is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    sizes = _NotifSizes()
    if libc.syscall(number, _GET_NOTIF_SIZES, 0, ctypes.byref(sizes)) == 0:
        return bool(sizes.seccomp_notif)
    logger.debug("seccomp: %s", errno.errorcode.get(ctypes.get_errno()))
    return False
