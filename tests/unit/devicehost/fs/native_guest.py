"""A guest whose requests go to the native fast path first, as the native loop has it."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.devicehost import fastpath
from services.wire import fuse
from tests.unit.devicehost.fs.fuse_guest import FuseGuest

if TYPE_CHECKING:
    from services.devicehost.devices.fs.native_tables import NativeTables
    from services.devicehost.virtio.deferral import Deferred


@dataclass
class NativeGuest(FuseGuest):
    """Attributes:
    served: How many requests the native fast path has served.
    """

    served: int = 0
    worker: int = field(init=False)

    def __post_init__(self) -> None:
        assert fastpath.library is not None
        self.library = fastpath.library
        self.worker = self.library.ph_worker_new()

    def __del__(self) -> None:
        self.library.ph_worker_delete(self.worker)

    def serve(self, readable: list[memoryview], writable: list[memoryview]) -> int | Deferred:
        tables = self._tables(b"".join(readable))
        if tables is not None:
            chain = fastpath.Chain(
                readable=_vectors(readable),
                writable=_vectors(writable),
                readable_count=len(readable),
                writable_count=len(writable),
                readable_bytes=sum(map(len, readable)),
                writable_bytes=sum(map(len, writable)),
            )
            written: int = self.library.ph_fuse_serve(
                self.worker, tables.pointer, ctypes.byref(chain)
            )
            if written != fastpath.COLD:
                self.served += 1
                return written
        return super().serve(readable, writable)

    def _tables(self, request: bytes) -> NativeTables | None:
        """Tell what the native loop finds by the node that a request is about."""
        mount = self.session.mount
        if mount is None or len(request) < fuse.IN_HEADER.size:
            return None
        try:
            return mount.find(fuse.IN_HEADER.unpack_from(request)[3]).tables
        except OSError:
            return None


def _vectors(pieces: list[memoryview]) -> ctypes.Array[fastpath.IoVec]:
    return (fastpath.IoVec * max(len(pieces), 1))(
        *(
            fastpath.IoVec(ctypes.addressof(ctypes.c_char.from_buffer(piece)), len(piece))
            for piece in pieces
        )
    )
