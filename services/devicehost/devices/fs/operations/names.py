"""Names: finding, making, renaming and removing directory entries, and FORGET.

Every call is relative to the parent's descriptor and has one checked component as its name, so no
symlink is followed and nothing outside the share is reachable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.host_files import credentials, syscalls, umask
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.host_files.umask import Umask
from services.devicehost.devices.fs.mount.open_files import OpenFile
from services.devicehost.devices.fs.operations.files import host_flags, open_regular
from services.devicehost.devices.fs.operations.request import entry_name
from services.devicehost.devices.fs.share.acls import has_default_acl
from services.devicehost.devices.fs.share.name_case import (
    require_exact,
    require_exact_entry,
    require_no_other_spelling,
)
from services.wire.fuse import FORGET_ONE, OPEN_OUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from services.devicehost.devices.fs.host_files.syscalls import Statx
    from services.devicehost.devices.fs.mount.mount import Mount
    from services.devicehost.devices.fs.mount.nodes import Node
    from services.devicehost.devices.fs.operations.request import Request

_PERMISSIONS = 0o7777
_RENAME_EXCHANGE = 0b010
_RENAME_WHITEOUT = 0b100
_RENAME_FLAGS = 0b001 | _RENAME_EXCHANGE | _RENAME_WHITEOUT  # NOREPLACE


def lookup(mount: Mount, request: Request) -> int:
    """LOOKUP: find a name and count the lookup."""
    parent = mount.nodes.get(request.nodeid)
    name = request.name()
    return request.reply(mount.entry(*_find(mount, parent, name)))


def forget(mount: Mount, request: Request) -> int:
    """FORGET: take lookups back."""
    (count,) = request.args
    mount.nodes.forget(request.nodeid, count)
    return 0


def batch_forget(mount: Mount, request: Request) -> int:
    """BATCH_FORGET: take back lookups of many nodes."""
    (count,) = request.args
    if len(request.body) != count * FORGET_ONE.size:
        raise refusal(errno.EINVAL)
    for node_id, lookups in FORGET_ONE.iter_unpack(request.body):
        mount.nodes.forget(node_id, lookups)
    return 0


def create(mount: Mount, request: Request) -> int:
    """CREATE: make and open a regular file, or open one that exists."""
    flags, mode, mask, open_flags = request.args
    parent = mount.nodes.get(request.nodeid)
    name = request.name()
    mount.nodes.require_room()
    mount.open_files.require_room()
    mode, under = _under_umask(mount, parent, mode, mask)
    try:
        with mount.creating(request.user), under:
            made = syscalls.open_beneath(
                parent.fd,
                name,
                host_flags(mount, flags) | os.O_CREAT | os.O_EXCL,
                _host_mode(mount, mode),
            )
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
        try:
            node, status = _find(mount, parent, name)
        except FileNotFoundError:  # another spelling is in its place
            raise refusal(errno.EEXIST) from None
        try:
            opened = open_regular(mount, node, flags, open_flags)
        except OSError:
            mount.nodes.forget(node.id, 1)  # the guest does not learn of the lookup
            raise
        return _created(mount, request, node, status, opened)
    descriptor = Descriptor(made)
    if mount.rules.metadata:
        with _undone_by(lambda: os.unlink(name, dir_fd=parent.fd)):
            _keep(mount, request, parent, descriptor, stat.S_IFREG | mode & _PERMISSIONS)
    return _adopt_created(mount, request, parent, descriptor, name)


def tmpfile(mount: Mount, request: Request) -> int:
    """TMPFILE: make and open a regular file that has no name."""
    flags, mode, mask, _ = request.args
    parent = mount.nodes.get(request.nodeid)
    if parent.kind != stat.S_IFDIR:
        raise refusal(errno.ENOTDIR)
    mount.nodes.require_room()
    mount.open_files.require_room()
    mode, under = _under_umask(mount, parent, mode, mask)
    with mount.creating(request.user), under:
        made = os.open(
            parent.path,
            host_flags(mount, flags) | flags & os.O_EXCL | os.O_TMPFILE,
            _host_mode(mount, mode),
        )
    descriptor = Descriptor(made)
    _keep(mount, request, parent, descriptor, stat.S_IFREG | mode & _PERMISSIONS)
    return _adopt_created(mount, request, parent, descriptor, None)


def mkdir(mount: Mount, request: Request) -> int:
    """MKDIR: make a directory."""
    mode, mask = request.args
    parent = mount.nodes.get(request.nodeid)
    name = request.name()
    mount.nodes.require_room()
    mode, under = _under_umask(mount, parent, mode, mask)
    with mount.creating(request.user), under:
        os.mkdir(name, _host_mode(mount, mode, directory=True), dir_fd=parent.fd)
    if mount.rules.metadata:
        with _undone_by(lambda: os.rmdir(name, dir_fd=parent.fd)):
            made = Descriptor(syscalls.open_beneath(parent.fd, name, os.O_PATH))
            _keep(mount, request, parent, made, stat.S_IFDIR | mode & _PERMISSIONS)
    return _entry(mount, request, parent, name)


def mknod(mount: Mount, request: Request) -> int:
    """MKNOD: make a regular file, FIFO or socket; or a device, if the share's options allow it."""
    mode, rdev, mask = request.args
    parent = mount.nodes.get(request.nodeid)
    name = request.name()
    mount.nodes.require_room()
    kind = stat.S_IFMT(mode) or stat.S_IFREG
    if kind in (stat.S_IFDIR, stat.S_IFLNK):
        raise refusal(errno.EPERM)
    mount.rules.privileges.require_makes(kind, rdev)
    mode, under = _under_umask(mount, parent, mode, mask)
    with mount.creating(request.user), under:
        host_kind = stat.S_IFREG if mount.rules.metadata else kind
        os.mknod(name, host_kind | _host_mode(mount, mode), rdev, dir_fd=parent.fd)
    if mount.rules.metadata:
        with _undone_by(lambda: os.unlink(name, dir_fd=parent.fd)):
            made = Descriptor(syscalls.open_beneath(parent.fd, name, os.O_PATH))
            _keep(mount, request, parent, made, kind | mode & _PERMISSIONS, rdev)
    return _entry(mount, request, parent, name)


