"""Which errno a failure becomes on the wire.

Owns the refusals of the FUSE layer itself; what a system call refused keeps its own errno. Must not
know requests.
"""

from __future__ import annotations

import errno
import os


def refusal(number: int) -> OSError:
    """Make the error that becomes `number` on the wire."""
    return OSError(number, os.strerror(number))


def errno_of(error: OSError | OverflowError) -> int:
    """Tell the errno, 1 to 4095, that a guest is to see.

    A number that does not fit the C type of a system call (OverflowError) is EINVAL, as the kernel
    itself says of offsets beyond 2^63. An error without a number is EIO.
    """
    if isinstance(error, OverflowError):
        return errno.EINVAL
    return error.errno or errno.EIO
