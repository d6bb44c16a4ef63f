from __future__ import annotations

import threading
import uuid
from typing import TYPE_CHECKING

import pytest

from services.devicehost.host import DeviceHost, DeviceInfo, DeviceSpec, FsBackend
from services.devicehost.virtio.device import serve_requests
from services.handshake.pool import Gpa, SwiotlbPool, format_token

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory import Access
    from services.devicehost.virtio.queue import Queue
    from services.handshake.events import Event

MIB = 1 << 20
POOL = SwiotlbPool(Gpa(8 * MIB), 4 * MIB)
TOKEN = format_token(POOL)
VM = str(uuid.UUID(int=1))
OTHER_VM = str(uuid.UUID(int=2))


class NullDevice:
    """Answers every request with nothing; as many queues as a test wants."""

    device_class = "virtio-fs"
    goes_native = False
    features = 0

    def __init__(self, num_queues: int = 9) -> None:
        self.num_queues = num_queues
        self.closed = False

    def config(self) -> bytes:
        return b""

    def activate(self, features: int) -> None:
        pass

    def serve(self, index: int, queue: Queue) -> None:
        serve_requests(queue, lambda chain: 0)

    def reset(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Rig:
    """A host whose devices do nothing, and its reports."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.events: list[Event] = []
        self.devices: list[NullDevice] = []
        self.changes: list[str] = []
        self.details: list[str] = []
        self._changed = threading.Condition()
        self.host = DeviceHost(run_dir, self._on_change, self._make)

    def create(self, instance_id: str = "d1", *, vm_id: str = VM, token: str = TOKEN) -> DeviceInfo:
        return self.host.create_device(spec(instance_id, vm_id=vm_id, token=token), self._emit)

    def wait_for(self, what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: what in self.changes, 10), (
                f"{what!r} is not among {self.changes}"
            )

    def _emit(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self.changes.append(event.name)
            self._changed.notify_all()

    def _on_change(self, info: DeviceInfo, detail: str) -> None:
        with self._changed:
            self.changes.append(f"{info.instance_id} {info.state}")
            self.details.append(detail)
            self._changed.notify_all()

    def _make(
        self, options: object, backend: object, access: Access, meter: DeviceMeter
    ) -> NullDevice:
        device = NullDevice()
        self.devices.append(device)
        return device


def spec(
    instance_id: str = "d1", *, vm_id: str = VM, tag: str = "share", token: str = TOKEN
) -> DeviceSpec:
    items = [tag, *([token] if token else []), f"vm_id={vm_id}"]
    return DeviceSpec(vm_id, instance_id, tag, ";".join(items), FsBackend("/srv"))


@pytest.fixture
def rig(run_dir: Path) -> Iterator[Rig]:
    rig = Rig(run_dir)
    yield rig
    rig.host.close()