def symlink(mount: Mount, request: Request) -> int:
    """SYMLINK: make a link; its target is the guest's text and is not resolved here."""
    parent = mount.nodes.get(request.nodeid)
    name, target = request.strings(2)
    mount.nodes.require_room()
    if mount.rules.links:
        target = mount.rules.links.stored(target)
    with mount.acting(request.user):
        os.symlink(target, entry_name(name), dir_fd=parent.fd)
    return _entry(mount, request, parent, name)


def link(mount: Mount, request: Request) -> int:
    """LINK: give a node one more name."""
    (old_id,) = request.args
    mount.require_own(old_id)
    node = mount.nodes.get(old_id)
    parent = mount.nodes.get(request.nodeid)
    name = request.name()
    os.link(node.path, name, dst_dir_fd=parent.fd, follow_symlinks=True)
    return _entry(mount, request, parent, name)


def unlink(mount: Mount, request: Request) -> int:
    """UNLINK: remove the name of anything but a directory."""
    parent = mount.nodes.get(request.nodeid)
    name = request.name()
    if mount.rules.exact_names:
        require_exact_entry(parent, name)
    with mount.nodes.removing(parent, name):
        os.unlink(name, dir_fd=parent.fd)
    return 0


def rmdir(mount: Mount, request: Request) -> int:
    """RMDIR: remove an empty directory."""
    parent = mount.nodes.get(request.nodeid)
    name = request.name()
    if mount.rules.exact_names:
        require_exact_entry(parent, name)
    with mount.nodes.removing(parent, name):
        os.rmdir(name, dir_fd=parent.fd)
    return 0


def rename(mount: Mount, request: Request) -> int:
    """RENAME: give another name, replacing the entry that has it."""
    (new_parent,) = request.args
    return _rename(mount, request, new_parent, 0)


