"""The FUSE protocol core of one device: it takes request buffers and writes replies in place.

Owns the life of a mount (INIT, DESTROY, INIT again at any time, since a guest may reboot) and the
order of checks: header, life, opcode, length, room for the reply, rights. Any number of threads may
call `handle` at once. Must not know queues.
"""

from __future__ import annotations

import errno
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Final

from services.devicehost.accounting import Bound
from services.devicehost.devices.fs.aggregate.mount import AggregateMount
from services.devicehost.devices.fs.aggregate.root import ROOT_OPERATIONS
from services.devicehost.devices.fs.aggregate.shares import Aggregate
from services.devicehost.devices.fs.host_files.errors import errno_of, refusal
from services.devicehost.devices.fs.mount.mount import Mount
from services.devicehost.devices.fs.mount.native_mounts import NativeMounts
from services.devicehost.devices.fs.operations.request import Request
from services.devicehost.devices.fs.operations.table import OPERATIONS
from services.handshake.exhaustion import Resource
from services.handshake.pool import PAGE_BYTES
from services.wire import fuse
from services.wire.fuse import InitIn, InitOut, Opcode

if TYPE_CHECKING:
    from services.devicehost.accounting import Bounds
    from services.devicehost.devices.fs.operations.table import Operation, WhereT
    from services.devicehost.devices.fs.share.share import Share
    from services.devicehost.virtio.chain import Chain
    from services.devicehost.virtio.deferral import Deferred

_DEFAULT_MAX_PAGES: Final = 32
"""A guest without FUSE_MAX_PAGES uses this many, whatever INIT answers."""
_MAX_BACKGROUND: Final = 64
_CONGESTION_THRESHOLD: Final = 48
_LACKING: Final = {
    errno.ENFILE: (Resource.NODES,),
    errno.EMFILE: (Resource.HANDLES,),
    errno.ENOLCK: (Resource.LOCK_OWNERS, Resource.LOCKS, Resource.LOCK_WAITS),
}
"""Resources that may be used up when a request is refused with this errno."""
_INIT: Final = int(Opcode.INIT)
_DESTROY: Final = int(Opcode.DESTROY)
"""Plain numbers: comparing with a member of an enumeration takes seven times as long."""
_SILENT: Final = fuse.NO_REPLY | fuse.ERROR_REPLY
"""Opcodes that get no reply when they succeed."""


