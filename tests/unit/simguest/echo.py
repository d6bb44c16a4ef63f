"""A device that returns requests reversed, behind the device host's vhost-user back-end."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from services.devicehost.accounting import DeviceMeter
from services.devicehost.memory import WindowQuota, confined
from services.devicehost.vhost_user import Backend, Listener, ListeningSocket
from services.devicehost.virtio.device import serve_requests

if TYPE_CHECKING:
    from pathlib import Path

    from services.devicehost.virtio.device import VirtioDevice
    from services.devicehost.virtio.queue import Chain, Queue
    from services.handshake.errors import PortholeError
    from services.handshake.pool import SwiotlbPool

CONFIG = b"echo-config!"


class EchoDevice:
    """Queue 0 answers each request with its bytes reversed; queue 1 fills receive buffers."""

    device_class = "virtio-fs"
    goes_native = False
    num_queues = 2
    features = 0b101

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.activated: list[int] = []
        self.receive_queue: Queue | None = None

    def config(self) -> bytes:
        return CONFIG

    def activate(self, features: int) -> None:
        self.activated.append(features)

    def serve(self, index: int, queue: Queue) -> None:
        if index == 0:
            serve_requests(queue, self._answer)
        else:
            serve_requests(queue, self._fill)

    def reset(self) -> None:
        self.may_answer.set()

    def close(self) -> None:
        pass

    def _answer(self, chain: Chain) -> int:
        self.may_answer.wait(30)
        answer = b"".join(map(bytes, chain.readable))[::-1]
        for buffer in chain.writable:
            part = answer[: len(buffer)]
            buffer[: len(part)] = part
            answer = answer[len(part) :]
        return min(chain.writable_bytes, chain.readable_bytes)

    def _fill(self, chain: Chain) -> int:
        """Write a short frame with the number of its head into a receive buffer."""
        self.may_answer.wait(30)
        frame = b"frame %d" % chain.head
        chain.writable[0][: len(frame)] = frame
        return len(frame)


class Watch:
    """Keeps the reports of the back-end."""

    def __init__(self) -> None:
        self.failures: list[PortholeError] = []
        self.has_failed = threading.Event()
        self.gone = threading.Event()

    def connected(self) -> None: ...
    def attached(self) -> None: ...
    def register_doorbell(self, queue: int) -> None: ...
    def unregister_doorbell(self, queue: int) -> None: ...
    def first_request(self) -> None: ...
    def was_reset(self) -> None: ...
    def kept_out(self, error: PortholeError) -> None: ...
    def descriptors_closed(self, count: int, why: str) -> None: ...

    def failed(self, error: PortholeError) -> None:
        self.failures.append(error)
        self.has_failed.set()

    def disconnected(self, kept_out: PortholeError | None) -> None:
        self.gone.set()


class DeviceRig:
    """A device and its socket, with an aperture on the pool, or windows without one."""

    def __init__(self, path: Path, pool: SwiotlbPool | None, device: VirtioDevice) -> None:
        self.watch = Watch()
        self.meter = DeviceMeter()
        self._device = device
        backend = Backend(device, confined(pool, WindowQuota()), self.meter, self.watch)
        self.listener = Listener(ListeningSocket.at(path), backend)

    def close(self) -> None:
        self.listener.close()
        self._device.close()


class EchoHost(DeviceRig):
    """An echo device and its socket."""

    def __init__(self, path: Path, pool: SwiotlbPool | None) -> None:
        self.device = EchoDevice()
        super().__init__(path, pool, self.device)

    def close(self) -> None:
        self.device.may_answer.set()
        super().close()
