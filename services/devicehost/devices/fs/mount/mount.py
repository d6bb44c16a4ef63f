"""A guest's mount of a share: all that it has of the share between INIT and DESTROY.

Owns the nodes, open files and locks of that time, and the share's rules. DESTROY drops this object
as a whole; requests under way keep it, and their descriptors, until they are done. Must not know
requests.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files import credentials, syscalls
from services.devicehost.devices.fs.host_files.descriptors import (
    Descriptor,
    Limits,
    first_unusable,
    open_descriptors,
)
from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.locks.owners import MAX_LOCKS, OwnerTable
from services.devicehost.devices.fs.locks.waits import MAX_WAITS, LockWaits
from services.devicehost.devices.fs.mount.native_mount import NativeMount
from services.devicehost.devices.fs.mount.native_tables import NativeNodeTable, NativeOpenFileTable
from services.devicehost.devices.fs.mount.nodes import Node, NodeTable
from services.devicehost.devices.fs.mount.open_files import OpenFile, OpenFileTable
from services.devicehost.devices.fs.share.privileges import remove_attribute
from services.devicehost.devices.fs.share.rules import Rules
from services.handshake.exhaustion import Resource
from services.wire.fuse import (
    ATTR_OUT,
    ENTRY_OUT,
    FUSE_ATTR_SUBMOUNT,
    FUSE_DONT_MASK,
    FUSE_POSIX_ACL,
    FUSE_ROOT_ID,
    FUSE_SETXATTR_EXT,
    FUSE_SUBMOUNTS,
    FUSE_WRITEBACK_CACHE,
    STATX_OUT,
)

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable

    from services.devicehost.devices.fs.host_files.credentials import User
    from services.devicehost.devices.fs.host_files.syscalls import Statx
    from services.devicehost.devices.fs.share.attributes import Overrides
    from services.devicehost.devices.fs.share.share import Share


_ANY_S: Final = 1 << 63


class Mount:
    """Nodes, open files, locks and rules.

    Attributes:
        rules: Of the share.
        root_id: Of the shared directory's node.
        writeback: Whether the guest caches what it writes (FUSE_WRITEBACK_CACHE).
        applies_umask: Whether the guest leaves it to the host to apply its umask (FUSE_DONT_MASK).
        checks_acls: Whether the guest reads ACLs and obeys them (FUSE_POSIX_ACL).
        long_setxattr: Whether SETXATTR has its long form (FUSE_SETXATTR_EXT).
        native: The library's side of the mount; None: Python keeps nodes and open files.
    """

    def __init__(self, share: Share, *, agreed: int, slot: int = 0) -> None:
        """Begin with the root only.

        Args:
            share: What is mounted.
            agreed: FUSE_* that were agreed on at INIT.
            slot: Of the share, where its device has several.

        Raises:
            OSError: The shared directory cannot be read any more.
        """
        rules = Rules(share.options)
        limits = share.limits
        self.rules: Final = rules
        self.writeback: Final = bool(agreed & FUSE_WRITEBACK_CACHE)
        self.applies_umask: Final = bool(agreed & FUSE_DONT_MASK)
        self.checks_acls: Final = bool(agreed & FUSE_POSIX_ACL)
        self.long_setxattr: Final = bool(agreed & FUSE_SETXATTR_EXT)
        self._submounts: Final = bool(agreed & FUSE_SUBMOUNTS)
        self._ino_mask: Final = slot << fastpath.SLOT_SHIFT
        self._is_child: Final = slot != 0
        self.root_id: Final = slot << fastpath.SLOT_SHIFT | FUSE_ROOT_ID
        self.lock_owners: Final = OwnerTable(limits.handles)
        self.lock_waits: Final = LockWaits()
        self._attr: Final = rules.presentation.attr
        self._overrides: Final = rules.overrides if rules.to_python else None
        self._valid_s: Final = rules.cache.valid_s
        self._switches = credentials.may_switch()
        self.native: Final = self._native(share, share.library) if share.library else None
        self.nodes: NodeTable | NativeNodeTable
        self.open_files: OpenFileTable | NativeOpenFileTable
        if self.native is None:
            root = share.root
            self.nodes = NodeTable(
                root,
                syscalls.status_of(root.fd),
                limits,
                self.root_id,
                ino_mask=self._ino_mask,
                submounts=self._submounts,
            )
            self.open_files = OpenFileTable(limits)
        else:
            self.nodes = NativeNodeTable(self.native)
            self.open_files = NativeOpenFileTable(self.native)

    def totals(self) -> dict[Resource, int]:
        """Return how much there is of each bounded resource."""
        return totals(
            Limits(self.nodes.limit, 0, self.open_files.limit), lock_owners=self.lock_owners.limit
        )

    def is_full(self, resource: Resource, node_id: int) -> bool:
        """Return whether a resource is used up; an aggregate looks at the share of the node."""
        return self.used(resource) >= self.totals()[resource]

    def used(self, resource: Resource) -> int:
        """Return how much of a resource is in use."""
        return _USED[resource](self)

    @property
    def read_only(self) -> bool:
        """Whether every change is refused."""
        return self.rules.read_only

    def find(self, node_id: int) -> Mount:
        """Return the mount that a node belongs to: this one; an aggregate has several."""
        return self

    def require_own(self, node_id: int) -> None:
        """Refuse a node of another share of the device.

        Raises:
            OSError: EXDEV.
        """
        if self._is_child and (node_id ^ self.root_id) >> fastpath.SLOT_SHIFT:
            raise refusal(errno.EXDEV)

    def end(self, number: int = errno.ENOTCONN) -> None:
        """Drop the guest's locks, and end its waits for locks with an errno."""
        self.lock_waits.end(number)
        self.lock_owners.clear()

    def enter(self, parent: Node | OpenFile, name: bytes) -> tuple[Node, Statx]:
        """Look up a checked name and count the lookup.

        Raises:
            OSError: An error of openat2(2); ENFILE when the guest holds too many nodes.
        """
        found = Descriptor(syscalls.open_beneath(parent.fd, name, os.O_PATH))
        return self.adopt(found, parent.node if isinstance(parent, OpenFile) else parent, name)

    def look_up(self, parent: Node, name: bytes) -> tuple[Node, Statx]:
        """Look up a checked name; a file that the guest knows takes one system call, not three.

        Raises:
            OSError: See `enter`.
        """
        if isinstance(self.nodes, NodeTable):
            status = syscalls.status_at(parent.fd, name)
            known = self.nodes.count_lookup_if_known(status, parent, name)
            if known is not None:
                return known, status
        return self.enter(parent, name)

    def adopt(self, descriptor: Descriptor, parent: Node, name: bytes | None) -> tuple[Node, Statx]:
        """Find or make the node of an O_PATH descriptor of a file in `parent`; count the lookup.

        Args:
            descriptor: Of the file.
            parent: The directory that it was found or made in.
            name: Its checked name there; None: it has none.

        Raises:
            OSError: ENFILE when the guest holds too many nodes.
        """
        status = syscalls.status_of(descriptor.fd)
        return self.nodes.count_lookup(descriptor, status, parent, name), status

    def entry(self, node: Node, status: Statx, longest_s: int = _ANY_S) -> bytes:
        """Pack a fuse_entry_out; the guest may keep its name for `longest_s` seconds at most."""
        valid_s = self._valid_s
        shown, attr_valid_s = self._shown(node, status)
        return ENTRY_OUT.pack(node.id, 0, min(valid_s, longest_s), attr_valid_s, 0, 0) + shown

    def attr(self, node: Node, status: Statx) -> bytes:
        """Pack a fuse_attr_out."""
        shown, attr_valid_s = self._shown(node, status)
        return ATTR_OUT.pack(attr_valid_s, 0) + shown

    def statx(self, node: Node, status: Statx) -> bytes:
        """Pack a fuse_statx_out."""
        overrides = self._overrides and self._overrides(node)
        shown = self.rules.presentation.statx(status, overrides, node.ino_mask)
        return STATX_OUT.pack(self._attr_valid_s(status, overrides), 0, 0) + shown

    def creating(self, user: User) -> credentials.ActAs | credentials.Nothing:
        """Act as the guest's user while something is created, if that is allowed.

        Where the share keeps owners itself, files belong to the device host.
        """
        return credentials.NOTHING if self.rules.metadata else self.acting(user)

    def acting(self, user: User) -> credentials.ActAs | credentials.Nothing:
        """Act as the guest's user without a second check of permissions, if that is allowed."""
        if self._switches and not credentials.is_own(user.uid, user.gid):
            return credentials.ActAs(user.uid, user.gid, member=user.member)
        return credentials.NOTHING

    def checking(self, user: User) -> credentials.ActAs | credentials.Nothing:
        """Act as the guest's user, with that user's rights only, if that is allowed."""
        if self._switches and not credentials.is_own(user.uid, user.gid):
            return credentials.ActAs(user.uid, user.gid, override=False)
        return credentials.NOTHING

    def writing(self, node: Node, kill: int) -> credentials.KillSuidGid | credentials.Nothing:
        """Have writing to a file clear its set-id bits, if `kill` is not 0 or the share says so.

        Raises:
            OSError: They, or file capabilities that are kept elsewhere, cannot be cleared.
        """
        self.drop_kept_capability(node)
        if kill and self.rules.metadata:
            self.rules.metadata.drop_set_ids(node)
        if kill or self.rules.privileges.must_strip(node):
            return credentials.KillSuidGid()
        return credentials.NOTHING

    def drop_kept_capability(self, node: Node) -> None:
        """Remove file capabilities that are kept under another name: the kernel does not do it.

        Raises:
            OSError: An error of removexattr(2).
        """
        name = self.rules.xattrs.kept_capability
        if name and node.kind == stat.S_IFREG:
            remove_attribute(node, name)

    def _shown(self, node: Node, status: Statx) -> tuple[bytes, int]:
        """Pack a fuse_attr; returns it, and how long it holds."""
        overrides = self._overrides and self._overrides(node)
        flags = FUSE_ATTR_SUBMOUNT if node.is_submount else 0
        shown = self._attr(status, overrides, node.ino_mask, flags)
        return shown, self._attr_valid_s(status, overrides)

    def _attr_valid_s(self, status: Statx, overrides: Overrides | None) -> int:
        kept = overrides and overrides.mode
        return self.rules.cache.attr_valid_s(status.mode if kept is None else kept)

    def _native(self, share: Share, library: ctypes.CDLL) -> NativeMount:
        shown, cache = self.rules.presentation, self.rules.cache
        rules = fastpath.PhRules(
            ino_mask=self._ino_mask,
            uid=fastpath.KEEP_ID if shown.uid is None else shown.uid,
            gid=fastpath.KEEP_ID if shown.gid is None else shown.gid,
            keep_dir=shown.keep_dir,
            keep_file=shown.keep_file,
            valid_s=cache.valid_s,
            open_flags=cache.file_flags,
            opendir_flags=cache.directory_flags,
            read_only=self.rules.read_only,
            writeback=self.writeback,
            submounts=self._submounts,
            umask=self.applies_umask,
            acls=self.checks_acls and self.rules.shows_acls and shown.is_whole,
            to_python=self.rules.to_python,
            keeps_modes=self.rules.metadata is not None,
            no_set_ids=not self.rules.privileges.given,
            kept_capability=self.rules.xattrs.kept_capability,
        )
        return NativeMount(
            library,
            share.root,
            rules,
            share.limits,
            root_id=self.root_id,
            may_switch=self._switches,
        )


_USED: Final[dict[Resource, Callable[[Mount], int]]] = {
    Resource.NODES: lambda mount: len(mount.nodes),
    Resource.HANDLES: lambda mount: len(mount.open_files),
    Resource.DESCRIPTORS: lambda _: open_descriptors(),
    Resource.LOCK_OWNERS: lambda mount: len(mount.lock_owners),
    Resource.LOCKS: lambda mount: mount.lock_owners.locks,
    Resource.LOCK_WAITS: lambda mount: len(mount.lock_waits),
}


def totals(limits: Limits, *, lock_owners: int) -> dict[Resource, int]:
    """Return how much a mount with these limits has of each bounded resource."""
    return {
        Resource.NODES: limits.nodes,
        Resource.HANDLES: limits.handles,
        Resource.DESCRIPTORS: first_unusable(),
        Resource.LOCK_OWNERS: lock_owners,
        Resource.LOCKS: MAX_LOCKS,
        Resource.LOCK_WAITS: MAX_WAITS,
    }
