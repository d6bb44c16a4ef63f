"""What a guest kernel published, as values, and the readers of its release string.

services.rpc converts these values to and from protobuf.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from services.handshake.pool import SwiotlbPool

_RELEASE: Final = re.compile(
    r"(\d+)\.(\d+)\.(\d+)(?:\.(\d+))?(?:-(\d+)(?!\w))?.*", re.ASCII | re.DOTALL
)

_DIGITS: Final = 9
"""Most digits of one number of a version; a guest may send megabytes of them."""


@dataclass(frozen=True, slots=True, order=True)
class KernelVersion:
    """Major, minor and patch level of a kernel release, which telemetry has.

    They are too coarse for a decision: that takes a ComponentVersion.
    """

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
    return KernelVersion(*component_version(release).numbers[:3])


@dataclass(frozen=True, slots=True)
class ComponentVersion:
    """The whole version of a component, a kernel or a device host, for instance 6.18.26.3-1.

    Attributes:
        numbers: The numbers between dots; the fourth is 0 when there are three.
        revision: The number of the package; None when not given. `uname -r` does not give it.
    """

    numbers: tuple[int, int, int, int]
    revision: int | None = None

    def at_least(self, first: ComponentVersion) -> bool:
        """Return whether this is `first` or later.

        A revision that is not given is not held against either version: a kernel that reports
        6.18.26.3 counts as 6.18.26.3-1, because its package is not known to be older.
        """
        if self.numbers != first.numbers or self.revision is None or first.revision is None:
            return self.numbers >= first.numbers
        return self.revision >= first.revision


def component_version(release: str) -> ComponentVersion:
    """Parse the whole version that a `uname -r` string, or the version of a package, begins with.

    Args:
        release: For instance "6.18.26.3-microsoft-standard-WSL2" or "1.2.29-0".

    Raises:
        InvalidArgumentError: KERNEL_RELEASE_SYNTAX, naming the string.
    """
    match = _RELEASE.fullmatch(release)
    groups = match.groups() if match else ()
    if not groups or any(group is not None and len(group) > _DIGITS for group in groups):
        raise InvalidArgumentError(
            "KERNEL_RELEASE_SYNTAX",
            f"kernel release {release!r} does not start with major.minor.patch, for instance "
            "6.18.26.3-microsoft-standard",
            release=release,
        )
    major, minor, patch, build, revision = groups
    return ComponentVersion(
        (int(major), int(minor), int(patch), int(build or 0)),
        None if revision is None else int(revision),
    )


PATCHED: Final = "-porthole"
"""A part of `uname -r` of a kernel with Porthole's patch (deploy/kernel), whose number says nothing
about the pool."""


def publishes_pool(release: str, first: str) -> bool:
    """Return whether a kernel of this release publishes the pool that it reserves.

    Args:
        release: `uname -r`.
        first: The first of WSL's kernels that does.

    Raises:
        InvalidArgumentError: KERNEL_RELEASE_SYNTAX, naming the string.
    """
    version = component_version(release)
    return PATCHED in release or version.at_least(component_version(first))


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
