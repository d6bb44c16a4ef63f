"""One directory that a device serves, apart from any guest.

Must not know guests: what one guest has of a share is a mount.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.devicehost.accounting import Bounds
from services.devicehost.devices.fs.share.cache import CachePolicy
from services.wire.fuse import FUSE_POSIX_ACL, FUSE_SUBMOUNTS

if TYPE_CHECKING:
    import ctypes

    from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits
    from services.handshake.options import FsOptions


@dataclass(frozen=True, slots=True)
class Share:
    """One directory that is shared.

    Attributes:
        root: O_PATH descriptor of the directory.
        options: The share's options.
        limits: How many nodes and open files a guest may hold.
        library: The native fast path; None: Python serves everything.
        bounds: Of the device; they report a resource that a guest uses up.
    """

    root: Descriptor
    options: FsOptions
    limits: Limits
    library: ctypes.CDLL | None = None
    bounds: Bounds = field(default_factory=Bounds)

    def capabilities(self) -> int:
        """Return the FUSE_* that may be agreed on at INIT."""
        agreeable = CachePolicy(self.options).capabilities()
        if self.options.metadata:
            agreeable &= ~FUSE_POSIX_ACL
        return agreeable if self.options.submounts else agreeable & ~FUSE_SUBMOUNTS
