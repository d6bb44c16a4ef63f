"""Decoders for the replies to the driver's requests.

Owns the checks of a reply: lengths, counts and names. A malformed one raises OSError EIO. Must not
know how requests are made or sent.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from services.simguest.fs.driver import malformed_reply, unpack
from services.wire import fuse
from services.wire.fuse import Attr, Dirent, EntryOut, Opcode, StatfsOut

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRY_BYTES: Final = fuse.ENTRY_OUT.size + fuse.ATTR.size
ATTR_BYTES: Final = fuse.ATTR_OUT.size + fuse.ATTR.size


class Node(NamedTuple):
    """A node of the device, and its attributes."""

    nodeid: int
    attr: Attr


class DirectoryEntry(NamedTuple):
    """One name in a directory; `node` is None when no lookup was counted, as for "." and ".."."""

    name: bytes
    cookie: int
    node: Node | None


def entry(body: bytes) -> Node:
    """Read an entry; a negative one (no such name, may be cached) raises FileNotFoundError."""
    if len(body) != ENTRY_BYTES:
        raise malformed_reply(Opcode.LOOKUP, f"{len(body)} bytes instead of {ENTRY_BYTES}")
    node = _node(body, 0)
    if node.nodeid == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return node


def created(body: bytes) -> tuple[Node, int]:
    """Read the reply to CREATE: node and handle."""
    return entry(body[:ENTRY_BYTES]), handle(body[ENTRY_BYTES:])


def handle(body: bytes) -> int:
    """Read the reply to OPEN or OPENDIR."""
    return int(unpack(Opcode.OPEN, fuse.OPEN_OUT, body)[0])


def attr(body: bytes) -> Attr:
    """Read the reply to GETATTR or SETATTR."""
    return Attr._make(unpack(Opcode.GETATTR, fuse.ATTR, body[fuse.ATTR_OUT.size :]))


def statfs(body: bytes) -> StatfsOut:
    """Read the reply to STATFS."""
    return StatfsOut._make(unpack(Opcode.STATFS, fuse.STATFS_OUT, body))


def xattr_size(body: bytes) -> int:
    """Read the reply to a GETXATTR or LISTXATTR that asks for the size."""
    return int(unpack(Opcode.GETXATTR, fuse.GETXATTR_OUT, body)[0])


def written(asked: int, body: bytes) -> int:
    """Read the reply to WRITE: 1 to `asked` bytes."""
    (count,) = unpack(Opcode.WRITE, fuse.WRITE_OUT, body)
    if not 0 < count <= asked:
        raise malformed_reply(Opcode.WRITE, f"{count} of {asked} bytes written")
    return int(count)


def names(body: bytes) -> list[tuple[bytes, Dirent]]:
    """Read the reply to READDIR."""
    return [(name, dirent) for name, dirent, _ in _dirents(body, 0)]


def entries(body: bytes) -> list[DirectoryEntry]:
    """Read the reply to READDIRPLUS."""
    found = []
    for name, dirent, start in _dirents(body, ENTRY_BYTES):
        node = _node(body, start)
        counted = node.nodeid != 0 and name not in (b".", b"..")
        found.append(DirectoryEntry(name, dirent.off, node if counted else None))
    return found


def _node(body: bytes, start: int) -> Node:
    nodeid = EntryOut._make(fuse.ENTRY_OUT.unpack_from(body, start)).nodeid
    return Node(nodeid, Attr._make(fuse.ATTR.unpack_from(body, start + fuse.ENTRY_OUT.size)))


def _dirents(body: bytes, before: int) -> Iterator[tuple[bytes, Dirent, int]]:
    # Each record is `before` bytes of entry, a dirent and the name, padded to 8 bytes.
    start = 0
    while start < len(body):
        at = start + before
        end = at + fuse.DIRENT.size
        if end > len(body):
            raise malformed_reply(Opcode.READDIR, f"record cut off at byte {start}")
        dirent = Dirent._make(fuse.DIRENT.unpack_from(body, at))
        name = body[end : end + dirent.namelen]
        if len(name) != dirent.namelen or not name or b"/" in name or b"\0" in name:
            raise malformed_reply(Opcode.READDIR, f"name {name!r} at byte {start}")
        yield name, dirent, start
        start += before + fuse.align8(fuse.DIRENT.size + dirent.namelen)
