"""A virtio-net adapter joined to a TAP interface in the guest's network namespace.

The TAP has the adapter's pairs of queues and its offloads, so that the namespace's stack gives and
takes packets as they pass. Owns the TAP's descriptors, and for each pair the thread that moves
packets from the TAP to the adapter. Packets that arrive are written to the TAP on the completion
thread of their receive queue. Must not know what addresses mean, nor virtqueues.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import threading
from typing import TYPE_CHECKING

from services.handshake.errors import PortholeError
from services.simguest.net.driver import NetDriver
from services.wire import tun
from services.wire.virtio_net import (
    FLAGS_OFFSET,
    HDR_F_NEEDS_CSUM,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
)

if TYPE_CHECKING:
    from services.simguest.net.namespace import NetworkNamespace
    from services.simguest.virtio.interface import ReportingDevice

_LOG = logging.getLogger(__name__)


class TapAdapter:
    """One interface of the guest. `close` may be called from any thread, and more than once.

    Attributes:
        name: Name of the interface inside the namespace.
        driver: The adapter.
    """

    def __init__(
        self,
        device: ReportingDevice,
        namespace: NetworkNamespace,
        name: str,
        address: str = "",
        gateway: str = "",
        address_ipv6: str = "",
    ) -> None:
        """Make the interface, configure it, bring it up and move frames.

        Args:
            device: A probed virtio-net device that nothing else uses.
            namespace: The guest's namespace; it must outlive the adapter.
            name: 1 to 15 bytes.
            address: "192.0.2.2/24", IPv4 or IPv6; empty for none.
            gateway: Next hop of the default route; empty for none.
            address_ipv6: One more; a router of IPv6 announces itself.

        Raises:
            InvalidArgumentError: INTERFACE_NAME, INTERFACE_ADDRESS, NET_CONFIG.
            FailedPreconditionError: NETNS_UNAVAILABLE, INTERFACE_REFUSED.
            PortholeError: The device is gone.
        """
        self.name = name
        self._closing = threading.Lock()
        self._writing = threading.Lock()
        self._fds: list[int] = []
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.driver = NetDriver(device, self._receive)
            fds = namespace.add_tap(name, self.driver.pairs)
            with self._writing:
                self._fds = fds
            _offload(fds[0], tun.offloads_to_host(self.driver.features))
            namespace.configure(
                name,
                mac=self.driver.mac,
                mtu=self.driver.mtu,
                address=address,
                gateway=gateway,
                address_ipv6=address_ipv6,
            )
            self.driver.watch_link(self._carry)
        except BaseException:
            self._release()
            raise
        self._senders = [
            threading.Thread(target=self._send, args=each, name=f"net-{name}", daemon=True)
            for each in enumerate(fds)
        ]
        for sender in self._senders:
            sender.start()

    def close(self) -> None:
        """Remove the interface; the device stays, and its packets are dropped."""
        with self._closing:
            if not self._fds:
                return
            os.eventfd_write(self._stop_fd, 1)
            for sender in self._senders:
                sender.join()
            self._release()

    def _release(self) -> None:
        with self._writing:
            fds, self._fds = self._fds, []
            for fd in fds:
                os.close(fd)
        os.close(self._stop_fd)

    def _carry(self, is_up: bool) -> None:
        """Give the interface a carrier, or take it away; a kernel before Linux 5.0 cannot."""
        with self._writing, contextlib.suppress(OSError):
            if self._fds:
                fcntl.ioctl(self._fds[0], tun.TUNSETCARRIER, tun.INT.pack(is_up))

    def _receive(self, pair: int, packet: bytes) -> None:
        with self._writing:
            if not self._fds:
                return
            # The interface is down, or its queue is full; the packet is lost, as on any wire.
            with contextlib.suppress(OSError):
                os.write(self._fds[pair], packet)

    def _send(self, pair: int, fd: int) -> None:
        """Send the packets of the namespace's stack until `close`, or until the device is gone."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        buffer = memoryview(bytearray(HEADER_BYTES + MAX_FRAME_BYTES))
        while True:
            if any(ready == self._stop_fd for ready, _ in poll.poll()):
                return
            try:
                length = os.readv(fd, [buffer])
                # A driver says nothing of checksums that were verified (section 5.1.6.2.1).
                buffer[FLAGS_OFFSET] &= HDR_F_NEEDS_CSUM
                self.driver.send_packet(pair, buffer[:length])
            except BlockingIOError:
                continue
            except (OSError, PortholeError) as error:
                _LOG.warning("interface %s stops sending: %s", self.name, error)
                return


def _offload(fd: int, flags: int) -> None:
    """Let the stack leave work to the device; without segments of datagrams before Linux 6.2."""
    try:
        fcntl.ioctl(fd, tun.TUNSETOFFLOAD, flags)
    except OSError:
        fcntl.ioctl(fd, tun.TUNSETOFFLOAD, flags & ~tun.USO)
