"""The virtio-fs device (virtio 1.2, section 5.11): queues and configuration space.

Queue 0 is the high-priority queue, and the request queues follow; all of them are served alike,
each on a thread of its own. Must not know FUSE.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.accounting import DeviceMeter
from services.devicehost.devices.fs.aggregate.shares import Aggregate
from services.devicehost.devices.fs.backend import AggregateBackend, FsBackend, open_shared
from services.devicehost.devices.fs.host_files import credentials, umask
from services.devicehost.devices.fs.host_files.descriptors import raise_descriptor_limit
from services.devicehost.devices.fs.protocol import FuseSession
from services.devicehost.devices.fs.share.share import Share
from services.devicehost.virtio.deferral import QueuedRequests
from services.devicehost.virtio.device import serve_natively, serve_requests
from services.devicehost.virtio.native_queue import NativeQueue
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.handshake.events import FS
from services.handshake.options import FsOptions
from services.wire.virtio_fs import CONFIG, TAG_BYTES

if TYPE_CHECKING:
    from services.devicehost.virtio.queue import Queue


class FsDevice:
    """One virtio-fs device over one directory of the host, or an aggregate of several."""

    device_class: Final = FS
    features: Final = 0
    goes_native: Final = True

    def __init__(
        self,
        options: FsOptions,
        backend: FsBackend | AggregateBackend,
        max_request_bytes: int,
        meter: DeviceMeter | None = None,
    ) -> None:
        """Open the directory that is shared, and raise the process's limit on open files.

        Args:
            options: The options of the device; their name is the tag.
            backend: The directory to share, or an aggregate, which begins without any share.
            max_request_bytes: Most bytes of data that the guest can map for one request.
            meter: Of the device; its bounds are added there.

        Raises:
            InvalidArgumentError: TAG_TOO_LONG beyond 36 bytes; AGGREGATE_OPTION.
            PortholeError: The directory cannot be shared; see open_shared.
        """
        tag = options.name.encode()
        if len(tag) > TAG_BYTES:
            raise InvalidArgumentError(
                "TAG_TOO_LONG",
                f"tag {options.name!r} has {len(tag)} bytes; virtio-fs has room for {TAG_BYTES}",
                tag=options.name,
                bound=TAG_BYTES,
            )
        self._tag: Final = options.name
        self.num_queues: Final = 1 + options.queues
        self._config: Final = CONFIG.pack(tag, options.queues)
        meter = meter or DeviceMeter()
        self._queued: Final = QueuedRequests(meter)
        self._bounds: Final = meter.bounds
        self._limits: Final = raise_descriptor_limit()
        self._children: Aggregate | None = None
        if isinstance(backend, AggregateBackend):
            _require_no_share(options)
            self._children = Aggregate(options, self._limits, fastpath.library, self._bounds)
            served: Share | Aggregate = self._children
        else:
            served = self._share(options, Path(backend.shared_dir))
        self._session: FuseSession | None = FuseSession(served, max_request_bytes)

    def add_child(self, name: str, options: FsOptions, shared_dir: Path) -> None:
        """Add a share to an aggregate, while the guest uses the others.

        Args:
            name: Its name in the root.
            options: The options of the share.
            shared_dir: The directory.

        Raises:
            FailedPreconditionError: NO_AGGREGATE.
            PortholeError: The share is refused; see Aggregate.add and open_shared.
        """
        self._aggregate().add(name, self._share(options, shared_dir))

    def remove_child(self, name: str) -> None:
        """Remove a share from an aggregate, while the guest uses it or others.

        Raises:
            FailedPreconditionError: NO_AGGREGATE.
            NotFoundError: CHILD_UNKNOWN.
        """
        self._aggregate().remove(name)

    @property
    def children(self) -> tuple[str, ...]:
        """Names of the shares of an aggregate."""
        return tuple(child.name for child in self._children.children()) if self._children else ()

    def config(self) -> bytes:
        """Return the configuration space."""
        return self._config

    def activate(self, features: int) -> None:
        """Take the accepted features; none are offered, so nothing depends on them."""

    def serve(self, index: int, queue: Queue) -> None:
        """Serve one queue; the high-priority queue is served like the others.

        Raises:
            QueueError: The guest broke a rule of the ring.
        """
        session = self._session
        if session is None:
            return
        # The guest's umask counts; this process's must not be applied as well.
        umask.clear()
        credentials.leave_groups()

        if isinstance(queue, NativeQueue) and session.native_mounts is not None:
            with session.native_mounts.worker() as loop:
                serve_natively(queue, loop, session.handle, self._queued)
        else:
            serve_requests(queue, session.handle, self._queued)

    def reset(self) -> None:
        """Forget the guest: its nodes and open files."""
        if self._session is not None:
            self._session.reset()

    def close(self) -> None:
        """Let go of the shared directories."""
        self._session = self._children = None

    def _share(self, options: FsOptions, shared_dir: Path) -> Share:
        root = open_shared(shared_dir, options)
        return Share(root, options, self._limits, fastpath.library, self._bounds)

    def _aggregate(self) -> Aggregate:
        if self._children is None:
            raise FailedPreconditionError(
                "NO_AGGREGATE",
                f"device {self._tag!r} shares one directory, or is gone; add shares to an "
                "aggregate device",
                tag=self._tag,
            )
        return self._children


def _require_no_share(options: FsOptions) -> None:
    """Refuse options of an aggregate that belong to its shares."""
    own = FsOptions(
        name=options.name,
        vm_id=options.vm_id,
        swiotlb=options.swiotlb,
        aperture=options.aperture,
        rings=options.rings,
        queues=options.queues,
        writeback=options.writeback,
    )
    if options != own:
        raise InvalidArgumentError(
            "AGGREGATE_OPTION",
            f"aggregate device {options.name!r} takes the options queues, rings and writeback "
            "only; give the others to its shares",
            options=str(options),
        )
