"""The virtio-fs device (virtio 1.2, section 5.11): queues and configuration space.

Queue 0 is the high-priority queue, the request queues follow; all of them are served alike, each on
a thread of its own. Must not know FUSE: requests go to the session as they come.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.devices.fs import credentials, syscalls
from services.devicehost.devices.fs.descriptors import Descriptor, raise_descriptor_limit
from services.devicehost.devices.fs.lx_metadata import can_keep
from services.devicehost.devices.fs.session import Session, Share
from services.devicehost.memory import DeviceCounters
from services.devicehost.virtio.deferral import QueuedRequests
from services.devicehost.virtio.device import serve_natively, serve_requests
from services.devicehost.virtio.native_queue import NativeQueue
from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
)
from services.handshake.events import FS
from services.wire.virtio_fs import CONFIG, TAG_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from services.devicehost.virtio.deferral import Deferred
    from services.devicehost.virtio.queue import Chain, Queue
    from services.handshake.options import FsOptions


class FsDevice:
    """One virtio-fs device over one directory of the host."""

    device_class: Final = FS
    features: Final = 0
    goes_native: Final = True

    def __init__(
        self, options: FsOptions, shared_dir: Path, counters: DeviceCounters | None = None
    ) -> None:
        """Open the directory that is shared, and raise the process's limit on open files.

        Args:
            options: What the device was asked to be; its name is the tag.
            shared_dir: The directory; symlinks in its own path are followed once, now.
            counters: Of the device; what is bounded is told there.

        Raises:
            InvalidArgumentError: TAG_TOO_LONG beyond 36 bytes; SHARED_DIR_NOT_A_DIRECTORY.
            NotFoundError: SHARED_DIR_MISSING.
            PermissionDeniedError: SHARED_DIR_DENIED.
            FailedPreconditionError: METADATA_UNSUPPORTED.
        """
        tag = options.name.encode()
        if len(tag) > TAG_BYTES:
            raise InvalidArgumentError(
                "TAG_TOO_LONG",
                f"tag {options.name!r} has {len(tag)} bytes; virtio-fs has room for {TAG_BYTES}",
                tag=options.name,
                bound=TAG_BYTES,
            )
        self.num_queues: Final = 1 + options.queues
        self._config: Final = CONFIG.pack(tag, options.queues)
        root = _open_shared(shared_dir)
        if options.metadata and not can_keep(root.path):
            raise FailedPreconditionError(
                "METADATA_UNSUPPORTED",
                f"cannot share {str(shared_dir)!r} with metadata: its file system has no user "
                "extended attributes to keep it in; leave the option out",
                shared_dir=str(shared_dir),
            )
        counters = counters or DeviceCounters()
        self._queued: Final = QueuedRequests(counters)
        limits = raise_descriptor_limit()
        self._session: Session | None = Session(
            Share(root, options, limits, fastpath.library, counters.bounds)
        )

    def config(self) -> bytes:
        """Tell the configuration space."""
        return self._config

    def activate(self, features: int) -> None:
        """Nothing depends on the features: virtio-fs as such has none that are offered."""

    def serve(self, index: int, queue: Queue) -> None:
        """Serve one queue; the high-priority one needs no other treatment than a thread of its own.

        Raises:
            QueueError: As the queue's.
        """
        session = self._session
        if session is None:
            return
        # Modes arrive with the guest's umask applied; ours must not be applied as well.
        syscalls.use_private_umask(0)
        credentials.leave_groups()

        def handle(chain: Chain) -> int | Deferred:
            return session.handle(chain.readable, chain.writable)

        if isinstance(queue, NativeQueue) and session.loop is not None:
            with session.loop.worker() as loop:
                serve_natively(queue, loop, handle, self._queued)
        else:
            serve_requests(queue, handle, self._queued)

    def reset(self) -> None:
        """Forget the guest: its nodes and open files."""
        if self._session is not None:
            self._session.reset()

    def close(self) -> None:
        """Let go of the shared directory."""
        self._session = None


def _open_shared(shared_dir: Path) -> Descriptor:
    try:
        return Descriptor(os.open(shared_dir, os.O_PATH | os.O_DIRECTORY))
    except OSError as error:
        kind, reason = _OPEN_ERRORS.get(
            error.errno or 0, (InvalidArgumentError, "SHARED_DIR_UNUSABLE")
        )
        raise kind(
            reason,
            f"cannot share {str(shared_dir)!r}: {error.strerror}; name a directory that the device "
            "host may read",
            shared_dir=str(shared_dir),
        ) from error


_OPEN_ERRORS: Final[dict[int, tuple[type[PortholeError], str]]] = {
    errno.ENOENT: (NotFoundError, "SHARED_DIR_MISSING"),
    errno.ENOTDIR: (InvalidArgumentError, "SHARED_DIR_NOT_A_DIRECTORY"),
    errno.EACCES: (PermissionDeniedError, "SHARED_DIR_DENIED"),
}