class FuseSession:
    """A guest's FUSE session with a share, or with an aggregate of them.

    Attributes:
        native_mounts: The mounts whose hot requests the native loop serves; None: `handle` serves
            all requests.
    """

    def __init__(self, served: Share | Aggregate, max_request_bytes: int) -> None:
        """Wait for INIT.

        Args:
            served: The share or the shares.
            max_request_bytes: Most bytes of data that the guest can map for one request.
        """
        self.native_mounts: Final = NativeMounts(served.library) if served.library else None
        self._served: Final = served
        self._max_pages: Final = max_request_bytes // PAGE_BYTES
        self._mutex: Final = threading.Lock()
        self._mount: Mount | AggregateMount | None = None

    @property
    def mount(self) -> Mount | AggregateMount | None:
        """The guest's mount; None before INIT and after DESTROY."""
        return self._mount

    @property
    def bounds(self) -> Bounds:
        """The bounded resources of the device."""
        return self._served.bounds

    def reset(self) -> None:
        """End the guest's mount; INIT is expected next."""
        self._begin(None)

    def handle(self, chain: Chain) -> int | Deferred:
        """Serve one request.

        Args:
            chain: The driver's request and the room for the reply, both cut anywhere.

        Returns:
            Bytes written, from the first writable byte on; 0 when no reply is due or none fits.
            Or a Deferred that writes the reply later; the buffers must stay until then.
        """
        if chain.readable_bytes < fuse.IN_HEADER.size:
            return 0
        request = Request(chain)
        try:
            length = self._run(request)
        except (OSError, OverflowError) as error:
            number = errno_of(error)
            if isinstance(error, OSError):
                self._note_exhausted(request, error)
            return request.finish(number) if request.opcode not in fuse.NO_REPLY else 0
        if not isinstance(length, int):
            return length
        return request.finish(0, length) if request.opcode not in _SILENT else 0

    def _run(self, request: Request) -> int | Deferred:
        """Check a request and serve it; returns the length of the reply's data."""
        opcode = request.opcode
        if opcode == _INIT:
            return self._init(request)
        mount = self._mount
        if mount is None:
            raise refusal(errno.ENOTCONN)
        if opcode == _DESTROY:
            self._begin(None)
            return 0
        where = mount.find(request.nodeid)
        if isinstance(where, AggregateMount):
            return _serve(ROOT_OPERATIONS.get(opcode), where, request)
        return _serve(OPERATIONS.get(opcode), where, request)

    def _begin(self, mount: Mount | AggregateMount | None) -> None:
        """End the present mount and go on with a new one, or with none."""
        with self._mutex:
            old, self._mount = self._mount, None
            if old is not None:
                old.end()
            if mount is not None:
                self._bound(mount.totals())
            if self.native_mounts is not None:
                self.native_mounts.put(0, mount.native if mount else None)
            self._mount = mount

    def _mounted(self, agreed: int) -> Mount | AggregateMount:
        """Make the guest's mount, with the FUSE_* that were agreed on at INIT."""
        if isinstance(self._served, Aggregate):
            return AggregateMount(self._served, self.native_mounts, agreed)
        return Mount(self._served, agreed=agreed)

    def _bound(self, totals: dict[Resource, int]) -> None:
        """Add the bounds of a mount's resources.

        A bound that has not changed is kept from the mount before, so mounting again begins no
        episode.
        """
        for resource, total in totals.items():
            if self._served.bounds.total(resource) != total:
                used = partial(_used, weakref.ref(self), resource)
                self._served.bounds.add(Bound(resource, total, used))

    def _note_exhausted(self, request: Request, error: OSError) -> None:
        """Report the resource that is used up, if a request was refused for want of one."""
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        mount = self._mount
        if mount is None or cause.errno not in _LACKING:
            return
        full = [each for each in _LACKING[cause.errno] if mount.is_full(each, request.nodeid)]
        if not full and cause.errno != errno.ENOLCK:
            full = [Resource.DESCRIPTORS]  # the tables have room, so descriptors are lacking
        for resource in full:
            self._served.bounds.hit(resource)

    def _init(self, request: Request) -> int:
        """INIT: agree on a version and on capabilities, and begin with a new mount."""
        request.load(fuse.INIT_COMPAT_IN, streamed=False)
        offer = _offer(request)
        if request.space_bytes < fuse.INIT_OUT.size:
            raise refusal(errno.EIO)
        if offer.major > fuse.FUSE_KERNEL_VERSION:
            # Linux then sends INIT again, in our major version.
            self._begin(None)
            return request.reply(
                _answer(flags=0, max_readahead=0, max_pages=0, minor=fuse.FUSE_KERNEL_MINOR_VERSION)
            )
        if offer.major < fuse.FUSE_KERNEL_VERSION or offer.minor < fuse.FUSE_MIN_MINOR_VERSION:
            raise refusal(errno.EPROTO)
        flags = self._served.capabilities() & (offer.flags | offer.flags2 << 32)
        if not flags & fuse.FUSE_DONT_MASK:  # the umask would cut default ACLs
            flags &= ~fuse.FUSE_POSIX_ACL
        self._begin(self._mounted(flags))
        return request.reply(
            _answer(
                minor=min(offer.minor, fuse.FUSE_KERNEL_MINOR_VERSION),
                flags=flags,
                max_readahead=offer.max_readahead,
                max_pages=self._max_pages
                if flags & fuse.FUSE_MAX_PAGES
                else min(_DEFAULT_MAX_PAGES, self._max_pages),
            )
        )


def _used(whose: weakref.ref[FuseSession], resource: Resource) -> int:
    """Return how much of a resource is in use; 0 while the guest has not mounted.

    The session is referenced weakly: its descriptors are closed when the last reference goes.
    """
    session = whose()
    mount = session.mount if session is not None else None
    return mount.used(resource) if mount is not None else 0


def _serve(operation: Operation[WhereT] | None, where: WhereT, request: Request) -> int | Deferred:
    if operation is None:
        raise refusal(errno.ENOSYS)
    request.load(operation.args, streamed=operation.streamed)
    if operation.reply_bytes > request.space_bytes:
        raise refusal(errno.EIO)
    if operation.modifies and where.read_only:
        raise refusal(errno.EROFS)
    return operation.run(where, request)


def _offer(request: Request) -> InitIn:
    """Read INIT's fixed part; flags2 is there with FUSE_INIT_EXT only."""
    major, minor, max_readahead, flags = request.args
    flags2 = 0
    if flags & fuse.FUSE_INIT_EXT and len(request.body) >= 4:
        flags2 = int.from_bytes(request.body[:4], "little")
    return InitIn(major, minor, max_readahead, flags, flags2)


def _answer(*, minor: int, flags: int, max_readahead: int, max_pages: int) -> bytes:
    return fuse.INIT_OUT.pack(
        *InitOut(
            major=fuse.FUSE_KERNEL_VERSION,
            minor=minor,
            max_readahead=max_readahead,
            flags=flags & 0xFFFF_FFFF,
            max_background=_MAX_BACKGROUND,
            congestion_threshold=_CONGESTION_THRESHOLD,
            max_write=max_pages * PAGE_BYTES,
            time_gran=1,
            max_pages=max_pages,
            map_alignment=0,
            flags2=flags >> 32,
        )
    )
