"""A guest's memory and drivers against the real device host, in one process over real sockets."""

from __future__ import annotations

import queue
from typing import TYPE_CHECKING

from services.devicehost.host import (
    DeviceHost,
    DeviceSpec,
    FsBackend,
    NetBackend,
    UserBackend,
)
from services.handshake import events
from services.handshake.options import build_options
from services.handshake.pool import format_token
from services.simguest.guest import KINDS
from services.simguest.kernel import Kernel, ordinary_ranges, reserve_pool
from services.simguest.memory.bounce import BouncePool
from services.simguest.memory.dma import DirectDma
from services.simguest.memory.pages import PageAllocator
from services.simguest.memory.ram import GuestRam
from services.simguest.virtio.device import DeviceMemory, VirtioDevice
from services.simguest.workload.workload import Workload
from tests.unit.simguest.fs.watched_device import Operations, WatchedDevice

if TYPE_CHECKING:
    from pathlib import Path

    from services.devicehost.accounting import Counters
    from services.devicehost.devices import DeviceBackend

VM_ID = "6f1a2f5e-5f3e-4f53-9d5c-2b8f0a4f7c11"


class Rig:
    """One VM: `share` and `adapter` add a device on both sides.

    Attributes:
        changes: The cause of each change of a device.
        events: The events of devices.
    """

    def __init__(self, run_dir: Path, pool_mib: int = 16) -> None:
        (run_dir / "dev").mkdir(exist_ok=True)
        self.changes: queue.Queue[str] = queue.Queue()
        self.events: list[events.Event] = []
        self.host = DeviceHost(run_dir, on_change=lambda info, detail: self.changes.put(detail))
        self.ram = GuestRam(128 << 20)
        kernel = Kernel("6.18.26.3", publishes_pool=pool_mib > 0)
        self.pool = reserve_pool(kernel, f"hv_pci_swiotlb={pool_mib}M", self.ram.regions[0])
        direct = DirectDma(self.ram, PageAllocator(ordinary_ranges(self.ram.regions, self.pool)))
        self.bounce = BouncePool(self.ram, self.pool) if self.pool else None
        self.memory = DeviceMemory(self.ram, self.bounce or direct, direct)
        self.workload = Workload()
        self.devices: dict[str, VirtioDevice] = {}
        self.operations: dict[str, Operations] = {}

    def share(self, tag: str, directory: Path, options: str = "") -> None:
        device = self.create(tag, FsBackend(str(directory)), options)
        watched = WatchedDevice(device)
        self.operations[tag] = watched.operations
        self.workload.attach_share(tag, watched)

    def adapter(
        self,
        tag: str,
        backend: str | UserBackend,
        address: str,
        gateway: str,
        options: str = "",
    ) -> None:
        """Add an adapter; `backend` is the name of a TAP, or a user-mode network."""
        tap_or_user = NetBackend(backend) if isinstance(backend, str) else backend
        device = self.create(tag, tap_or_user, options)
        self.workload.attach_adapter(tag, device, address, gateway)

    def create(
        self,
        tag: str,
        backend: DeviceBackend,
        options: str,
    ) -> VirtioDevice:
        token = format_token(self.pool) if self.pool else None
        text = build_options(tag, options, token, VM_ID)
        spec = DeviceSpec(VM_ID, tag, tag, text, backend)
        info = self.host.create_device(spec, emit=self.events.append)
        kind = KINDS[events.NET if isinstance(backend, NetBackend | UserBackend) else events.FS]
        self.devices[tag] = VirtioDevice(tag, info.socket_path, kind, self.memory)
        return self.devices[tag]

    def counters(self, tag: str) -> Counters:
        return self.host.get_device(VM_ID, tag).counters

    def remove_from_host(self, tag: str) -> None:
        """End the device while its driver runs."""
        self.host.remove_device(VM_ID, tag)

    def close(self) -> None:
        self.workload.close()
        for device in self.devices.values():
            device.close()
        self.host.close()
        used = self.bounce.usage().slots_used if self.bounce else 0
        self.ram.close()
        assert used == 0, "the drivers left mappings behind"
