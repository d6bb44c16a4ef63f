"""Descriptors that live as long as they are referenced, and how many a device may hold.

Requests of one device run on several threads. If RELEASE closed a number at once, a READ under way
on another queue would go to the file that gets that number next. So a descriptor is closed when the
last reference to it is dropped: tables let go of it, requests under way keep theirs. Code that uses
a number keeps its Descriptor in a variable meanwhile; a temporary may be closed already. Must not
know files or shares.
"""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Final, NamedTuple

from services.devicehost.devices.fs.host_files.errors import refusal

WANTED_DESCRIPTORS: Final = 1 << 20
"""The most that Linux lets a process have by default (fs.nr_open)."""

MAX_NODES: Final = 1 << 21
"""Nodes that a guest may know of one share."""

MAX_ALL_NODES: Final = 3 * MAX_NODES
"""Nodes that all guests of a process may know; docs/limits.md says what memory they take. One share
may have all of MAX_NODES as long as the others have no more than that together (bound.py)."""

MAX_NODE_DESCRIPTORS: Final = 1 << 16
"""Descriptors that the nodes of one device may have, however many the process may have."""

_RESERVED: Final = 1024
"""Descriptors left to the rest of the process: sockets, guest memory, other devices' eventfds."""

_process = SimpleNamespace(one_guest=False)


class Descriptor:
    """Owns one file descriptor and closes it when the last reference goes."""

    __slots__ = ("_owned", "fd")

    def __init__(self, fd: int) -> None:
        """Take over a descriptor; close it at once if its number is not for devices.

        The kernel gives the lowest free number, so a high number means that all devices together
        have used theirs up.

        Raises:
            OSError: EMFILE.
        """
        self.fd = fd
        self._owned = True
        if fd >= first_unusable():
            raise refusal(errno.EMFILE)

    def __del__(self) -> None:
        if self._owned:
            os.close(self.fd)

    def detach(self) -> int:
        """Give up the descriptor without closing it; the caller owns the number."""
        self._owned = False
        return self.fd

    def duplicate(self) -> Descriptor:
        """Make another descriptor of the same open file."""
        return Descriptor(os.dup(self.fd))

    @property
    def path(self) -> bytes:
        """A path that leads to exactly this file, also when it was renamed or replaced."""
        return b"/proc/self/fd/%d" % self.fd


class Limits(NamedTuple):
    """How much one guest may hold of one share.

    Attributes:
        nodes: Files and directories that the guest knows.
        descriptors: How many of those have a descriptor open, unless few are left.
        handles: Files and directories that the guest has opened.
        all_nodes: As `nodes`, of all guests of this process.
        all_handles: As `handles`, of all guests of this process.
        one_guest: Whether this process serves no other guest.
    """

    nodes: int
    descriptors: int
    handles: int
    all_nodes: int = MAX_ALL_NODES
    all_handles: int = WANTED_DESCRIPTORS
    one_guest: bool = True


def serve_one_guest() -> None:
    """Have all devices of this process serve one guest, which need not leave anything to others."""
    _process.one_guest = True


def raise_descriptor_limit() -> Limits:
    """Raise this process's RLIMIT_NOFILE as far as it may, up to WANTED_DESCRIPTORS, and divide it.

    A process without CAP_SYS_RESOURCE gets no further than its hard limit.

    An open file takes two descriptors, one of its node. The last 32nd is for nodes alone.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, WANTED_DESCRIPTORS)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
        hard = wanted
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    usable = _usable(hard)
    return Limits(
        nodes=MAX_NODES,
        descriptors=max(min(usable // 2, MAX_NODE_DESCRIPTORS), 1),
        handles=(handles := max(files_below(usable) // 2, 1)),
        all_handles=handles,
        one_guest=_process.one_guest,
    )


def first_unusable() -> int:
    """Return the lowest number that is left to the rest of the process."""
    return _usable(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def crowded_from(usable: int) -> int:
    """Return the number from which on few descriptors are left: nodes give some up.

    The kernel gives the lowest free number. native/descriptors.c has the same.

    Args:
        usable: The lowest number that is left to the rest of the process.
    """
    return usable - usable // 8


def files_below(usable: int) -> int:
    """Return the lowest number that no open file may have: the last ones are left to nodes.

    Without them no other guest could look at a file. native/descriptors.c has the same.

    Args:
        usable: The lowest number that is left to the rest of the process.
    """
    return usable - usable // 32


def open_descriptors() -> int:
    """Return how many descriptors this process has."""
    listing = Path("/proc/self/fd")
    # From Linux 6.2 on it is the directory's size. Before, the listing has one more, of its own.
    return listing.stat().st_size or len(list(listing.iterdir())) - 1


def _usable(limit: int) -> int:
    """Return how many of `limit` descriptors all file system devices may use together."""
    # A device alone has the sockets and the memory of one guest.
    least = limit - limit // 16 if _process.one_guest else limit // 2
    return max(limit - _RESERVED, least)
