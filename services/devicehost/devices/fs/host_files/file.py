"""A file of the host, held by a descriptor that can neither read nor write it.

It stays the same file when its name is renamed, replaced or removed. Must not know shares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.descriptors import Descriptor


class HostFile:
    """One file, directory, symlink or special file of the host.

    Attributes:
        descriptor: O_PATH descriptor of it.
        fd: Its number; valid while this object is referenced.
        kind: Its S_IFMT bits; they never change.
    """

    __slots__ = ("descriptor", "fd", "kind")

    def __init__(self, descriptor: Descriptor, kind: int) -> None:
        self.descriptor: Final = descriptor
        self.fd: Final = descriptor.fd
        self.kind: Final = kind

    @property
    def path(self) -> bytes:
        """A path that leads to exactly this file; for calls that take no O_PATH descriptor."""
        return self.descriptor.path
