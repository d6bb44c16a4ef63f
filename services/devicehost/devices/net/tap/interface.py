"""A TAP interface in use, with a queue for each pair of the adapter.

Owns /dev/net/tun, its ioctls (linux/if_tun.h), its offloads, and the meaning of its failures.
Addresses, routes and the up flag of the interface belong to its maker. Must not know virtqueues.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import threading
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.net.tap import bridge as bridges
from services.devicehost.devices.net.tap.carrier import CarrierWatch
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.wire import tun, virtio_net
from services.wire.virtio_net import HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.handshake.errors import PortholeError

TUN_DEVICE: Final = "/dev/net/tun"
MAX_NAME_BYTES: Final = 15
"""IFNAMSIZ (linux/if.h) without the terminating NUL."""

_SIOCGIFMTU: Final = 0x8921
"""linux/sockios.h."""

_OFFLOADS: Final = (
    virtio_net.F_CSUM
    | virtio_net.F_HOST_TSO4
    | virtio_net.F_HOST_TSO6
    | virtio_net.F_GUEST_CSUM
    | virtio_net.F_GUEST_TSO4
    | virtio_net.F_GUEST_TSO6
    | virtio_net.F_CTRL_GUEST_OFFLOADS
)
_USO: Final = virtio_net.F_HOST_USO | virtio_net.F_GUEST_USO4 | virtio_net.F_GUEST_USO6

_STALE_FRAMES: Final = 4096
"""Most frames that are dropped when a driver begins; more than a TAP's queue holds by default."""

_GONE: Final = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV})

_LOG = logging.getLogger(__name__)

_NAME: Final = re.compile(rb"[^\s/:%\0]+")


