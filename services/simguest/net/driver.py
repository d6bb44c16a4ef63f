"""The guest's virtio-net driver: packets over the queues of one device.

A packet is an Ethernet frame behind its header (virtio 1.2, section 5.1.6): the header says which
checksum is to be completed, and how a frame of up to 64 KiB is to be divided. Owns receive buffers,
reassembling a packet that the device spread over several of them, and the commands of the control
queue. Must not know what a frame means or where it goes (tap.py joins an adapter to a network
namespace), nor rings or bounce pools.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING, Final

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
)
from services.wire import virtio_net
from services.wire.virtio_net import HEADER_BYTES, NetConfig, NetHeader

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.simguest.virtio.interface import DriverQueue, ReportingDevice

WANTED_FEATURES: Final = (
    virtio_net.F_MAC
    | virtio_net.F_MTU
    | virtio_net.F_STATUS
    | virtio_net.F_MRG_RXBUF
    | virtio_net.F_CSUM
    | virtio_net.F_HOST_TSO4
    | virtio_net.F_HOST_TSO6
    | virtio_net.F_HOST_USO
    | virtio_net.GUEST_OFFLOADS
    | virtio_net.F_CTRL_VQ
    | virtio_net.F_CTRL_GUEST_OFFLOADS
    | virtio_net.F_MQ
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
        link_up: Whether the device has a link.
        features: What was negotiated, as a mask.
        pairs: Pairs of a receive and a transmit queue, all of which are used.
    """

    def __init__(
        self, device: ReportingDevice, on_packet: Callable[[int, bytes], None] | None = None
    ) -> None:
        """Read the configuration, post receive buffers, and use all pairs.

        Args:
            device: A virtio-net device that nothing else uses.
            on_packet: Takes the pair's number and each packet that arrives, in the order of the
                pair, on the completion thread of its receive queue, on which it must not block.
                With None, whole frames wait for `receive`, and the device is told to divide and
                checksum them.

        Raises:
            InvalidArgumentError: NET_CONFIG when the configuration space is not one of virtio-net.
            FailedPreconditionError: NET_COMMAND when the device refuses a command.
            PortholeError: An error of `DriverQueue.post_receive` or `transact`.
        """
        self.features = device.features
        self._device = device
        self._link = threading.Lock()
        self._on_link: Callable[[bool], None] = lambda _: None
        with self._link:
            if self.features & virtio_net.F_STATUS:
                device.watch_config(self._config_changed)  # before the configuration is read
            config = _read_config(device)
            self.link_up = self._has_link(config)
        self.mac = config.mac
        self.mtu = config.mtu if self.features & virtio_net.F_MTU else DEFAULT_MTU
        self.pairs = config.max_virtqueue_pairs if self.features & virtio_net.F_MQ else 1
        self._backlog: queue.Queue[bytes] = queue.Queue(RECEIVE_BACKLOG)
        self._receivers: list[_Receiver] = []
        if on_packet is None and self.features & virtio_net.F_CTRL_GUEST_OFFLOADS:
            command = virtio_net.CTRL_GUEST_OFFLOADS, virtio_net.CTRL_GUEST_OFFLOADS_SET
            self._command(command, bytes(8))
        for pair in range(self.pairs):
            receiver = _Receiver(pair, on_packet or self._keep)
            self._receivers.append(receiver)
            receive = device.queues[2 * pair + virtio_net.RX_QUEUE]
            receive.post_receive(
                min(RECEIVE_BUFFERS, receive.size), self._buffer_bytes(), receiver.take
            )
        if self.pairs > 1:
            command = virtio_net.CTRL_MQ, virtio_net.CTRL_MQ_VQ_PAIRS_SET
            self._command(command, self.pairs.to_bytes(2, "little"))

    @property
    def malformed(self) -> int:
        """Number of received buffers that made no packet."""
        return sum(receiver.malformed for receiver in self._receivers)

    def watch_link(self, on_link: Callable[[bool], None]) -> None:
        """Have a function called with the link as it is now, and with each change of it.

        Args:
            on_link: Called with whether there is a link, one call at a time, in the order of the
                changes; on this thread, and then on one that may ask the device and nothing else.
        """
        with self._link:
            self._on_link = on_link
            on_link(self.link_up)

    def send_frame(self, frame: bytes | memoryview) -> None:
        """Send one Ethernet frame that is complete; blocks while the transmit queue is full.

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
        self._transmit(0).submit([_HEADER, frame], [])

    def send_packet(self, pair: int, packet: memoryview) -> None:
        """Send one packet on a pair; blocks while its transmit queue is full.

        Args:
            pair: 0 up to `pairs`.
            packet: A header that asks for what was negotiated, and a frame of 14 to 65550 bytes.

        Raises:
            PortholeError: An error of `DriverQueue.submit`.
        """
        self._transmit(pair).submit([packet], [])

    def receive(self, timeout_s: float) -> bytes:
        """Take the next frame; only for a driver without `on_packet`.

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

    def _has_link(self, config: NetConfig) -> bool:
        return not self.features & virtio_net.F_STATUS or bool(config.status & virtio_net.S_LINK_UP)

    def _config_changed(self) -> None:
        with self._link, contextlib.suppress(PortholeError):  # it is gone, which its queues report
            is_up = self._has_link(_read_config(self._device))
            if is_up != self.link_up:
                self.link_up = is_up
                self._on_link(is_up)

    def _transmit(self, pair: int) -> DriverQueue:
        return self._device.queues[2 * pair + virtio_net.TX_QUEUE]

    def _buffer_bytes(self) -> int:
        """Return how long each receive buffer is (section 5.1.6.3.1)."""
        if self.features & virtio_net.F_MRG_RXBUF:
            return MERGEABLE_BUFFER_BYTES
        if self.features & virtio_net.GUEST_SEGMENTS:
            return HEADER_BYTES + virtio_net.MAX_FRAME_BYTES
        return HEADER_BYTES + virtio_net.ETHERNET_HEADER_BYTES + _VLAN_TAG_BYTES + self.mtu

    def _command(self, command: tuple[int, int], data: bytes) -> None:
        request = virtio_net.CTRL_HEADER.pack(*command) + data
        control = self._device.queues[2 * self.pairs]
        [answer] = control.transact([request], [len(virtio_net.CTRL_OK)])
        if answer != virtio_net.CTRL_OK:
            raise FailedPreconditionError(
                "NET_COMMAND",
                f"the device refuses command {command[1]} of class {command[0]} with data "
                f"{data.hex()}: {answer.hex() or 'no answer'}",
            )

    def _keep(self, _pair: int, packet: bytes) -> None:
        frame = packet[HEADER_BYTES:]
        while True:
            try:
                self._backlog.put_nowait(frame)
                return
            except queue.Full:
                self._backlog.get_nowait()


