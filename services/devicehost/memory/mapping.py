"""One stretch of a shared file in this process: mmap, munmap, and what its file has to be.

Python's own mmap object keeps a duplicate of the descriptor. An aperture promises that every
descriptor is closed, so this module calls mmap(2) itself. Must not know guest addresses.
"""

from __future__ import annotations

import ctypes
import fcntl
import logging
import mmap
import os

from services.devicehost.memory.loss import Loss, survives_lost_pages
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
_HUGETLBFS_MAGIC = 0x9584_58F6


class Mapping:
    """A stretch of a file, mapped shared, readable and writable, from construction to `close`.

    Attributes:
        address: Of the first byte, in this process.
        view: The bytes. Must not be touched after `close`: the process would be killed.
    """

    __slots__ = ("_loss", "_mapped", "_watched", "address", "view")

    def __init__(
        self, fd: int, offset: int, length: int, loss: Loss, page_bytes: int = PAGE_BYTES
    ) -> None:
        """Map `length` bytes of `fd` from `offset` on; the descriptor may be closed afterwards.

        Args:
            fd: A file that a guard (`guard_against_loss`) has seen.
            offset: In bytes, a multiple of the page size.
            length: In bytes, more than 0.
            loss: Learns it when pages of the mapping are lost.
            page_bytes: Of the file: what `page_bytes_of` returned. With huge pages offset and
                length are multiples of it, or more would be mapped than is asked for.

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
        if page_bytes > PAGE_BYTES and (offset % page_bytes or length % page_bytes):
            raise InvalidArgumentError(
                "MAPPING_FAILED",
                f"0x{length:x} bytes of guest memory at file offset 0x{offset:x} are not made of "
                f"whole huge pages of 0x{page_bytes:x} bytes, so they cannot be mapped alone; "
                "share memory of ordinary pages (QEMU: memory-backend-memfd,hugetlb=off)",
                offset=offset,
                length=length,
            )
        address = _libc.mmap(
            None, length, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, offset
        )
        if address == _MAP_FAILED:
            reason = os.strerror(ctypes.get_errno())
            raise InvalidArgumentError(
                "MAPPING_FAILED",
                f"cannot map 0x{length:x} bytes of guest memory at file offset 0x{offset:x}: "
                f"{reason}",
                offset=offset,
                length=length,
            )
        self.address: int = address
        self._loss = loss
        self._mapped = True
        try:
            self._watched = loss.watch(address, length)
        except BaseException:
            _libc.munmap(address, length)
            raise
        self.view = memoryview((ctypes.c_char * length).from_address(address)).cast("B")

    def close(self) -> None:
        """Unmap; harmless when done before."""
        if self._mapped:
            if self._watched is not None:
                self._loss.unwatch(self._watched)
            _libc.munmap(self.address, len(self.view))
            self._mapped = False


def guard_against_loss(fd: int, needed_bytes: int) -> None:
    """Make sure that touching a mapping of `fd` cannot kill this process.

    A file that shrinks under a mapping turns the next access into SIGBUS, which ends the devices of
    every VM. So the file must be sealed against shrinking (fcntl(2), F_SEAL_SHRINK), and its size
    is checked afterwards. Only a memfd can be sealed, so no access waits for another file system.

    The seal does not forbid to punch holes (only F_SEAL_WRITE does). Ordinary pages come back as
    zeros; of huge pages none may be free, which is SIGBUS too. Only the native library survives
    that, and with it the other devices.

    Raises:
        InvalidArgumentError: REGION_NOT_SEALED, REGION_FILE_TOO_SHORT, REGION_HUGE_PAGES.
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
    page_bytes = page_bytes_of(fd)
    if page_bytes > PAGE_BYTES and not survives_lost_pages():
        raise InvalidArgumentError(
            "REGION_HUGE_PAGES",
            f"a region of guest memory has huge pages of 0x{page_bytes:x} bytes, and without the "
            "native fast path one that is lost would end the devices of all VMs; share memory of "
            "ordinary pages (QEMU: memory-backend-memfd,hugetlb=off), or see what `porthole "
            "version` says of the fast path",
            page_bytes=page_bytes,
        )


def page_bytes_of(fd: int) -> int:
    """Return the size of a file's pages: PAGE_BYTES, or that of its huge pages (hugetlbfs).

    Source: statfs(2), struct statfs: f_type, and f_bsize, which hugetlbfs sets to that size.
    """
    room = (ctypes.c_long * 32)()
    if _libc.fstatfs(fd, room) == 0 and room[0] == _HUGETLBFS_MAGIC:
        return int(room[1])
    return PAGE_BYTES


class OwnRisk:
    """A guard for a `RegionTable` that also accepts memory that may be lost, and warns once.

    It is for a process that serves one guest only: a guest that loses its memory ends its own
    devices and no others (docs/adr/0010-unsealed-memory-stand-alone.md).
    """

    def __init__(self) -> None:
        self._warned = False

    def __call__(self, fd: int, needed_bytes: int) -> None:
        """Check as `guard_against_loss` does, but accept what is not sealed, or has huge pages."""
        try:
            guard_against_loss(fd, needed_bytes)
        except InvalidArgumentError as error:
            if error.reason not in ("REGION_NOT_SEALED", "REGION_HUGE_PAGES"):
                raise
            _check_size(fd, needed_bytes)
            if not self._warned:
                self._warned = True
                _LOG.warning("%s; accepted all the same; this device ends if it is lost", error)


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
