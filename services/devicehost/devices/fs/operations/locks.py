"""Locks: GETLK, SETLK, SETLKW, and INTERRUPT, which ends a wait for one.

FLUSH and RELEASE, which drop locks, are in `files`.
"""

from __future__ import annotations

import errno
import fcntl
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.host_files.syscalls import OFFSET_MAX, RecordLock
from services.devicehost.devices.fs.locks.host_locks import HostFileLock, HostLock, HostRecordLock
from services.devicehost.devices.fs.mount.open_files import OpenFile
from services.wire.fuse import FUSE_LK_FLOCK, LK_OUT, LkIn

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.operations.request import Request
    from services.devicehost.virtio.deferral import Deferred


def getlk(mount: Mount, request: Request) -> int:
    """GETLK: report a lock that is in the way."""
    wanted = LkIn(*request.args)
    opened = mount.open_files.get(wanted.fh, OpenFile)
    lock = _record(wanted)
    if lock.kind == fcntl.F_UNLCK:
        raise refusal(errno.EINVAL)
    owner = mount.lock_owners.find(opened.node.id, wanted.owner)
    # A handle's own description has no record locks, so all others are in its way.
    descriptor = owner.descriptor if owner else opened
    found = syscalls.find_record_lock(descriptor.fd, lock)
    if found.kind == fcntl.F_UNLCK:
        return request.reply(LK_OUT.pack(0, 0, fcntl.F_UNLCK, 0))
    pid = mount.lock_owners.pid_of(opened.node.id, found)
    return request.reply(LK_OUT.pack(found.start, found.end, found.kind, pid))


def setlk(mount: Mount, request: Request) -> int:
    """SETLK: set or clear a lock, or fail at once when another is in the way."""
    lock = _lock(mount, request)
    if lock is not None:
        lock.set(wait=False)
    return 0


def setlkw(mount: Mount, request: Request) -> int | Deferred:
    """SETLKW: set a lock, now or when it is free."""
    lock = _lock(mount, request)
    if lock is None:
        return 0
    try:
        lock.set(wait=False)
    except BlockingIOError:
        return mount.lock_waits.start(request.unique, request.finish, lock)
    return 0


def interrupt(mount: Mount, request: Request) -> int:
    """INTERRUPT: end a wait for a lock; no other request can be interrupted.

    Raises:
        OSError: EAGAIN when none waits (libfuse and the kernel's documentation call it "not found";
            the kernel may then ask again).
    """
    (unique,) = request.args
    if not mount.lock_waits.interrupt(unique):
        raise refusal(errno.EAGAIN)
    return 0


def _lock(mount: Mount, request: Request) -> HostLock | None:
    """Return the requested lock; None when an owner without locks is to clear one."""
    wanted = LkIn(*request.args)
    opened = mount.open_files.get(wanted.fh, OpenFile)
    if wanted.lk_flags & FUSE_LK_FLOCK:
        return HostFileLock(opened.descriptor, wanted.type)
    record = _record(wanted)
    unlock = record.kind == fcntl.F_UNLCK
    if unlock and mount.lock_owners.find(opened.node.id, wanted.owner) is None:
        return None
    owner = mount.lock_owners.find_or_add(
        opened.node.id, wanted.owner, wanted.fh, opened.descriptor
    )
    if not unlock:
        owner.pid = wanted.pid
        mount.open_files.mark_locked(opened)
    return HostRecordLock(mount.lock_owners, owner, record)


def _record(wanted: LkIn) -> RecordLock:
    """Check a record lock's kind and range.

    Raises:
        OSError: EINVAL.
    """
    if wanted.type not in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
        raise refusal(errno.EINVAL)
    if not wanted.start <= wanted.end <= OFFSET_MAX:
        raise refusal(errno.EINVAL)
    return RecordLock(wanted.type, wanted.start, wanted.end)
