"""The native loop of one virtio-fs device: hot requests of its queues, served without Python.

Owns the place where the loop finds what the guest has mounted now, and what each queue's thread
keeps in the library. Must not know requests.
"""

from __future__ import annotations

import contextlib
import errno
from functools import partial
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.errors import refusal

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator

    from services.devicehost.devices.fs.native_tables import NativeTables


class NativeLoop:
    """One device's, as long as it is referenced."""

    _mount: int | None = None

    def __init__(self, library: ctypes.CDLL) -> None:
        """Begin with nothing mounted.

        Args:
            library: The native fast path.

        Raises:
            OSError: ENOMEM.
        """
        self._library = library
        self._mount = library.ph_mount_new()
        if self._mount is None:
            raise refusal(errno.ENOMEM)

    def __del__(self) -> None:
        """Free it; the threads that serve reference this."""
        if self._mount is not None:
            self._library.ph_mount_free(self._mount)

    def mount(self, slot: int, tables: NativeTables | None) -> None:
        """Serve what is in a slot from these tables from now on; None leaves it to Python.

        Raises:
            OSError: ENOMEM.
        """
        pointer = tables.pointer if tables else None
        if not self._library.ph_mount_set(self._mount, slot, pointer):
            raise refusal(errno.ENOMEM)

    @contextlib.contextmanager
    def worker(self) -> Iterator[Callable[[int], int]]:
        """Give what serves a queue on the calling thread; see NativeQueue.lend.

        Raises:
            OSError: ENOMEM.
        """
        worker = self._library.ph_worker_new()
        if worker is None:
            raise refusal(errno.ENOMEM)
        try:
            yield partial(_serve, self._library.ph_serve, worker, self._mount)
        finally:
            self._library.ph_worker_delete(worker)


def _serve(
    serve: Callable[[int, int, int | None], int], worker: int, mount: int | None, ring: int
) -> int:
    return serve(ring, worker, mount)
