"""The errno that a failure becomes on the wire.

Owns the refusals of the FUSE layer itself; a failed system call keeps its own errno. Must not know
requests.
"""

from __future__ import annotations

import errno
import os
from typing import Final

SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors of opening a file that say that something is used up, and nothing of the file."""


def refusal(number: int) -> OSError:
    """Make the error that becomes `number` on the wire."""
    return OSError(number, os.strerror(number))


def errno_of(error: OSError | OverflowError) -> int:
    """Return the errno that the guest gets, 1 to 4095.

    A number that does not fit the C type of a system call (OverflowError) is EINVAL, which is also
    the kernel's error for offsets beyond 2^63. An error without a number is EIO.
    """
    if isinstance(error, OverflowError):
        return errno.EINVAL
    return error.errno or errno.EIO
