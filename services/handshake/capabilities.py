"""What a guest kernel published, as values, and the reader of its release string.

services.rpc converts these values to and from protobuf.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.handshake.pool import SwiotlbPool

_RELEASE: Final = re.compile(r"(\d+)\.(\d+)\.(\d+).*", re.ASCII | re.DOTALL)

_DIGITS: Final = 9
"""Most digits of one number of a version; a guest may send megabytes of them."""


@dataclass(frozen=True, slots=True, order=True)
class KernelVersion:
    """Major, minor and patch level of a kernel release."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def parse_kernel_release(release: str) -> KernelVersion:
    """Parse the version triple that a `uname -r` string begins with.

    Raises:
        InvalidArgumentError: KERNEL_RELEASE_SYNTAX, naming the string.
    """
    match = _RELEASE.fullmatch(release)
    if match is None or any(len(group) > _DIGITS for group in match.groups()):
        raise InvalidArgumentError(
            "KERNEL_RELEASE_SYNTAX",
            f"kernel release {release!r} does not start with major.minor.patch, for instance "
            "6.18.26.3-microsoft-standard",
            release=release,
        )
    return KernelVersion(*(int(group) for group in match.groups()))


@dataclass(frozen=True, slots=True)
class GuestCapabilities:
    """The report of one guest.

    Attributes:
        pool: The bounce pool; None when not published.
        kernel_release: `uname -r`; empty when not reported.
        seccomp_user_notification: Whether it is available; None when not reported.
    """

    pool: SwiotlbPool | None = None
    kernel_release: str = ""
    seccomp_user_notification: bool | None = None
