"""The rules of one share: what its options mean, whoever the guest is.

A mount reaches everything that differs from share to share through this one object. Must not know
requests, nodes or what a guest has open.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.attributes import Presentation
from services.devicehost.devices.fs.cache import CachePolicy

if TYPE_CHECKING:
    from services.handshake.options import FsOptions


class Rules:
    """What holds for one share.

    Attributes:
        read_only: Nothing may be changed.
        presentation: How owners and modes are shown.
        cache: What a guest may keep, and for how long.
    """

    def __init__(self, options: FsOptions) -> None:
        self.read_only: Final = options.ro
        self.presentation: Final = Presentation(options)
        self.cache: Final = CachePolicy(options)
