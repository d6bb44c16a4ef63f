"""A virtio device as the guest's kernel brings it up: connect, negotiate, start its queues.

Owns the order of the vhost-user messages and the life of a device's rings; it provides
`interface.ReportingDevice`. Must not know the purpose of the device or how buffers are mapped.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError, PortholeError
from services.simguest.virtio.config_watch import ConfigWatch
from services.simguest.virtio.front_end import FrontEnd
from services.simguest.virtio.queue import SplitQueue
from services.simguest.virtio.ring import DriverRing, ring_bytes
from services.wire import vhost_user as wire
from services.wire.virtio_ring import (
    F_ACCESS_PLATFORM,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from services.simguest.memory.dma import Dma, Mapping
    from services.simguest.memory.ram import GuestRam

QUEUE_SIZE: Final = 256
"""Entries of every ring."""

MAX_QUEUES: Final = 64
"""The most queues of a device; one that reports more is broken."""

_TRANSPORT_FEATURES: Final = F_VERSION_1 | F_ACCESS_PLATFORM | F_INDIRECT_DESC | F_EVENT_IDX
_CONFIG_WATCH: Final = wire.PROTOCOL_F_CONFIG | wire.PROTOCOL_F_BACKEND_REQ
_PROTOCOL_FEATURES: Final = wire.PROTOCOL_F_MQ | wire.PROTOCOL_F_REPLY_ACK | _CONFIG_WATCH
_RING_DEADLINE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The guest's memory, for its devices.

    Attributes:
        ram: All of it; the device host gets its descriptor and maps the parts that it may reach.
        buffers: Maps the drivers' buffers.
        rings: Maps the rings, in the pool or in ordinary RAM.
    """

    ram: GuestRam
    buffers: Dma
    rings: Dma


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """A driver's expectations of its device.

    Attributes:
        features: Device-type feature bits that the driver understands.
        config_bytes: Length of the configuration space that the driver reads.
        queues: The fewest queues that such a device has.
    """

    features: int
    config_bytes: int
    queues: int