def rename2(mount: Mount, request: Request) -> int:
    """RENAME2: the same with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    new_parent, flags = request.args
    if flags & ~_RENAME_FLAGS:
        raise refusal(errno.EINVAL)
    return _rename(mount, request, new_parent, flags)


def readlink(mount: Mount, request: Request) -> int:
    """READLINK: return a symlink's text; the guest resolves it in its own name space."""
    node = mount.nodes.get(request.nodeid)
    if node.kind != stat.S_IFLNK:
        raise refusal(errno.EINVAL)
    target = os.readlink(b"", dir_fd=node.fd)
    links = mount.rules.links
    return request.reply(links.shown(target) if links else target)


def _rename(mount: Mount, request: Request, new_parent: int, flags: int) -> int:
    mount.require_own(new_parent)
    source = mount.nodes.get(request.nodeid)
    target = mount.nodes.get(new_parent)
    old, new = map(entry_name, request.strings(2))
    if mount.rules.exact_names:
        require_exact_entry(source, old)
        require_no_other_spelling(target, new)
    # A whiteout is a new file of the user; renaming needs no more than the guest has checked.
    user = mount.creating(request.user) if flags & _RENAME_WHITEOUT else credentials.NOTHING
    with mount.nodes.removing(target, new), user:
        syscalls.rename(source.fd, old, target.fd, new, flags)
    mount.nodes.renamed(target, new)
    if flags & _RENAME_EXCHANGE:
        mount.nodes.renamed(source, old)
    return 0


def _under_umask(mount: Mount, parent: Node, mode: int, mask: int) -> tuple[int, Umask]:
    """Return the mode for making a file, and what is to be entered meanwhile.

    Args:
        mount: Of the guest.
        parent: The directory in which it is made.
        mode: As the guest asks for it.
        mask: The umask that came with the request.
    """
    mask &= 0o777
    if not mount.applies_umask:  # the guest did
        return mode, Umask(0)
    if mount.rules.metadata:  # the mode is not the host's, whose ACLs do not count
        return mode & ~mask, Umask(0)
    if umask.is_private():
        return mode, Umask(mask)
    return (mode if mask and has_default_acl(parent) else mode & ~mask), Umask(0)


def _host_mode(mount: Mount, mode: int, *, directory: bool = False) -> int:
    """Return the permissions of the host's file when a guest makes a file with `mode`."""
    kept = mount.rules.metadata
    if kept:
        return kept.host_mode(mode, directory=directory)
    return mount.rules.privileges.host_mode(mode, directory=directory)


def _keep(
    mount: Mount, request: Request, parent: Node, made: Descriptor, mode: int, rdev: int = 0
) -> None:
    """Keep owner and mode of a new file, if the share keeps them itself."""
    kept = mount.rules.metadata
    if kept:
        kept.keep_new(parent, made.path, request.user, mode, rdev)


@contextlib.contextmanager
def _undone_by(undo: Callable[[], None]) -> Iterator[None]:
    """Undo the making of a file when the rest of the request fails."""
    try:
        yield
    except OSError:
        undo()
        raise


def _find(mount: Mount, parent: Node, name: bytes) -> tuple[Node, Statx]:
    """Look up a name as the guest spells it, and count the lookup."""
    node, status = mount.look_up(parent, name)
    if mount.rules.exact_names:
        try:
            require_exact(parent, name, status)
        except OSError:
            mount.nodes.forget(node.id, 1)
            raise
    return node, status


def _entry(mount: Mount, request: Request, parent: Node, name: bytes) -> int:
    return request.reply(mount.entry(*mount.enter(parent, name)))


def _adopt_created(
    mount: Mount, request: Request, parent: Node, made: Descriptor, name: bytes | None
) -> int:
    """Answer with a file that this request has just made: its node comes from its descriptor."""
    path_only = Descriptor(os.open(made.path, os.O_PATH))
    node, status = mount.adopt(path_only, parent, name)
    return _created(mount, request, node, status, OpenFile(node, made))


def _created(mount: Mount, request: Request, node: Node, status: Statx, opened: OpenFile) -> int:
    number = mount.open_files.add(opened)
    opened_as = OPEN_OUT.pack(number, mount.rules.cache.file_flags)
    return request.reply(mount.entry(node, status) + opened_as)
