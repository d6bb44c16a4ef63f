"""Names of extended attributes: those of a guest, and those of the host's files (`xattr=`).

Owns what becomes of a name that the rules of the share refuse, and of the names that no guest may
use under any rules. Must not know requests.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files.errors import refusal
from services.devicehost.devices.fs.share.lx_metadata import HIDDEN
from services.devicehost.devices.fs.share.privileges import CAPABILITY
from services.devicehost.fastpath import XATTR_NAME_MAX
from services.handshake.xattr_map import Refusal

if TYPE_CHECKING:
    from services.handshake.options import FsOptions

_HIDDEN: Final = frozenset(name.upper() for name in HIDDEN)
_ERRORS: Final = {Refusal.DENIED: errno.EPERM, Refusal.UNSUPPORTED: errno.EOPNOTSUPP}


class XattrNames:
    """The names of one share.

    Attributes:
        kept_capability: The name on the host of a guest's file capabilities, if it is another than
            theirs. The host's kernel does not know that a change of contents or owner ends what is
            in it.
    """

    def __init__(self, options: FsOptions) -> None:
        """Take the options of the share."""
        self._rules: Final = options.xattr
        kept = self._rules.host_name(CAPABILITY)
        if isinstance(kept, Refusal) or kept == CAPABILITY or len(kept) > XATTR_NAME_MAX:
            kept = b""
        self.kept_capability: Final = kept

    def on_host(self, name: bytes, hidden: int = errno.ENODATA) -> bytes:
        """Return the host's name of a guest's.

        Args:
            name: The guest's.
            hidden: The errno for a name that leads to one that no guest may use.

        Raises:
            OSError: EPERM or EOPNOTSUPP, as the rules say; `hidden`.
        """
        found = self._rules.host_name(name)
        if isinstance(found, Refusal):
            raise refusal(_ERRORS[found])
        if _is_hidden(found):
            raise refusal(hidden)
        return found

    def passes(self, name: bytes) -> bool:
        """Return whether a name is the same for the guest and on the host."""
        return self._rules.host_name(name) == name

    def shown(self, path: bytes) -> list[bytes]:
        """Return the names of a file that a guest sees.

        Raises:
            OSError: An error of listxattr(2).
        """
        hosts = map(os.fsencode, os.listxattr(path))
        names = (self._rules.guest_name(name) for name in hosts if not _is_hidden(name))
        return [name for name in names if name is not None]


def _is_hidden(name: bytes) -> bool:
    # Some file systems do not tell upper from lower case in these names.
    return name.upper() in _HIDDEN