class VirtioDevice:
    """A probed device: once it is constructed, its features are negotiated and its queues run."""

    def __init__(
        self, name: str, socket_path: Path, kind: DeviceKind, memory: DeviceMemory
    ) -> None:
        """Probe the device; a failure leaves nothing behind.

        Args:
            name: For messages, for instance "virtio-fs 'data'".
            socket_path: The device's vhost-user socket.
            kind: What the driver expects.
            memory: The guest's memory.

        Raises:
            UnavailableError: DEVICE_UNREACHABLE or DEVICE_GONE.
            FailedPreconditionError: DEVICE_LEGACY, DEVICE_QUEUES, DEVICE_REFUSED, DEVICE_ANSWER.
            DeadlineExceededError: DEVICE_TIMEOUT.
            ResourceExhaustedError: The rings found no room.
        """
        self.name = name
        self.features = 0
        self._protocol_features = 0
        self._config_watch: ConfigWatch | None = None
        self._kind = kind
        self._memory = memory
        self._queues: list[SplitQueue] = []
        self._rings: list[Mapping] = []
        self._front_end = FrontEnd(socket_path, name)
        try:
            count = self._negotiate()
            self._attach_memory()
            for index in range(count):
                self._start_queue(index)
        except BaseException:
            self.close()
            raise

    @property
    def queues(self) -> Sequence[SplitQueue]:
        """The queues, in virtqueue order."""
        return tuple(self._queues)

    @property
    def max_mapping_bytes(self) -> int:
        """Length of the longest buffer that can be mapped, in bytes; 256 KiB behind a pool."""
        return self._memory.buffers.max_mapping_bytes

    def config(self) -> bytes:
        """Read the device's configuration space.

        Raises:
            PortholeError: An error of `FrontEnd.ask`.
        """
        return self._front_end.ask_config(self._kind.config_bytes)

    def watch_config(self, on_change: Callable[[], None]) -> None:
        """Have each change of the configuration space reported; see ReportingDevice.

        Raises:
            PortholeError: An error of `FrontEnd.send`.
        """
        if self._protocol_features & _CONFIG_WATCH == _CONFIG_WATCH:
            self._config_watch = ConfigWatch(self._front_end, self.name, on_change)

    def close(self) -> None:
        """Stop the queues, disconnect and release all memory; stop the drivers first."""
        with contextlib.suppress(PortholeError):  # a device that is gone runs no ring
            for queue in self._queues:
                self._front_end.ask_vring_base(queue.index)
        for queue in self._queues:
            queue.stop()
        watch, self._config_watch = self._config_watch, None
        if watch is not None:
            watch.close()
        self._front_end.close()
        for queue in self._queues:
            queue.release()
        self._memory.rings.unmap(self._rings)
        self._queues, self._rings = [], []

    def _negotiate(self) -> int:
        """Negotiate features, and return the number of queues."""
        front_end, kind = self._front_end, self._kind
        front_end.send(wire.Request.SET_OWNER)
        offered = front_end.ask_u64(wire.Request.GET_FEATURES)
        if not offered & F_VERSION_1:
            raise FailedPreconditionError(
                "DEVICE_LEGACY",
                f"{self.name} offers features 0x{offered:x} without VERSION_1; this guest has "
                "drivers only for devices of virtio 1.0 or later",
                features=offered,
            )
        self.features = offered & (_TRANSPORT_FEATURES | kind.features)
        queues = kind.queues
        acked = self.features
        if offered & wire.F_PROTOCOL_FEATURES:
            acked |= wire.F_PROTOCOL_FEATURES
            queues = self._negotiate_protocol()
        # With ACCESS_PLATFORM, ring addresses would be I/O virtual addresses of an IOMMU, which
        # this guest lacks. So the bit is not passed on to the device; QEMU does the same.
        front_end.send(wire.Request.SET_FEATURES, wire.U64.pack(acked & ~F_ACCESS_PLATFORM))
        return queues

    def _negotiate_protocol(self) -> int:
        front_end = self._front_end
        protocol = front_end.ask_u64(wire.Request.GET_PROTOCOL_FEATURES) & _PROTOCOL_FEATURES
        front_end.send(wire.Request.SET_PROTOCOL_FEATURES, wire.U64.pack(protocol))
        self._protocol_features = protocol
        front_end.reply_ack = bool(protocol & wire.PROTOCOL_F_REPLY_ACK)
        if not protocol & wire.PROTOCOL_F_MQ:
            return self._kind.queues
        queues = front_end.ask_u64(wire.Request.GET_QUEUE_NUM)
        if not self._kind.queues <= queues <= MAX_QUEUES:
            raise FailedPreconditionError(
                "DEVICE_QUEUES",
                f"{self.name} reports {queues} queues; its driver needs {self._kind.queues} "
                f"to {MAX_QUEUES}",
                queues=queues,
            )
        return queues

    def _attach_memory(self) -> None:
        ram = self._memory.ram
        table = [
            wire.MemRegion(region.gpa, region.size_bytes, region.user_addr, region.offset)
            for region in ram.regions
        ]
        fds = [ram.fd] * len(table)
        self._front_end.send(wire.Request.SET_MEM_TABLE, wire.pack_mem_table(table), fds)

    def _start_queue(self, index: int) -> None:
        memory, send = self._memory, self._front_end.send
        [mapping] = memory.rings.map([ring_bytes(QUEUE_SIZE)], _RING_DEADLINE_S)
        self._rings.append(mapping)
        event_idx = bool(self.features & F_EVENT_IDX)
        ring = DriverRing(QUEUE_SIZE, mapping, event_idx=event_idx)
        indirect = bool(self.features & F_INDIRECT_DESC)
        queue = SplitQueue(index, self.name, ring, memory.buffers, indirect=indirect)
        self._queues.append(queue)
        user = memory.ram.user_addr
        address = wire.VringAddr(
            index, 0, user(ring.desc_gpa), user(ring.used_gpa), user(ring.avail_gpa), 0
        )
        send(wire.Request.SET_VRING_NUM, wire.VringState(index, QUEUE_SIZE).pack())
        send(wire.Request.SET_VRING_BASE, wire.VringState(index, 0).pack())
        send(wire.Request.SET_VRING_ADDR, address.pack())
        send(wire.Request.SET_VRING_CALL, wire.U64.pack(index), [queue.call_fd])
        send(wire.Request.SET_VRING_ERR, wire.U64.pack(index), [queue.err_fd])
        send(wire.Request.SET_VRING_KICK, wire.U64.pack(index), [queue.kick_fd])
        queue.start(self._front_end.fileno())
        send(wire.Request.SET_VRING_ENABLE, wire.VringState(index, 1).pack())
