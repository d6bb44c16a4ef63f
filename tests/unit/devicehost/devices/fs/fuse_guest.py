"""A guest's FUSE client over plain buffers: packs requests, checks that replies are well formed."""

from __future__ import annotations

import errno
import itertools
import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from services.devicehost.virtio.chain import Chain
from services.wire import fuse
from services.wire.fuse import Attr, Dirent, EntryOut, InitOut, Opcode

if TYPE_CHECKING:
    from services.devicehost.devices.fs.protocol import FuseSession
    from services.devicehost.virtio.deferral import Deferred

OFFERED = 0xFFFF_FFFF & ~(1 << 31)
_WITHOUT_DATA = {
    Opcode.UNLINK,
    Opcode.RMDIR,
    Opcode.RENAME,
    Opcode.RENAME2,
    Opcode.RELEASE,
    Opcode.FLUSH,
    Opcode.FSYNC,
    Opcode.FALLOCATE,
    Opcode.SETLK,
    Opcode.SETLKW,
    Opcode.RELEASEDIR,
    Opcode.FSYNCDIR,
    Opcode.SETXATTR,
    Opcode.REMOVEXATTR,
    Opcode.ACCESS,
    Opcode.SYNCFS,
    Opcode.DESTROY,
}
"""Requests whose reply is a header alone."""


