"""The back ends of virtio-net: how a request names one, and what one in use does.

Must not know how a TAP or a user-mode network works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from services.devicehost.devices.net.tap import Tap
from services.devicehost.devices.net.user import UserNetwork, UserSettings
from services.devicehost.devices.net.user.installation import PROGRAM

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.devicehost import fastpath
    from services.handshake.options import NetOptions


@dataclass(frozen=True, slots=True)
class NetBackend:
    """A TAP interface of the host, served by virtio-net.

    Attributes:
        tap: Name of the interface, 1 to 15 bytes; it is made when it does not exist.
        bridge: The bridge that it becomes a port of; empty: none.
    """

    tap: str
    bridge: str = ""


@dataclass(frozen=True, slots=True)
class UserBackend:
    """A user-mode network, served by virtio-net.

    Attributes:
        settings: What it is to be.
        passt: A path, or a name that is looked for on PATH.
    """

    settings: UserSettings = field(default_factory=UserSettings)
    passt: str = PROGRAM


class Wire(Protocol):
    """Where the native loop finds the frames of one direction."""

    @property
    def fd(self) -> int:
        """The descriptor, which does not block."""

    @property
    def wake_fd(self) -> int:
        """Readable when the loop is to return, because this is of no use any more; -1: never."""

    @property
    def state(self) -> fastpath.PhStream | None:
        """What is left of a stream; None: the descriptor keeps frames apart, behind headers."""


class Port(Protocol):
    """One queue of a back end: where frames come from and go to. One thread reads, one writes."""

    @property
    def is_gone(self) -> bool:
        """Whether the back end is gone, for good."""

    @property
    def read_fd(self) -> int:
        """What to sleep on after `read` has returned 0: readable when it is to be called again."""

    @property
    def write_fd(self) -> int:
        """What to sleep on after `flush` has returned False: writable when there is room."""

    def receiving(self) -> Wire | None:
        """Return where frames come from now, for the native loop; None when there is no link."""

    def sending(self) -> Wire | None:
        """Return where frames go to now, for the native loop; None when there is no link."""

    def read(self, buffer: memoryview) -> int:
        """Take one frame with its header; return its length, or 0 when none waits.

        Raises:
            OSError: The back end is gone, for good.
        """

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send one frame with its header, gathered from `parts`; after this comes `flush`.

        Raises:
            OSError: It was not taken.
        """

    def flush(self) -> bool:
        """Send what is left of the latest frame; return whether another one may be sent."""

    def fail(self, wire: Wire | None, number: int) -> None:
        """Take note that the native loop (on `wire`) or `read` has failed, with this errno."""


class OpenBackend(Protocol):
    """A back end in use.

    Attributes:
        mtu: Bytes of payload per frame.
        has_link: Whether it had a link when it was opened.
    """

    mtu: int
    has_link: bool

    @property
    def queues(self) -> Sequence[Port]:
        """One for each pair of the adapter."""

    @property
    def features(self) -> int:
        """The offloads of virtio-net that it can do, as a mask."""

    def negotiate(self, features: int) -> None:
        """Give frames as a driver takes them that negotiated `features`, and none from before."""

    def use(self, pairs: int) -> None:
        """Spread frames over the first `pairs` queues; from any thread."""

    def close(self) -> None:
        """Release the back end."""


def open_backend(
    backend: NetBackend | UserBackend, options: NetOptions, on_link: Callable[[bool, str], None]
) -> OpenBackend:
    """Open a back end.

    Args:
        backend: What to open.
        options: Of the adapter.
        on_link: Called with each change of the link, and why, on any thread, with no lock held.

    Raises:
        PortholeError: A reason of Tap or UserNetwork.
    """
    if isinstance(backend, UserBackend):
        return UserNetwork(backend.settings, backend.passt, options, on_link)
    return Tap(backend.tap, options.queues, on_link, backend.bridge)
