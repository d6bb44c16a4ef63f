"""A virtio-net device over its back end (virtio 1.2, section 5.1).

Owns the adapter's features and configuration space, which queue is which, and the commands of the
control queue. Frames are the pairs' (`pair`). Must not know vhost-user, or how the back end got
its addresses.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import TYPE_CHECKING, Final

from services.devicehost.accounting import Bound
from services.devicehost.devices.net.backend import open_backend
from services.devicehost.devices.net.frames import Pair
from services.devicehost.devices.net.rates import Limits
from services.devicehost.devices.net.spoofing import Source
from services.devicehost.devices.net.user import UserNetwork
from services.devicehost.virtio.deferral import MAX_QUEUED
from services.devicehost.virtio.device import serve_requests
from services.handshake.errors import FailedPreconditionError
from services.handshake.events import NET
from services.handshake.exhaustion import Resource
from services.handshake.options import SPOOFING_REFUSED
from services.handshake.rate_limit import RateLimits
from services.wire import virtio_net
from services.wire.virtio_net import NetConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.devices.net.backend import NetBackend, UserBackend
    from services.devicehost.devices.net.user.ports import Ports
    from services.devicehost.virtio.queue import Chain, Queue
    from services.handshake.options import NetOptions

_FEATURES: Final = (
    virtio_net.F_MAC
    | virtio_net.F_MTU
    | virtio_net.F_STATUS
    | virtio_net.F_MRG_RXBUF
    | virtio_net.F_CTRL_VQ
)
_MOST_COMMAND_BYTES: Final = 64
"""Longest command that is looked at; those that are served have 4 and 10 bytes."""


class NetDevice:
    """One adapter of a guest; a `VirtioDevice`.

    Attributes:
        mac: 6 bytes; in the configuration space.
        mtu: Bytes of payload per frame; in the configuration space.
        num_queues: Two for each pair, and the control queue.
        features: Those of the device, and the offloads that its back end can do.
        link_up: Whether the back end has a link; in the configuration space.
        on_link_change: Called with each change of the link, after which `config` has it: whether
            it is up now, and why. On any thread, with no lock held.
    """

    device_class = NET
    goes_native = True

    def __init__(
        self, options: NetOptions, backend: NetBackend | UserBackend, meter: DeviceMeter
    ) -> None:
        """Open the back end.

        Args:
            options: The options of the adapter.
            backend: The TAP interface, or the user-mode network.
            meter: Of the device; counts dropped frames and lost links, and has its bounds.

        Raises:
            InvalidArgumentError: TAP_NAME, USER_NETWORK_VALUE.
            FailedPreconditionError: The back end cannot be opened; see Tap, UserNetwork.
            ResourceExhaustedError: RING_MEMORY.
        """
        self.mac = options.client_mac or derive_mac(options.vm_id, options.name)
        self._name = options.name
        self._meter = meter
        self.on_link_change: Callable[[bool, str], None] = lambda _up, _why: None
        self._link = threading.Lock()
        self._features = 0
        self._limits = Limits()
        self.set_rate_limits(RateLimits(options.limit_tx, options.limit_rx))
        options = replace(options, client_mac=self.mac)
        with self._link:  # what follows waits until the beginning is known
            self._backend = open_backend(backend, options, self._link_changed)
            self.link_up = self._backend.has_link
        self.mtu = self._backend.mtu
        source = _source(options) if options.spoofing == SPOOFING_REFUSED else None
        self._pairs = tuple(
            Pair(options.name, port, self.mtu, meter, self._limits, source)
            for port in self._backend.queues
        )
        self.num_queues = 2 * len(self._pairs) + 1
        self.features = _FEATURES | self._backend.features
        if len(self._pairs) > 1:
            self.features |= virtio_net.F_MQ
        bound = Bound(
            Resource.QUEUED_REQUESTS,
            MAX_QUEUED * len(self._pairs),
            lambda: sum(pair.held for pair in self._pairs),
        )
        meter.bounds.add(bound)

    def config(self) -> bytes:
        """Return MAC address, link status, the number of pairs, and MTU."""
        status = virtio_net.S_LINK_UP if self.link_up else 0
        config = NetConfig(self.mac, status, len(self._pairs), self.mtu)
        return virtio_net.CONFIG.pack(*config)

    def activate(self, features: int) -> None:
        """Learn which offloads frames may have, and whether they may span several buffers."""
        self._negotiate(features)
        # Without a control queue the front-end decides, by starting queues or not.
        commands = virtio_net.F_MQ | virtio_net.F_CTRL_VQ
        self._backend.use(1 if features & commands == commands else len(self._pairs))

    def serve(self, index: int, queue: Queue) -> None:
        """Serve a queue of a pair, or the control queue, until it is stopped.

        Raises:
            QueueError: The guest broke a rule of the ring.
        """
        if index == self._control_index:
            serve_requests(queue, self._obey)
        elif index % 2 == virtio_net.RX_QUEUE:
            self._pairs[index // 2].receive(queue)
        else:
            self._pairs[index // 2].transmit(queue)

    def reset(self) -> None:
        """Forget what was negotiated; frames carry no state."""
        self._negotiate(0)

    def close(self) -> None:
        """Let go of the back end."""
        self._backend.close()

    def set_rate_limits(self, limits: RateLimits) -> RateLimits:
        """Change how fast frames of all pairs may go, at once; from any thread.

        Args:
            limits: What is to change; within the bounds.

        Returns:
            What is in force.
        """
        mine = self._limits
        if limits.transmit is not None:
            mine.transmit.set(limits.transmit)
        if limits.receive is not None:
            mine.receive.set(limits.receive)
        return RateLimits(mine.transmit.limit, mine.receive.limit)

    @property
    def ports(self) -> Ports:
        """What the host forwards to the guest.

        Raises:
            FailedPreconditionError: NO_USER_NETWORK.
        """
        if isinstance(self._backend, UserNetwork):
            return self._backend.ports
        raise FailedPreconditionError(
            "NO_USER_NETWORK",
            f"adapter {self._name} is on a TAP, whose ports the host's firewall forwards; only an "
            "adapter with a user-mode network maps ports",
            adapter=self._name,
        )

    def _link_changed(self, up: bool, why: str) -> None:
        with self._link:
            if up == self.link_up:
                return
            self.link_up = up
        if not up:
            with self._meter.counting as counters:
                counters.link_losses += 1
        self.on_link_change(up, why)

    @property
    def _control_index(self) -> int:
        """Which queue is the control queue (section 5.1.2): the last one of those that count."""
        if self._features & virtio_net.F_MQ:
            return 2 * len(self._pairs)
        return 2 if self._features & virtio_net.F_CTRL_VQ else self.num_queues - 1

    def _negotiate(self, features: int) -> None:
        self._features = features
        for pair in self._pairs:
            pair.features = features
        self._backend.negotiate(features)

    def _obey(self, chain: Chain) -> int:
        """Carry a command out; writes whether it was (section 5.1.6.5)."""
        if not chain.writable_bytes:
            return 0
        done = self._command(b"".join(chain.readable)) if self._is_command(chain) else False
        chain.writable[0][:1] = virtio_net.CTRL_OK if done else virtio_net.CTRL_ERR
        return 1

    def _is_command(self, chain: Chain) -> bool:
        return virtio_net.CTRL_HEADER.size <= chain.readable_bytes <= _MOST_COMMAND_BYTES

    def _command(self, request: bytes) -> bool:
        kind = virtio_net.CTRL_HEADER.unpack_from(request)
        data = request[virtio_net.CTRL_HEADER.size :]
        number = int.from_bytes(data, "little")
        if kind == (virtio_net.CTRL_MQ, virtio_net.CTRL_MQ_VQ_PAIRS_SET):
            if len(data) != 2 or not 1 <= number <= self._most_pairs:
                return False
            self._backend.use(number)
            return True
        if kind == (virtio_net.CTRL_GUEST_OFFLOADS, virtio_net.CTRL_GUEST_OFFLOADS_SET):
            may = self._features & virtio_net.GUEST_OFFLOADS
            if not self._features & virtio_net.F_CTRL_GUEST_OFFLOADS:
                return False
            if len(data) != 8 or number & ~may:
                return False
            self._backend.negotiate(number)
            return True
        return False

    @property
    def _most_pairs(self) -> int:
        return len(self._pairs) if self._features & virtio_net.F_MQ else 0


def _source(options: NetOptions) -> Source:
    ipv4 = IPv4Interface(options.client_ip).ip.packed if options.client_ip else None
    return Source(options.client_mac or b"", ipv4)


def derive_mac(vm_id: str, name: str) -> bytes:
    """Make a locally administered unicast MAC address that is the same at every start."""
    raw = bytearray(hashlib.sha256(f"{vm_id}/{name}".encode()).digest()[: virtio_net.MAC_BYTES])
    raw[0] = raw[0] & 0xFC | 0x02
    return bytes(raw)
