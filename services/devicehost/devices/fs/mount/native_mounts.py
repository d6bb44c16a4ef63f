"""The mounts of one device, as the native loop of its queues finds them.

The loop serves hot requests without Python. This module owns the table in which the loop finds the
mount of each slot, and what each queue's thread keeps in the library. Must not know requests.
"""

from __future__ import annotations

import contextlib
import errno
from functools import partial
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.host_files import umask
from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator

    from services.devicehost.devices.fs.mount.native_mount import NativeMount


class NativeMounts:
    """The mounts of one device by slot; the library's side lives as long as this is referenced."""

    _pointer: int | None = None

    def __init__(self, library: ctypes.CDLL) -> None:
        """Begin with nothing mounted.

        Args:
            library: The native fast path.

        Raises:
            OSError: ENOMEM.
        """
        self._library = library
        self._pointer = library.ph_mounts_new()
        if self._pointer is None:
            raise refusal(errno.ENOMEM)

    def __del__(self) -> None:
        """Free the table; every thread that serves references this."""
        if self._pointer is not None:
            self._library.ph_mounts_free(self._pointer)

    def put(self, slot: int, mount: NativeMount | None) -> None:
        """Have the loop serve this mount in a slot from now on; None leaves the slot to Python.

        Raises:
            OSError: ENOMEM.
        """
        pointer = mount.pointer if mount else None
        if not self._library.ph_mounts_put(self._pointer, slot, pointer):
            raise refusal(errno.ENOMEM)

    @contextlib.contextmanager
    def worker(self) -> Iterator[Callable[[int], int]]:
        """Yield the function that serves a queue on the calling thread; see NativeQueue.lend.

        Raises:
            OSError: ENOMEM.
        """
        worker = self._library.ph_worker_new(umask.is_private())
        if worker is None:
            raise refusal(errno.ENOMEM)
        try:
            yield partial(_serve, self._library.ph_serve, worker, self._pointer)
        finally:
            self._library.ph_worker_delete(worker)


def _serve(
    serve: Callable[[int, int, int | None], int], worker: int, mounts: int | None, queue: int
) -> int:
    return serve(queue, worker, mounts)
