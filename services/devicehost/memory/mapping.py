"""One stretch of a shared file in this process: mmap, munmap, and the guard against truncation.

Python's own mmap object keeps a duplicate of the descriptor. An aperture promises that every
descriptor is closed, so this module calls mmap(2) itself. Must not know guest addresses.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os

from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import PAGE_BYTES

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_longlong,
)
_libc.munmap.restype = ctypes.c_int
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LOG = logging.getLogger(__name__)
_MAP_FAILED = ctypes.c_void_p(-1).value


class Mapping:
    """A stretch of a file, mapped shared, readable and writable, from construction to `close`.

    Attributes:
        address: Of the first byte, in this process.
        view: The bytes. Must not be touched after `close`: the process would be killed.
    """

    __slots__ = ("_mapped", "address", "view")

    def __init__(self, fd: int, offset: int, length: int) -> None:
        """Map `length` bytes of `fd` from `offset` on; the descriptor may be closed afterwards.

        Args:
            fd: A file that `guard_against_truncation` has seen.
            offset: In bytes, a multiple of the page size.
            length: In bytes, more than 0.

        Raises:
            InvalidArgumentError: MAPPING_UNALIGNED, or MAPPING_FAILED with the kernel's reason.
        """
        if offset % PAGE_BYTES:
            raise InvalidArgumentError(
                "MAPPING_UNALIGNED",
                f"guest memory starts at offset 0x{offset:x} of its file, which is not a multiple "
                f"of {PAGE_BYTES}; guest and file pages must line up",
                offset=offset,
            )
        address = _libc.mmap(
            None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, offset
        )
        if address == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise InvalidArgumentError(
                "MAPPING_FAILED",
                f"cannot map 0x{length:x} bytes of guest memory at file offset 0x{offset:x}: "
                f"{reason}; memory of huge pages must be aligned to their size",
                offset=offset,
                length=length,
            )
        self.address: int = address
        self._mapped = True
        self.view = memoryview((ctypes.c_char * length).from_address(address)).cast("B")

    def close(self) -> None:
        """Unmap; harmless when done before."""
        if self._mapped:
            _libc.munmap(self.address, len(self.view))
            self._mapped = False


def guard_against_truncation(fd: int, needed_bytes: int) -> None:
    """Make sure that touching a mapping of `fd` cannot kill this process.

    A file that shrinks under a mapping turns the next access into SIGBUS, which ends the devices of
    every VM. So the file must be sealed against shrinking (fcntl(2), F_SEAL_SHRINK), and its size
    is checked afterwards. Only a memfd can be sealed, so no access waits for another file system.

    Raises:
        InvalidArgumentError: REGION_NOT_SEALED, REGION_FILE_TOO_SHORT.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError as error:
        if not _is_sealed(fd):
            raise InvalidArgumentError(
                "REGION_NOT_SEALED",
                "a region of guest memory cannot be sealed against shrinking: "
                f"{error.strerror}; share it as a memfd with sealing allowed (QEMU: "
                "memory-backend-memfd,share=on)",
            ) from error
    _check_size(fd, needed_bytes)


class OwnRisk:
    """A guard for a `RegionTable` that also accepts memory that may shrink, and warns once.

    It is for a process that serves one guest only: a guest whose memory shrinks ends its own
    devices and no others (docs/adr/0010-unsealed-memory-stand-alone.md).
    """

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, fd: int, needed_bytes: int) -> None:
        """Check as `guard_against_truncation` does, but accept what is not sealed."""
        try:
            guard_against_truncation(fd, needed_bytes)
        except InvalidArgumentError as error:
            if error.reason != "REGION_NOT_SEALED":
                raise
            _check_size(fd, needed_bytes)
            if not self._warned:
                self._warned = True
                _LOG.warning("%s; accepted all the same; this device ends if it shrinks", error)


def _check_size(fd: int, needed_bytes: int) -> None:
    size_bytes = os.fstat(fd).st_size
    if size_bytes < needed_bytes:
        raise InvalidArgumentError(
            "REGION_FILE_TOO_SHORT",
            f"a region of guest memory ends at offset 0x{needed_bytes:x} of its file, which has "
            f"0x{size_bytes:x} bytes only",
            needed=needed_bytes,
            size=size_bytes,
        )


def _is_sealed(fd: int) -> bool:
    try:
        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:
        return False
