"""The back ends of virtio-net: a TAP interface, or a user-mode network.

Owns /dev/net/tun, its ioctls (linux/if_tun.h) and the meaning of their failures; the user-mode
network is in `user`. Addresses, routes and the up flag of a TAP belong to its maker. Must not know
queues.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from services.devicehost.devices.net.user import UserNetwork, UserSettings
from services.devicehost.devices.net.user.installation import PROGRAM
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.wire.virtio_net import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.devicehost import fastpath
    from services.handshake.errors import PortholeError
    from services.handshake.options import NetOptions

TUN_DEVICE: Final = "/dev/net/tun"
MAX_NAME_BYTES: Final = 15
"""IFNAMSIZ (linux/if.h) without the terminating NUL."""

# linux/if_tun.h and linux/sockios.h.
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_TUNSETVNETLE: Final = 0x400454DC
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_SIOCGIFMTU: Final = 0x8921
_IFREQ_FLAGS: Final = struct.Struct("16sH22x")
_IFREQ_INT: Final = struct.Struct("16si20x")
_INT: Final = struct.Struct("i")

_NAME: Final = re.compile(rb"[^\s/:%\0]+")


@dataclass(frozen=True, slots=True)
class NetBackend:
    """A TAP interface of the host, served by virtio-net.

    Attributes:
        tap: Name of the interface, 1 to 15 bytes; it is made when it does not exist.
    """

    tap: str


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


class OpenBackend(Protocol):
    """A back end in use: where frames come from and go to. One thread reads, and one writes.

    Attributes:
        mtu: Bytes of payload per frame.
    """

    mtu: int

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
    return Tap(backend.tap)


class Tap:
    """An open TAP interface. `close` may be called from any thread, and more than once.

    Attributes:
        name: Name of the interface.
        fd: Non-blocking descriptor; readable when a frame waits.
        mtu: Bytes of payload per frame, as it was when the interface was opened.
        state: None: it is no stream.
        wake_fd: -1: it is of use until it is closed.
    """

    state = None
    wake_fd = -1

    def __init__(self, name: str) -> None:
        """Open the interface; the kernel makes it when it does not exist.

        Args:
            name: 1 to 15 bytes.

        Raises:
            InvalidArgumentError: TAP_NAME.
            FailedPreconditionError: TAP_UNAVAILABLE (no /dev/net/tun), TAP_NOT_PERMITTED, TAP_BUSY,
                or TAP_NOT_A_TAP when an interface of that name is something else.
        """
        _check_name(name)
        self.name = name
        try:
            self.fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise _refusal(name, error) from error
        try:
            self._configure()
        except OSError as error:
            self.close()
            raise _refusal(name, error) from error

    def _configure(self) -> None:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(self.fd, _TUNSETIFF, _IFREQ_FLAGS.pack(self.name.encode(), flags))
        fcntl.ioctl(self.fd, _TUNSETVNETHDRSZ, _INT.pack(HEADER_BYTES))
        fcntl.ioctl(self.fd, _TUNSETVNETLE, _INT.pack(1))
        # No offload is negotiated with the guest, so the kernel has to segment and checksum.
        fcntl.ioctl(self.fd, _TUNSETOFFLOAD, 0)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = _IFREQ_INT.pack(self.name.encode(), 0)
            self.mtu: int = _IFREQ_INT.unpack(fcntl.ioctl(any_socket, _SIOCGIFMTU, request))[1]

    def receiving(self) -> Tap:
        """Return this: the kernel keeps frames apart."""
        return self

    def sending(self) -> Tap:
        """Return this."""
        return self

    @property
    def read_fd(self) -> int:
        """The descriptor: readable when a frame waits."""
        return self.fd

    @property
    def write_fd(self) -> int:
        """The descriptor."""
        return self.fd

    def flush(self) -> bool:
        """Return True: the kernel takes all of a frame, or nothing."""
        return True

    def read(self, buffer: bytearray | memoryview) -> int:
        """Take one frame with its header; the kernel cuts off a frame that is longer than `buffer`.

        Returns:
            Bytes written to `buffer`; 0 when no frame waits.

        Raises:
            OSError: The interface is gone (EBADFD) or the device is closed (EBADF).
        """
        try:
            return os.readv(self.fd, [buffer])
        except BlockingIOError:
            return 0

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send one frame with its header, gathered from `parts`.

        Raises:
            OSError: The kernel did not take it: EIO when the interface is down, EINVAL when the
                parts are no frame, EAGAIN or ENOBUFS without room, EBADFD when the interface is
                gone.
        """
        os.writev(self.fd, parts)

    def close(self) -> None:
        """Let go of the interface; it disappears unless it was made persistent."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def _check_name(name: str) -> None:
    raw = name.encode()
    if len(raw) > MAX_NAME_BYTES or not _NAME.fullmatch(raw) or name in (".", ".."):
        raise InvalidArgumentError(
            "TAP_NAME",
            f"TAP interface name {name!r} must have 1 to {MAX_NAME_BYTES} bytes, without '/', ':', "
            "'%' and white space",
            tap=name,
            bound=MAX_NAME_BYTES,
        )


def _refusal(name: str, error: OSError) -> PortholeError:
    reason, text = _REFUSALS.get(
        error.errno or 0, ("TAP_UNAVAILABLE", f"cannot be opened: {error.strerror}")
    )
    return FailedPreconditionError(reason, f"TAP interface {name}: {text}", tap=name)


_NO_TUN: Final = (
    "TAP_UNAVAILABLE",
    f"{TUN_DEVICE} does not exist; load the tun module, or pass the device into the container",
)
_NO_RIGHTS: Final = (
    "TAP_NOT_PERMITTED",
    f"opening it needs read and write access to {TUN_DEVICE} and CAP_NET_ADMIN, or an existing "
    "interface that belongs to this user (ip tuntap add mode tap user <name>)",
)
_REFUSALS: Final[dict[int, tuple[str, str]]] = {
    errno.ENOENT: _NO_TUN,
    errno.ENODEV: _NO_TUN,
    errno.ENXIO: _NO_TUN,
    errno.EPERM: _NO_RIGHTS,
    errno.EACCES: _NO_RIGHTS,
    errno.EBUSY: ("TAP_BUSY", "another process has it open; close that one or use another name"),
    errno.EINVAL: (
        "TAP_NOT_A_TAP",
        "the interface of that name is not a TAP with one queue; use another name",
    ),
}
