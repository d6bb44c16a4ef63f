"""The guest's virtio-net driver: Ethernet frames over the receive and transmit queue of one device.

Owns packet headers, receive buffers, and reassembling a frame that the device spread over several
of them. Must not know what a frame means or where it goes (tap.py joins an adapter to a network
namespace), nor rings or bounce pools.
"""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING, Final

from services.handshake.errors import DeadlineExceededError, InvalidArgumentError
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, NetConfig, NetHeader

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.simguest.virtio.interface import ProbedDevice

WANTED_FEATURES: Final = (
    virtio_net.F_MAC | virtio_net.F_MTU | virtio_net.F_STATUS | virtio_net.F_MRG_RXBUF
)
"""Device-type feature bits that this driver understands."""

DEFAULT_MTU: Final = 1500
MERGEABLE_BUFFER_BYTES: Final = 2048
"""One slot of a bounce pool; it holds a frame of the usual size, longer ones take several."""
RECEIVE_BUFFERS: Final = 128
RECEIVE_BACKLOG: Final = 1024
"""The most frames that wait for `receive`; a further one replaces the oldest."""

_VLAN_TAG_BYTES: Final = 4
_HEADER: Final = virtio_net.HEADER.pack(*NetHeader())


class NetDriver:
    """One adapter. Every method may be called from any thread.

    Attributes:
        mac: The device's MAC address, 6 bytes.
        mtu: Bytes of payload per frame.
        link_up: Whether the device had a link when it was probed.
        malformed: Number of received buffers that made no frame.
    """

    def __init__(
        self, device: ProbedDevice, on_frame: Callable[[bytes], None] | None = None
    ) -> None:
        """Read the configuration and post receive buffers.

        Args:
            device: A virtio-net device that nothing else uses.
            on_frame: Takes every frame that arrives, in order, on the receive queue's completion
                thread; it must not block on that queue. With None, frames wait for `receive`.

        Raises:
            InvalidArgumentError: NET_CONFIG when the configuration space is not one of virtio-net.
            PortholeError: An error of `DriverQueue.post_receive`.
        """
        self.mac, self.mtu, self.link_up = _read_config(device)
        self.malformed = 0
        self._backlog: queue.Queue[bytes] = queue.Queue(RECEIVE_BACKLOG)
        self._on_frame = on_frame or self._keep
        self._transmit = device.queues[virtio_net.TX_QUEUE]
        self._missing = 0
        self._parts: list[bytes] = []
        mergeable = bool(device.features & virtio_net.F_MRG_RXBUF)
        frame = HEADER_BYTES + virtio_net.ETHERNET_HEADER_BYTES + _VLAN_TAG_BYTES + self.mtu
        receive = device.queues[virtio_net.RX_QUEUE]
        receive.post_receive(
            min(RECEIVE_BUFFERS, receive.size),
            MERGEABLE_BUFFER_BYTES if mergeable else frame,
            self._take,
        )

    def send_frame(self, frame: bytes | memoryview) -> None:
        """Send one Ethernet frame; blocks while the transmit queue is full.

        Args:
            frame: 14 to 65550 bytes.

        Raises:
            InvalidArgumentError: FRAME_LENGTH.
            PortholeError: An error of `DriverQueue.submit`.
        """
        if not virtio_net.ETHERNET_HEADER_BYTES <= len(frame) <= virtio_net.MAX_FRAME_BYTES:
            raise InvalidArgumentError(
                "FRAME_LENGTH",
                f"a frame of {len(frame)} bytes; it must have "
                f"{virtio_net.ETHERNET_HEADER_BYTES} to {virtio_net.MAX_FRAME_BYTES}",
                length=len(frame),
            )
        self._transmit.submit([_HEADER, frame], [])

    def receive(self, timeout_s: float) -> bytes:
        """Take the next frame; only for a driver without `on_frame`.

        Args:
            timeout_s: How long to wait, in seconds.

        Raises:
            DeadlineExceededError: NO_FRAME.
        """
        try:
            return self._backlog.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlineExceededError(
                "NO_FRAME", f"no frame came within {timeout_s} s", timeout_s=str(timeout_s)
            ) from None

    def _take(self, data: bytes) -> None:
        """Take one receive buffer; a frame is complete when all its `num_buffers` have arrived."""
        if self._missing:
            self._parts.append(data)
            self._missing -= 1
        elif len(data) < HEADER_BYTES:
            self.malformed += 1  # the device returned the buffer unused
            return
        else:
            header = NetHeader._make(virtio_net.HEADER.unpack_from(data))
            self._parts = [data[HEADER_BYTES:]]
            self._missing = max(header.num_buffers, 1) - 1
        if self._missing:
            return
        frame = b"".join(self._parts)
        if virtio_net.ETHERNET_HEADER_BYTES <= len(frame) <= virtio_net.MAX_FRAME_BYTES:
            self._on_frame(frame)
        else:
            self.malformed += 1

    def _keep(self, frame: bytes) -> None:
        while True:
            try:
                self._backlog.put_nowait(frame)
                return
            except queue.Full:
                self._backlog.get_nowait()


def _read_config(device: ProbedDevice) -> tuple[bytes, int, bool]:
    raw = device.config()
    if len(raw) < virtio_net.CONFIG.size or not device.features & virtio_net.F_MAC:
        raise InvalidArgumentError(
            "NET_CONFIG",
            f"configuration space {raw.hex()} with features 0x{device.features:x} is not that of a "
            "virtio-net device that has a MAC address",
        )
    config = NetConfig._make(virtio_net.CONFIG.unpack_from(raw))
    mtu = config.mtu if device.features & virtio_net.F_MTU else DEFAULT_MTU
    up = not device.features & virtio_net.F_STATUS or bool(config.status & virtio_net.S_LINK_UP)
    return config.mac, mtu, up