class TapQueue:
    """One queue of the interface: frames behind headers. One thread reads and one writes.

    Attributes:
        fd: Non-blocking descriptor; readable when a frame waits.
        is_gone: Whether the interface was seen to be gone.
        state: None: it is no stream.
        wake_fd: -1: it is of use until it is closed.
    """

    state = None
    wake_fd = -1

    def __init__(self, fd: int, on_failure: Callable[[int], None]) -> None:
        """Take over a queue.

        Args:
            fd: Its descriptor.
            on_failure: Called with the errno of a failure, on any thread.
        """
        self.fd = fd
        self.is_gone = False
        self._on_failure = on_failure

    def receiving(self) -> TapQueue:
        """Return this: the kernel keeps frames apart."""
        return self

    def sending(self) -> TapQueue:
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

    def flush(self) -> bool:
        """Return True: the kernel takes all of a frame, or nothing."""
        return True

    def fail(self, _wire: object, number: int) -> None:
        """Take note of a failure; after some the interface is gone."""
        self.is_gone |= number in _GONE
        self._on_failure(number)

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class Tap:
    """An open TAP interface. `close` may be called from any thread, and more than once.

    Attributes:
        name: Name of the interface.
        queues: One for each pair; only the first one gets frames until `use` is called.
        mtu: Bytes of payload per frame, as it was when the interface was opened.
        has_link: Whether it was up, and had a carrier, when it was opened.
        features: The offloads of virtio-net that it can do, as a mask.
    """

    def __init__(
        self,
        name: str,
        pairs: int = 1,
        on_link: Callable[[bool, str], None] = lambda _up, _why: None,
        bridge: str = "",
    ) -> None:
        """Open the interface; the kernel makes it when it does not exist.

        Args:
            name: 1 to 15 bytes.
            pairs: Queues to open. An interface that exists must have been made for several
                (IFF_MULTI_QUEUE) if this is more than 1, and for one otherwise.
            on_link: Called when it is set up or down, or is gone, which is for good: whether it has
                a carrier now, and why. On any thread, with no lock held.
            bridge: A bridge that the interface is a port of until it is closed, and is set up for;
                empty: none.

        Raises:
            InvalidArgumentError: TAP_NAME, also for the name of a bridge.
            FailedPreconditionError: TAP_UNAVAILABLE (no /dev/net/tun), TAP_NOT_PERMITTED, TAP_BUSY,
                or TAP_NOT_A_TAP when an interface of that name is something else;
                BRIDGE_UNAVAILABLE, with a bridge.
        """
        for each in (name, *([bridge] if bridge else [])):
            _check_name(each)
        self.name = name
        self.queues: tuple[TapQueue, ...] = ()
        self._on_link = on_link
        self._lock = threading.Lock()
        self._used = pairs
        self._is_gone = False
        self._carrier: CarrierWatch | None = None
        self._bridge = ""
        try:
            for _ in range(pairs):
                fd = os.open(TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
                self.queues += (TapQueue(fd, self._failed),)
                self._configure(fd, pairs)
            if bridge:
                bridges.join(name, bridge)
                self._bridge = bridge
            self.features = self._probe()
            self.mtu = self._read_mtu()
            self._carrier = CarrierWatch(name, self._carrier_changed)
            self.has_link = self._carrier.is_up
        except OSError as error:
            self.close()
            raise _refusal(name, error) from error
        except BaseException:
            self.close()
            raise

    def negotiate(self, features: int) -> None:
        """Set the interface to what a driver takes; frames for the one before it are dropped.

        Args:
            features: What was negotiated, as a mask; 0: no offload.
        """
        scrap = bytearray(HEADER_BYTES + virtio_net.MAX_FRAME_BYTES)
        with contextlib.suppress(OSError):  # it is gone, which its queues find out
            fcntl.ioctl(self.queues[0].fd, tun.TUNSETOFFLOAD, tun.offloads_to_guest(features))
            for each in self.queues:
                for _ in range(_STALE_FRAMES):
                    if not each.read(scrap):
                        break

    def use(self, pairs: int) -> None:
        """Have the kernel spread frames over the first queues; from any thread.

        Args:
            pairs: How many, from 1 on.
        """
        with self._lock, contextlib.suppress(OSError):  # it is gone, which its queues find out
            for number, each in enumerate(self.queues):
                is_used, was_used = number < pairs, number < self._used
                if is_used != was_used:
                    flag = tun.IFF_ATTACH_QUEUE if is_used else tun.IFF_DETACH_QUEUE
                    fcntl.ioctl(each.fd, tun.TUNSETQUEUE, tun.IFREQ_FLAGS.pack(b"", flag))
            self._used = pairs

    def close(self) -> None:
        """Let go of the interface; it disappears unless it was made persistent."""
        with self._lock:
            carrier, self._carrier = self._carrier, None
            bridge, self._bridge = self._bridge, ""
        if carrier is not None:
            carrier.close()
        if bridge:
            bridges.leave(self.name, bridge)
        for each in self.queues:
            each.close()

    def _failed(self, number: int) -> None:
        why = os.strerror(number)
        _LOG.warning("TAP %s: %s", self.name, why)
        with self._lock:
            is_new = number in _GONE and not self._is_gone
            self._is_gone |= is_new
        if is_new:
            self._on_link(False, f"its TAP is gone: {why}")

    def _carrier_changed(self, is_up: bool) -> None:
        with self._lock:
            if self._is_gone:
                return
        self._on_link(is_up, f"its TAP is {'up' if is_up else 'down, or has no carrier'}")

    def _configure(self, fd: int, pairs: int) -> None:
        flags = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
        if pairs > 1:
            flags |= tun.IFF_MULTI_QUEUE
        fcntl.ioctl(fd, tun.TUNSETIFF, tun.IFREQ_FLAGS.pack(self.name.encode(), flags))
        fcntl.ioctl(fd, tun.TUNSETVNETHDRSZ, tun.INT.pack(HEADER_BYTES))
        fcntl.ioctl(fd, tun.TUNSETVNETLE, tun.INT.pack(1))

    def _probe(self) -> int:
        """Return what the kernel can do, and leave the interface without offloads."""
        fd = self.queues[0].fd
        features = _OFFLOADS
        try:
            fcntl.ioctl(fd, tun.TUNSETOFFLOAD, tun.F_CSUM | tun.USO)
            features |= _USO
        except OSError as error:
            if error.errno != errno.EINVAL:  # before Linux 6.2
                raise
        fcntl.ioctl(fd, tun.TUNSETOFFLOAD, 0)
        return features

    def _read_mtu(self) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            request = tun.IFREQ_INT.pack(self.name.encode(), 0)
            mtu: int = tun.IFREQ_INT.unpack(fcntl.ioctl(any_socket, _SIOCGIFMTU, request))[1]
            return mtu


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
        "the interface of that name is not a TAP, or was made for another number of queues: only "
        "one with IFF_MULTI_QUEUE has several (ip tuntap add mode tap multi_queue <name>); use "
        "another name",
    ),
}
