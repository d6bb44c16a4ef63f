"""A guest whose requests go to the native fast path first, like those of a native loop."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files import umask
from services.wire import fuse
from tests.unit.devicehost.devices.fs.fuse_guest import FuseGuest

if TYPE_CHECKING:
    from services.devicehost.devices.fs.mount.native_mount import NativeMount
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
        self.worker = self.library.ph_worker_new(umask.is_private())

    def __del__(self) -> None:
        self.library.ph_worker_delete(self.worker)

    def serve(self, readable: list[memoryview], writable: list[memoryview]) -> int | Deferred:
        mount = self._mount(b"".join(readable))
        if mount is not None:
            chain = fastpath.PhChain(
                readable=_vectors(readable),
                writable=_vectors(writable),
                readable_count=len(readable),
                writable_count=len(writable),
                readable_bytes=sum(map(len, readable)),
                writable_bytes=sum(map(len, writable)),
            )
            written: int = self.library.ph_fuse_serve(
                self.worker, mount.pointer, ctypes.byref(chain)
            )
            if written != fastpath.PYTHON:
                self.served += 1
                return written
        return super().serve(readable, writable)

    def _mount(self, request: bytes) -> NativeMount | None:
        """Return the mount that the native loop finds by the node of a request."""
        mount = self.session.mount
        if mount is None or len(request) < fuse.IN_HEADER.size:
            return None
        try:
            return mount.find(fuse.IN_HEADER.unpack_from(request)[3]).native
        except OSError:
            return None


def _vectors(pieces: list[memoryview]) -> ctypes.Array[fastpath.IoVec]:
    return (fastpath.IoVec * max(len(pieces), 1))(
        *(
            fastpath.IoVec(ctypes.addressof(ctypes.c_char.from_buffer(piece)), len(piece))
            for piece in pieces
        )
    )
