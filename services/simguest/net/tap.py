"""A virtio-net adapter joined to a TAP interface in the guest's network namespace.

Owns the TAP's descriptor and the thread that moves frames from the TAP to the adapter. Frames that
arrive are written to the TAP on the receive queue's completion thread. Must not know what addresses
mean, nor virtqueues.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from typing import TYPE_CHECKING

from services.handshake.errors import PortholeError
from services.simguest.net.driver import NetDriver
from services.wire.virtio_net import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from services.simguest.net.namespace import NetworkNamespace
    from services.simguest.virtio.interface import ProbedDevice

_LOG = logging.getLogger(__name__)


class TapAdapter:
    """One interface of the guest. `close` may be called from any thread, and more than once.

    Attributes:
        name: Name of the interface inside the namespace.
        driver: The adapter.
    """

    def __init__(
        self,
        device: ProbedDevice,
        namespace: NetworkNamespace,
        name: str,
        address: str = "",
        gateway: str = "",
    ) -> None:
        """Make the interface, configure it, bring it up and move frames.

        Args:
            device: A probed virtio-net device that nothing else uses.
            namespace: The guest's namespace; it must outlive the adapter.
            name: 1 to 15 bytes.
            address: "192.0.2.2/24", IPv4 or IPv6; empty for none.
            gateway: Next hop of the default route; empty for none.

        Raises:
            InvalidArgumentError: INTERFACE_NAME, INTERFACE_ADDRESS, NET_CONFIG.
            FailedPreconditionError: NETNS_UNAVAILABLE, INTERFACE_REFUSED.
            PortholeError: The device is gone.
        """
        self.name = name
        self._closing = threading.Lock()
        self._writing = threading.Lock()
        self._fd = namespace.add_tap(name)
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._sender = threading.Thread(target=self._send, name=f"net-{name}", daemon=True)
        try:
            self.driver = NetDriver(device, self._receive)
            namespace.configure(
                name, mac=self.driver.mac, mtu=self.driver.mtu, address=address, gateway=gateway
            )
        except BaseException:
            self._release()
            raise
        self._sender.start()

    def close(self) -> None:
        """Remove the interface; the device stays, and its frames are dropped."""
        with self._closing:
            if self._fd < 0:
                return
            os.eventfd_write(self._stop_fd, 1)
            self._sender.join()
            self._release()

    def _release(self) -> None:
        with self._writing:
            fd, self._fd = self._fd, -1
            os.close(fd)
        os.close(self._stop_fd)

    def _receive(self, frame: bytes) -> None:
        with self._writing:
            if self._fd < 0:
                return
            # The interface is down, or its queue is full; the frame is lost, as on any wire.
            with contextlib.suppress(OSError):
                os.write(self._fd, frame)

    def _send(self) -> None:
        """Send the frames of the namespace's stack until `close`, or until the device is gone."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.register(self._stop_fd, select.POLLIN)
        buffer = memoryview(bytearray(MAX_FRAME_BYTES))
        while True:
            if any(fd == self._stop_fd for fd, _ in poll.poll()):
                return
            try:
                length = os.readv(self._fd, [buffer])
                self.driver.send_frame(buffer[:length])
            except BlockingIOError:
                continue
            except (OSError, PortholeError) as error:
                _LOG.warning("interface %s stops sending: %s", self.name, error)
                return