class FuseError(Exception):
    """The errno of a reply."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.number = number


class Entry(NamedTuple):
    nodeid: int
    attr: Attr


def assert_exactly(found: list[bytes], wanted: set[bytes]) -> None:
    """Assert each name once, and show what differs: a diff of long lists takes minutes."""
    counts = Counter(found)
    assert sorted(wanted - set(found)) == [], "missing"
    assert sorted(set(found) - wanted) == [], "unexpected"
    assert [name for name, count in counts.items() if count > 1] == [], "repeated"


class Listed(NamedTuple):
    name: bytes
    dirent: Dirent
    entry: EntryOut | None
    attr: Attr | None


def buffers(data: bytes, *cuts: int) -> list[memoryview]:
    """Cut data into writable buffers at these offsets."""
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(data)), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    return [memoryview(bytearray(piece)) for piece in pieces if piece]


def chain(readable: list[memoryview], writable: list[memoryview]) -> Chain:
    """Make a chain of buffers that come from no ring."""
    lengths = sum(map(len, readable)), sum(map(len, writable))
    return Chain(0, None, readable, writable, *lengths)  # type: ignore[arg-type]


@dataclass
class FuseGuest:
    session: FuseSession
    uid: int = 0
    gid: int = 0
    unique: int = 0
    extensions: bytes = b""

    def serve(self, readable: list[memoryview], writable: list[memoryview]) -> int | Deferred:
        """Have the device serve one request; returns the length of the reply."""
        return self.session.handle(chain(readable, writable))

    def request(self, opcode: int, nodeid: int, body: bytes, *, extra: int = 0) -> bytes:
        """Pack a request; the length in its header is `extra` bytes too large."""
        self.unique += 2
        body += self.extensions
        length = fuse.IN_HEADER.size + len(body) + extra
        ids = (self.uid, self.gid, 1)
        units = len(self.extensions) // 8
        return fuse.IN_HEADER.pack(length, opcode, self.unique, nodeid, *ids, units) + body

    def raw(self, readable: list[memoryview], writable: list[memoryview]) -> tuple[int, bytes]:
        """Serve a request and check the form of the reply; return its errno and data."""
        room = sum(map(len, writable))
        written = self.serve(readable, writable)
        assert isinstance(written, int), "it waits"
        assert 16 <= written <= room
        reply = b"".join(writable)[:written]
        length, error, unique = fuse.OUT_HEADER.unpack_from(reply)
        assert length == written
        assert unique == self.unique
        assert -4096 < error <= 0
        assert error == 0 or length == 16
        assert not b"".join(writable)[written:].strip(b"\0"), "nothing is placed beyond the reply"
        return -error, reply[16:]

    def call(
        self, opcode: int, nodeid: int = 1, body: bytes = b"", *, room: int = 70000, extra: int = 0
    ) -> bytes:
        """Make a call with the buffers that Linux uses: header, rest; header, data."""
        readable = buffers(self.request(opcode, nodeid, body, extra=extra), 40)
        error, data = self.raw(readable, buffers(bytes(16 + room), 16))
        if error:
            raise FuseError(error)
        assert opcode not in _WITHOUT_DATA or not data
        return data

    def one_way(self, opcode: int, nodeid: int, body: bytes) -> None:
        assert self.serve(buffers(self.request(opcode, nodeid, body), 40), []) == 0

    def init(
        self, *, major: int = 7, minor: int = 39, flags: int = OFFERED, flags2: int = 0
    ) -> InitOut:
        body = fuse.INIT_IN.pack(major, minor, 1 << 17, flags, flags2)
        return InitOut(*fuse.INIT_OUT.unpack(self.call(Opcode.INIT, 0, body)))

    def _entry(self, data: bytes) -> Entry:
        out = EntryOut(*fuse.ENTRY_OUT.unpack_from(data))
        return Entry(out.nodeid, Attr(*fuse.ATTR.unpack_from(data, fuse.ENTRY_OUT.size)))

    def lookup(self, name: bytes, parent: int = 1) -> Entry:
        return self._entry(self.call(Opcode.LOOKUP, parent, name + b"\0"))

    def walk(self, path: str) -> Entry:
        entry = Entry(1, self.getattr(1))
        for name in path.split("/"):
            entry = self.lookup(name.encode(), entry.nodeid)
        return entry

    def forget(self, nodeid: int, count: int = 1) -> None:
        self.one_way(Opcode.FORGET, nodeid, fuse.FORGET_IN.pack(count))

    def getattr(self, nodeid: int) -> Attr:
        data = self.call(Opcode.GETATTR, nodeid, fuse.GETATTR_IN.pack(0, 0))
        return Attr(*fuse.ATTR.unpack_from(data, fuse.ATTR_OUT.size))

    def setattr(self, nodeid: int, valid: int, **fields: int) -> Attr:
        wanted = fuse.SetattrIn(*([0] * 13))._replace(valid=valid, **fields)
        data = self.call(Opcode.SETATTR, nodeid, fuse.SETATTR_IN.pack(*wanted))
        return Attr(*fuse.ATTR.unpack_from(data, fuse.ATTR_OUT.size))

    def create(
        self, name: bytes, parent: int = 1, flags: int = 2, mode: int = 0o100644
    ) -> tuple[Entry, int]:
        data = self.call(
            Opcode.CREATE, parent, fuse.CREATE_IN.pack(flags, mode, 0, 0) + name + b"\0"
        )
        return self._entry(data), fuse.OPEN_OUT.unpack_from(data, 128)[0]

    def mkdir(self, name: bytes, parent: int = 1, mode: int = 0o755) -> Entry:
        return self._entry(
            self.call(Opcode.MKDIR, parent, fuse.MKDIR_IN.pack(mode, 0) + name + b"\0")
        )

    def mknod(self, name: bytes, mode: int, rdev: int = 0, parent: int = 1) -> Entry:
        body = fuse.MKNOD_IN.pack(mode, rdev, 0) + name + b"\0"
        return self._entry(self.call(Opcode.MKNOD, parent, body))

    def symlink(self, name: bytes, target: bytes, parent: int = 1) -> Entry:
        return self._entry(self.call(Opcode.SYMLINK, parent, name + b"\0" + target + b"\0"))

    def link(self, nodeid: int, name: bytes, parent: int = 1) -> Entry:
        body = fuse.LINK_IN.pack(nodeid) + name + b"\0"
        return self._entry(self.call(Opcode.LINK, parent, body))

    def rename(
        self, old: bytes, new: bytes, *, to: int = 1, parent: int = 1, flags: int | None = None
    ) -> None:
        names = old + b"\0" + new + b"\0"
        if flags is None:
            self.call(Opcode.RENAME, parent, fuse.RENAME_IN.pack(to) + names)
        else:
            self.call(Opcode.RENAME2, parent, fuse.RENAME2_IN.pack(to, flags) + names)

    def unlink(self, name: bytes, parent: int = 1) -> None:
        self.call(Opcode.UNLINK, parent, name + b"\0")

    def open(self, nodeid: int, flags: int = 0, open_flags: int = 0) -> int:
        data = self.call(Opcode.OPEN, nodeid, fuse.OPEN_IN.pack(flags, open_flags))
        number: int = fuse.OPEN_OUT.unpack(data)[0]
        return number

    def release(self, handle: int, opcode: int = Opcode.RELEASE) -> None:
        self.call(opcode, 1, fuse.RELEASE_IN.pack(handle, 0, 0, 0))

    def read(self, handle: int, size: int, offset: int = 0) -> bytes:
        body = fuse.READ_IN.pack(handle, offset, size, 0, 0, 0)
        return self.call(Opcode.READ, 1, body, room=max(size, 1))

    def write(
        self,
        handle: int,
        data: bytes,
        offset: int = 0,
        *,
        write_flags: int = 0,
        flags: int = os.O_RDWR,
    ) -> int:
        body = fuse.WRITE_IN.pack(handle, offset, len(data), write_flags, 0, flags) + data
        written: int = fuse.WRITE_OUT.unpack(self.call(Opcode.WRITE, 1, body))[0]
        return written

    def opendir(self, nodeid: int = 1) -> int:
        data = self.call(Opcode.OPENDIR, nodeid, fuse.OPEN_IN.pack(0, 0))
        number: int = fuse.OPEN_OUT.unpack(data)[0]
        return number

    def readdir(
        self, handle: int, cookie: int = 0, size: int = 4096, *, nodeid: int = 1, plus: bool = False
    ) -> list[Listed]:
        opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
        data = self.call(opcode, nodeid, fuse.READ_IN.pack(handle, cookie, size, 0, 0, 0))
        assert len(data) <= size
        found = []
        while data:
            entry = attr = None
            if plus:
                entry = EntryOut(*fuse.ENTRY_OUT.unpack_from(data))
                attr = Attr(*fuse.ATTR.unpack_from(data, fuse.ENTRY_OUT.size))
                data = data[128:]
            dirent = Dirent(*fuse.DIRENT.unpack_from(data))
            name = data[24 : 24 + dirent.namelen]
            assert len(name) == dirent.namelen
            found.append(Listed(name, dirent, entry, attr))
            data = data[fuse.align8(24 + dirent.namelen) :]
        return found

    def list_all(self, handle: int, size: int = 4096) -> list[bytes]:
        names: list[bytes] = []
        cookie = 0
        while page := self.readdir(handle, cookie, size):
            names += [listed.name for listed in page]
            cookie = page[-1].dirent.off
            assert len(names) < 10_000, f"the listing does not end; cookie {cookie:#x}"
        return names
