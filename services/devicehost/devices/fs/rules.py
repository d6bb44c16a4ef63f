"""The rules of one share: what its options mean, whoever the guest is.

A mount reaches everything that differs from share to share through this one object. Must not know
requests, nodes or what a guest has open.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.attributes import Presentation
from services.devicehost.devices.fs.cache import CachePolicy
from services.devicehost.devices.fs.lx_metadata import LxMetadata
from services.devicehost.devices.fs.symlink_root import SymlinkRoot

if TYPE_CHECKING:
    from services.devicehost.devices.fs.attributes import Overrides
    from services.devicehost.devices.fs.nodes import Node
    from services.handshake.options import FsOptions


class Rules:
    """What holds for one share.

    Attributes:
        read_only: Nothing may be changed.
        presentation: How owners and modes are shown.
        cache: What a guest may keep, and for how long.
        metadata: Where owners and modes that the guest sets are kept; None: with the host's file.
        links: What the guest sees of absolute symlinks; None: what the host has.
        exact_names: Whether an entry is found under its own spelling alone.
        case_flags: Whether a directory's case-folding flag is shown, and may be set.
        cold: Whether names and attributes need more than the native fast path does.
    """

    def __init__(self, options: FsOptions, ino_mask: int = 0) -> None:
        """Take the options; `ino_mask` as of Presentation."""
        self.read_only: Final = options.ro
        self.presentation: Final = Presentation(options, ino_mask)
        self.cache: Final = CachePolicy(options)
        self.metadata: Final = LxMetadata(self.presentation) if options.metadata else None
        self.links: Final = SymlinkRoot(options.symlinkroot) if options.symlinkroot else None
        self.exact_names: Final = options.case == "force"
        self.case_flags: Final = options.case == "dir"
        self.cold: Final = bool(self.metadata or self.links or self.exact_names)

    def overrides(self, node: Node) -> Overrides | None:
        """Tell what is shown of a file instead of its status; of use if `cold`."""
        if node.kind == stat.S_IFLNK and self.links is not None:
            return self.links.overrides(node)
        kept = self.kept(node)
        return kept.overrides(node) if kept else None

    def kept(self, node: Node) -> LxMetadata | None:
        """Tell where owner and mode of a file are kept; None: with the host's file."""
        return self.metadata if self.metadata and self.metadata.keeps(node) else None