class _Receiver:
    """What arrives on one receive queue; on its completion thread only."""

    def __init__(self, pair: int, on_packet: Callable[[int, bytes], None]) -> None:
        self.malformed = 0
        self._pair = pair
        self._on_packet = on_packet
        self._missing = 0
        self._parts: list[bytes] = []

    def take(self, data: bytes) -> None:
        """Take one receive buffer; a packet is complete when all its `num_buffers` have come."""
        if self._missing:
            self._parts.append(data)
            self._missing -= 1
        elif len(data) < HEADER_BYTES:
            self.malformed += 1  # the device returned the buffer unused
            return
        else:
            [buffers] = virtio_net.NUM_BUFFERS.unpack_from(data, virtio_net.NUM_BUFFERS_OFFSET)
            self._parts = [data]
            self._missing = max(buffers, 1) - 1
        if self._missing:
            return
        packet = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        frame_bytes = len(packet) - HEADER_BYTES
        if virtio_net.ETHERNET_HEADER_BYTES <= frame_bytes <= virtio_net.MAX_FRAME_BYTES:
            self._on_packet(self._pair, packet)
        else:
            self.malformed += 1


def _read_config(device: ReportingDevice) -> NetConfig:
    raw = device.config()
    if len(raw) < virtio_net.CONFIG.size or not device.features & virtio_net.F_MAC:
        raise InvalidArgumentError(
            "NET_CONFIG",
            f"configuration space {raw.hex()} with features 0x{device.features:x} is not that of a "
            "virtio-net device that has a MAC address",
        )
    return NetConfig._make(virtio_net.CONFIG.unpack_from(raw))
