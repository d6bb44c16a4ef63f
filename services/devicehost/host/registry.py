"""The registry of all devices by VM: adding and removing them, and what each VM has.

Owns the order in which a device is added (register, create, store) and removed (mark as shutting
down, tear down, forget); see handshake.md section 10. Must not know gRPC, protobuf or traces.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.devicehost.devices import DEVICE_TYPES, make_device
from services.devicehost.host.device import DeviceInfo, HostedDevice, Identity
from services.devicehost.host.specs import (
    ChildSpec,
    DeviceSpec,
    Published,
    canonical,
    parse_child,
    parse_device,
)
from services.devicehost.host.states import DeviceState
from services.devicehost.memory import WindowQuota, confined
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.handshake.pool import SwiotlbPool, format_token, parse_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.devices import DeviceBackend, DeviceOptions
    from services.devicehost.memory import Access
    from services.devicehost.virtio.device import VirtioDevice
    from services.handshake import events
    from services.handshake.exhaustion import Exhaustion
    from services.handshake.ports import PortKey, PortMapping
    from services.handshake.rate_limit import RateLimits

REMEMBERED_DEVICES: Final = 256
"""How many removed devices are remembered: the latest ones."""


@dataclass(slots=True)
class _Vm:
    """The pool, the capabilities, the quota on windows and the devices of one VM."""

    pool: SwiotlbPool | None = None
    published: Published | None = None
    quota: WindowQuota = field(default_factory=WindowQuota)
    devices: dict[str, HostedDevice] = field(default_factory=dict)

    @property
    def announced(self) -> bool:
        """Whether an owner has announced anything of it."""
        return self.pool is not None or self.published is not None

    def admits(self, pool: SwiotlbPool | None) -> bool:
        """Return whether a device may have the token of this pool; None: no token."""
        if self.pool is not None:
            return pool == self.pool
        return pool is None or self.published is None or pool == self.published.capabilities.pool


class DeviceHost:
    """The registry of devices; every method may be called from any thread, and may block.

    Its lock guards the tables alone. No device is described, marked or torn down with the lock
    held, because a device calls back, counts descriptors and waits for threads.
    """

    def __init__(
        self,
        run_dir: Path,
        on_change: Callable[[DeviceInfo, str], None],
        make: Callable[
            [DeviceOptions, DeviceBackend, Access, DeviceMeter], VirtioDevice
        ] = make_device,
        on_exhausted: Callable[[DeviceInfo, Exhaustion], None] = lambda *_: None,
    ) -> None:
        """Make an empty host.

        Args:
            run_dir: Device sockets go to its folder dev.
            on_change: Called with each new state of a device and its reason, on any thread.
            make: Makes virtio devices.
            on_exhausted: Called once per episode of exhaustion, on any thread; must not wait.
        """
        self._socket_dir = run_dir / "dev"
        self._on_change = on_change
        self._make = make
        self._on_exhausted = on_exhausted
        self._lock = threading.Lock()
        self._vms: dict[str, _Vm] = {}
        self._removed: deque[tuple[float, DeviceInfo]] = deque(maxlen=REMEMBERED_DEVICES)
        self._closing = False

    def set_swiotlb(self, vm_id: str, token: str, published: Published | None = None) -> None:
        """Store the pool that a VM has latched; every new device of it must have that token.

        Args:
            vm_id: UUID of the VM.
            token: Its token; empty, if `published` is given, when it has latched no pool.
            published: Its capabilities, which replace those of an earlier call. None: those stay.

        Raises:
            InvalidArgumentError: VM_ID_SYNTAX, a reason of `parse_token`, or
                SWIOTLB_TOKEN_CONTRADICTION: the capabilities have another pool.
            FailedPreconditionError: SWIOTLB_CONFLICT: the VM has announced another pool.
        """
        vm_id = canonical(vm_id)
        pool = parse_token(token) if token or published is None else None
        if pool is not None and published is not None and published.capabilities.pool != pool:
            raise InvalidArgumentError(
                "SWIOTLB_TOKEN_CONTRADICTION",
                f"VM {vm_id}: the token {token!r} contradicts its capabilities, whose pool is "
                f"{published.capabilities.pool or 'none'}",
                vm_id=vm_id,
                token=token,
            )
        with self._lock:
            vm = self._vms.setdefault(vm_id, _Vm())
            if vm.pool not in (None, pool):
                raise FailedPreconditionError(
                    "SWIOTLB_CONFLICT",
                    f"VM {vm_id} has pool {vm.pool} already, so it cannot have {pool or 'none'}; "
                    "a pool is latched once in a VM's life",
                    vm_id=vm_id,
                )
            vm.pool = pool
            vm.published = published or vm.published

    def published(self, vm_id: str) -> Published | None:
        """Return what the guest of a VM published; None when nobody has announced it."""
        with self._lock:
            vm = self._vms.get(vm_id)
            return vm.published if vm else None

    def create_device(self, spec: DeviceSpec, emit: Callable[[events.Event], None]) -> DeviceInfo:
        """Make one device and listen on its socket.

        Args:
            spec: The request.
            emit: Called with the device's handshake events, on any thread, as long as it lives.

        Raises:
            InvalidArgumentError: Ids, options or back end are wrong; the reason says which.
            FailedPreconditionError: SWIOTLB_TOKEN_MISMATCH, HOST_SHUTTING_DOWN, or the back end
                cannot be opened now.
            AlreadyExistsError: DEVICE_EXISTS.
        """
        options, backend = parse_device(spec)
        identity = Identity(
            vm_id=options.vm_id,
            instance_id=spec.instance_id,
            device_class=DEVICE_TYPES[type(backend)].device_class,
            tag=spec.tag,
            options=spec.options,
            socket_path=self._socket_dir / f"{spec.instance_id}.sock",
        )
        entry = self._register(identity, options, emit)
        try:
            entry.start(partial(self._make, options, backend))
        except BaseException:
            self._forget(entry)
            raise
        return entry.info()

    def remove_device(self, vm_id: str, instance_id: str) -> None:
        """Tear one device down; it is gone when this returns or raises, also for NotFoundError.

        Raises:
            NotFoundError: DEVICE_UNKNOWN, also when another call is removing it; that is done then.
        """
        entry = self._find(vm_id, instance_id)
        if not entry.mark_shutting_down():
            entry.tear_down()  # waits for that other call: who is told "unknown" relies on it
            raise _unknown(vm_id, instance_id)
        try:
            entry.tear_down()
        finally:
            self._forget(entry)

    def add_child(self, vm_id: str, instance_id: str, child: ChildSpec) -> None:
        """Add a share to an aggregate device, while its guest uses it.

        Raises:
            NotFoundError: DEVICE_UNKNOWN.
            InvalidArgumentError: VM_ID_MISMATCH, TAG_MISMATCH, or a reason of parse_fs_options.
            FailedPreconditionError: NO_AGGREGATE.
            PortholeError: A reason of FsDevice.add_child.
        """
        entry = self._find(vm_id, instance_id)
        options = parse_child(child, entry.identity.vm_id)
        entry.add_child(child.name, options, Path(child.shared_dir))

    def remove_child(self, vm_id: str, instance_id: str, name: str) -> None:
        """Remove a share from an aggregate device, while its guest uses it.

        Raises:
            NotFoundError: DEVICE_UNKNOWN, or CHILD_UNKNOWN.
            FailedPreconditionError: NO_AGGREGATE.
        """
        self._find(vm_id, instance_id).remove_child(name)

    def map_port(self, vm_id: str, instance_id: str, mapping: PortMapping) -> PortMapping:
        """Forward a port of the host to the guest of an adapter; see Ports.map.

        Raises:
            NotFoundError: DEVICE_UNKNOWN.
            FailedPreconditionError: NO_USER_NETWORK.
            PortholeError: A reason of Ports.map; nothing has changed.
        """
        return self._find(vm_id, instance_id).ports().map(mapping)

    def unmap_port(self, vm_id: str, instance_id: str, key: PortKey) -> None:
        """End a mapping; see Ports.unmap.

        Raises:
            NotFoundError: DEVICE_UNKNOWN, PORT_UNKNOWN.
            FailedPreconditionError: NO_USER_NETWORK.
            PortholeError: A reason of Ports.unmap.
        """
        self._find(vm_id, instance_id).ports().unmap(key)

    def list_ports(self, vm_id: str, instance_id: str) -> tuple[PortMapping, ...]:
        """Return the mappings of an adapter.

        Raises:
            NotFoundError: DEVICE_UNKNOWN.
            FailedPreconditionError: NO_USER_NETWORK.
        """
        return self._find(vm_id, instance_id).ports().list()

    def set_rate_limits(self, vm_id: str, instance_id: str, limits: RateLimits) -> RateLimits:
        """Change how fast frames of an adapter may go; return what is in force.

        Raises:
            NotFoundError: DEVICE_UNKNOWN.
            FailedPreconditionError: NOT_AN_ADAPTER.
        """
        return self._find(vm_id, instance_id).set_rate_limits(limits)

    def forget_vm(self, vm_id: str) -> None:
        """Tear down the remaining devices of a VM, and forget its pool and its capabilities.

        It is harmless when repeated.

        Raises:
            InvalidArgumentError: VM_ID_SYNTAX.
        """
        vm_id = canonical(vm_id)
        with self._lock:
            vm = self._vms.get(vm_id)
            if vm is None:
                return
            vm.pool = vm.published = None
            entries = list(vm.devices.values())
            if not entries:
                del self._vms[vm_id]
        self._tear_down(entries)

    def get_device(self, vm_id: str, instance_id: str) -> DeviceInfo:
        """Return one device as it is now.

        Raises:
            NotFoundError: DEVICE_UNKNOWN.
        """
        return self._find(vm_id, instance_id).info()

    def list_devices(self, vm_id: str | None = None) -> list[DeviceInfo]:
        """Return all devices, or those of one VM, in the order in which they were added."""
        with self._lock:
            entries = [
                entry
                for each, vm in self._vms.items()
                if vm_id is None or each == vm_id
                for entry in vm.devices.values()
            ]
        return [entry.info() for entry in entries]

    def removed_devices(self, within_s: float) -> list[DeviceInfo]:
        """Return the final state of the devices that were removed in the last `within_s` s."""
        since = time.monotonic() - within_s
        with self._lock:
            return [info for removed, info in self._removed if removed >= since]

    def window_quotas(self) -> dict[str, tuple[int, int]]:
        """Return windows used, and their limit, of every VM that has devices."""
        with self._lock:
            return {
                vm_id: (vm.quota.used, vm.quota.limit)
                for vm_id, vm in self._vms.items()
                if vm.devices
            }

    def close(self) -> None:
        """Refuse new devices, then mark, tear down and forget all, those of each VM on a thread.

        So the devices of one VM do not wait for those of another.
        """
        with self._lock:
            self._closing = True
            vms = {vm_id: list(vm.devices.values()) for vm_id, vm in self._vms.items()}
        threads: list[threading.Thread] = []
        for vm_id, entries in vms.items():
            thread = threading.Thread(
                target=self._tear_down, args=(entries,), name=f"close-{vm_id[:8]}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # the process may have no further thread
                self._tear_down(entries)
            else:
                threads.append(thread)
        for thread in threads:
            thread.join()

    def _register(
        self, me: Identity, options: DeviceOptions, emit: Callable[[events.Event], None]
    ) -> HostedDevice:
        """Make the entry of a device, unless its VM must not have it."""
        pool = options.swiotlb
        with self._lock:
            if self._closing:
                raise FailedPreconditionError(
                    "HOST_SHUTTING_DOWN", "the device host is shutting down and takes no device"
                )
            # An id names a socket, so it is taken for every VM.
            if any(me.instance_id in vm.devices for vm in self._vms.values()):
                raise AlreadyExistsError(
                    "DEVICE_EXISTS",
                    f"device {me.instance_id} exists already; remove it first",
                    instance_id=me.instance_id,
                )
            vm = self._vms.get(me.vm_id) or _Vm()
            if not vm.admits(pool):
                have = format_token(pool) if pool else "no token"
                due = f"latched {format_token(vm.pool)}" if vm.pool else "published no such pool"
                raise FailedPreconditionError(
                    "SWIOTLB_TOKEN_MISMATCH",
                    f"device {me.instance_id} has {have}, but VM {me.vm_id} has {due}; pass the "
                    "VM's token verbatim",
                    vm_id=me.vm_id,
                    instance_id=me.instance_id,
                )
            entry = HostedDevice(
                me,
                confined(pool, vm.quota, options.aperture).with_rings(options.rings),
                is_known=lambda: self._knows(me.vm_id, me.instance_id),
                emit=emit,
                on_change=self._on_change,
                on_exhausted=self._on_exhausted,
            )
            self._vms[me.vm_id] = vm
            vm.devices[me.instance_id] = entry
            return entry

    def _tear_down(self, entries: Iterable[HostedDevice]) -> None:
        """Mark all as shutting down, then tear all down; those that other calls remove, with them.

        A device that another call is removing is forgotten by that call.
        """
        for entry, is_ours in [(entry, entry.mark_shutting_down()) for entry in entries]:
            entry.tear_down()
            if is_ours:
                self._forget(entry)

    def _forget(self, entry: HostedDevice) -> None:
        me = entry.identity
        # A device that could not be started is not remembered.
        info = entry.info() if entry.state is DeviceState.SHUTTING_DOWN else None
        with self._lock:
            vm = self._vms.get(me.vm_id)
            if vm is None or vm.devices.get(me.instance_id) is not entry:
                return  # another call has closed the host meanwhile, and forgotten it
            del vm.devices[me.instance_id]
            if info is not None:
                self._removed.append((time.monotonic(), info))
            # A VM of which something is announced is remembered: that holds for its next device.
            if not vm.devices and not vm.announced:
                del self._vms[me.vm_id]

    def _knows(self, vm_id: str, instance_id: str) -> bool:
        with self._lock:
            vm = self._vms.get(vm_id)
            return vm is not None and instance_id in vm.devices

    def _find(self, vm_id: str, instance_id: str) -> HostedDevice:
        with self._lock:
            vm = self._vms.get(vm_id)
            entry = vm.devices.get(instance_id) if vm else None
        if entry is None:
            raise _unknown(vm_id, instance_id)
        return entry


def _unknown(vm_id: str, instance_id: str) -> NotFoundError:
    return NotFoundError(
        "DEVICE_UNKNOWN",
        f"VM {vm_id} has no device {instance_id}",
        vm_id=vm_id,
        instance_id=instance_id,
    )
