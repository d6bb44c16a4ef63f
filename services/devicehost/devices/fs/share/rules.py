"""The rules of one share: the meaning of its options.

Everything that differs from share to share is in this one object. Must not know requests, or what a
guest has looked up or opened.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.share.acls import ACLS
from services.devicehost.devices.fs.share.attributes import Presentation
from services.devicehost.devices.fs.share.cache import CachePolicy
from services.devicehost.devices.fs.share.lx_metadata import LxMetadata
from services.devicehost.devices.fs.share.privileges import Privileges
from services.devicehost.devices.fs.share.symlink_root import SymlinkRoot
from services.devicehost.devices.fs.share.xattr_names import XattrNames

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.file import HostFile
    from services.devicehost.devices.fs.share.attributes import Overrides
    from services.handshake.options import FsOptions


class Rules:
    """The rules of one share.

    Attributes:
        read_only: Whether every change is refused.
        presentation: How owners and modes are shown.
        cache: What a guest may keep, and for how long.
        privileges: What may be left on the host that has effect there.
        xattrs: The names of extended attributes.
        metadata: Keeps the owners and modes that the guest sets; None: the host's file has them.
        links: Shows absolute symlinks; None: the guest sees the host's targets.
        exact_names: Whether an entry is found under its own spelling alone.
        case_flags: Whether a directory's case-folding flag is shown, and may be set.
        shows_acls: Whether a file has the ACL that the host's has.
        to_python: Whether Python serves names and attributes, because the native fast path does
            not know the options that change them.
    """

    def __init__(self, options: FsOptions) -> None:
        """Take the options of the share."""
        self.read_only: Final = options.ro
        self.presentation: Final = Presentation(options)
        self.cache: Final = CachePolicy(options)
        self.privileges: Final = Privileges(options)
        self.xattrs: Final = XattrNames(options)
        self.metadata: Final = (
            LxMetadata(self.presentation, set_ids=options.suid) if options.metadata else None
        )
        self.links: Final = SymlinkRoot(options.symlinkroot) if options.symlinkroot else None
        self.exact_names: Final = options.case == "force"
        self.case_flags: Final = options.case == "dir"
        # With metadata the guest's modes are not the host's.
        self.shows_acls: Final = not options.metadata and all(map(self.xattrs.passes, ACLS))
        self.to_python: Final = bool(self.metadata or self.links or self.exact_names)

    def overrides(self, file: HostFile) -> Overrides | None:
        """Return what is shown of a file instead of its status; None unless `to_python`."""
        if file.kind == stat.S_IFLNK and self.links is not None:
            return self.links.overrides(file)
        kept = self.kept(file)
        return kept.overrides(file) if kept else None

    def kept(self, file: HostFile) -> LxMetadata | None:
        """Return what keeps owner and mode of a file; None: the host's file has them."""
        return self.metadata if self.metadata and self.metadata.keeps(file) else None
