"""The VMs of this owner: created, found, changed one operation at a time, and ended.

Owns the registry, the serialisation of operations, and their traces. Must not know protobuf, or how
a VM is put together (assembly.py).

An operation that changes a VM runs to its end even when its caller goes away, so that no device is
left half added. Only CreateVm is abandoned with a caller that has not chosen the VM's id and so
cannot repeat the call; it then takes the new VM down.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from services.handshake.errors import UnavailableError
from services.rpc import tracing
from services.vm_owner.assembly import VmSpec, assemble, check_shares
from services.vm_owner.client_ids import check_vm_id, require_same
from services.vm_owner.device_hosts import UNSPECIFIED
from services.vm_owner.operations import Operation
from services.vm_owner.registry import VmRegistry
from services.vm_owner.reports import Report
from services.vm_owner.states import VmState
from services.vm_owner.watch_items import DeviceChange, DeviceExhausted
from services.vm_owner.wslconfig import NetworkingMode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from services.handshake.ports import PortKey, PortMapping
    from services.handshake.rate_limit import RateLimits
    from services.vm_owner.assembly import Surroundings
    from services.vm_owner.device_hosts import DeviceHosts, DeviceStatus
    from services.vm_owner.guest_devices import DeviceSpec, GuestDevice
    from services.vm_owner.host_paths import HostPaths
    from services.vm_owner.networking import Network, NetworkRequest
    from services.vm_owner.shares import Share, ShareSpec
    from services.vm_owner.vm import Vm

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _Creation(NamedTuple):
    spec: VmSpec
    task: asyncio.Task[Vm]


@dataclass(frozen=True, slots=True)
class Applied:
    """The outcome of applying a report.

    Attributes:
        already_applied: Whether capabilities had been latched before; see VmRecord.
        token: The token; empty without a pool.
        in_force: What is in force now.
    """

    already_applied: bool
    token: str
    in_force: Report


class VmOwner:
    """All VMs, by id.

    Args:
        surroundings: The parts and settings that all VMs use.
        connect_device_hosts: Makes the connections to both device hosts. Its arguments are called
            with each status of a device, and when the event stream of a device host ends.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        connect_device_hosts: Callable[
            [Callable[[DeviceStatus], None], Callable[[bool], None]], DeviceHosts
        ],
    ) -> None:
        self._surroundings = surroundings
        self._device_hosts = connect_device_hosts(
            self._on_device_status, self._on_device_host_stream_end
        )
        self._vms: VmRegistry[VmSpec] = VmRegistry()
        self._creations: dict[str, _Creation] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._closing = False

    @property
    def host_paths(self) -> HostPaths:
        """Looks at the directories that are to be shared."""
        return self._surroundings.host_paths

    def find(self, vm_id: str) -> Vm:
        """Return a VM by its id, or by the beginning of its id; see VmRegistry.find."""
        return self._vms.find(vm_id)

    def all(self) -> list[Vm]:
        """Return all VMs, in the order in which they were created."""
        return self._vms.all()

    def snapshot(self) -> list[Vm]:
        """Return all VMs, on any thread."""
        return self._vms.snapshot()

    def after(self, number: int) -> Iterator[tuple[int, Vm]]:
        """Return the VMs after the one with a number; see VmRegistry.after."""
        return self._vms.after(number)

    async def statuses(self, vm: Vm) -> dict[str, DeviceStatus]:
        """Return the status of each device of a VM by instance id; unreachable ones are missing."""
        if not vm.devices.all():
            return {}
        return await self._device_hosts.statuses(vm.vm_id)

    async def create(self, spec: VmSpec) -> Vm:
        """Create a VM and boot it. After a failure nothing is left.

        Nothing is left either when the caller goes away, unless it has chosen the VM's id: then the
        VM is created to the end, and the call can be repeated, also while the first one runs.

        Returns:
            The new VM, or the one that the same spec has created.

        Raises:
            InvalidArgumentError: VM_ID_SYNTAX.
            AlreadyExistsError: VM_EXISTS, for an id that was used with another spec; it names the
                fields that differ.
            InvalidArgumentError: RAM_BYTES, WSLCONFIG_TOO_LARGE, KERNEL_RELEASE_SYNTAX,
                TOO_MANY_SHARES.
            AlreadyExistsError: TAG_EXISTS or SHARE_EXISTS, for two of the shares.
            FailedPreconditionError: VIRTIO_OFF or VIRTIOFS_OFF, for any share.
            PortholeError: See share_key and HostPaths.look.
            UnavailableError: OWNER_SHUTTING_DOWN, VM_ENDED_EARLY, GUEST_INIT_UNREACHABLE, or the
                machine does not start.
            DeadlineExceededError: The guest does not boot in time.
        """
        if not spec.vm_id:
            return await self._create(replace(spec, vm_id=str(uuid.uuid4())))
        check_vm_id(spec.vm_id)
        what = f"VM {spec.vm_id}"
        creation = self._creations.get(spec.vm_id)
        if creation is not None:
            require_same("VM_EXISTS", what, creation.spec, spec)
            return await asyncio.shield(creation.task)
        known = self._vms.get(spec.vm_id)
        if known is not None:
            require_same("VM_EXISTS", what, self._vms.spec_of(known), spec)
            return known
        creation = _Creation(spec, self._start(self._create(spec)))
        self._creations[spec.vm_id] = creation
        creation.task.add_done_callback(lambda _: self._creations.pop(spec.vm_id, None))
        return await asyncio.shield(creation.task)

    async def _create(self, spec: VmSpec) -> Vm:
        with tracing.operation("CreateVm"):
            await check_shares(spec.shares, self.host_paths)
            if self._closing:
                raise UnavailableError(
                    "OWNER_SHUTTING_DOWN",
                    "this owner is shutting down; use another, or wait for it",
                )
            vm = assemble(spec, self._surroundings, self._device_hosts, self._report)
            self._vms.add(vm, spec)
            vm.record.emit(vm.record.facts.created_event())
            vm_id = vm.vm_id
            try:
                await vm.bring_up(lambda: self._guest_ended(vm))
            except BaseException:
                await self._finish(self._discard(vm))
                raise
            logger.info("VM %s (%s) is %s", vm_id, vm.record.facts.kind, vm.record.state)
            return vm

    async def read_capabilities(self, vm_id: str) -> Report:
        """Ask the guest init of a WSLC VM for what its kernel publishes; nothing changes.

        Raises:
            NotFoundError: VM_NOT_FOUND.
            PortholeError: See CapabilitiesReader.read.
        """
        vm = self.find(vm_id)
        name, traceparent = Operation.READ_CAPABILITIES, vm.record.facts.traceparent
        with tracing.operation(name, vm_traceparent=traceparent):
            return await vm.reader.read()

    async def apply_capabilities(self, vm_id: str, report: Report) -> Applied:
        """Apply what a session read of a WSLC guest.

        Raises:
            NotFoundError: VM_NOT_FOUND.
            FailedPreconditionError: WRONG_VM_KIND.
            PortholeError: See VmRecord.apply_capabilities.
        """
        vm = self.find(vm_id)

        async def apply() -> Applied:
            vm.record.require(Operation.APPLY_CAPABILITIES)
            vm.record.require_session(Operation.APPLY_CAPABILITIES)
            already_applied = await vm.apply_capabilities(report)
            return Applied(already_applied, vm.record.token or "", vm.record.report or Report())

        return await self._change(vm, Operation.APPLY_CAPABILITIES, apply)

    async def add_share(self, vm_id: str, spec: ShareSpec) -> tuple[Share, bool]:
        """Add a share; see Vm.add_share."""
        vm = self.find(vm_id)
        return await self._change(vm, Operation.ADD_SHARE, lambda: vm.add_share(spec))

    async def remove_share(self, vm_id: str, share_id: str) -> None:
        """Remove a share; see Vm.remove_share."""
        vm = self.find(vm_id)
        await self._change(vm, Operation.REMOVE_SHARE, lambda: vm.remove_share(share_id))

    async def add_device(self, vm_id: str, spec: DeviceSpec, instance_id: str = "") -> GuestDevice:
        """Add a device; see Vm.add_device."""
        vm = self.find(vm_id)
        add = partial(vm.add_device, spec, instance_id)
        return await self._change(vm, Operation.ADD_DEVICE, add)

    async def remove_device(self, vm_id: str, instance_id: str) -> None:
        """Remove a device; see Vm.remove_device."""
        vm = self.find(vm_id)
        await self._change(vm, Operation.REMOVE_DEVICE, lambda: vm.remove_device(instance_id))

    async def configure_networking(self, vm_id: str, request: NetworkRequest) -> Network:
        """Set networking up; see Vm.configure_networking."""
        vm = self.find(vm_id)

        async def configure() -> Network:
            network = await vm.configure_networking(request)
            if network.mode is NetworkingMode.VIRTIO_PROXY:
                vm.forward_ports(partial(self.map_port, vm.vm_id), partial(self._unmap_same, vm))
            return network

        return await self._change(vm, Operation.CONFIGURE_NETWORKING, configure)

    async def map_port(self, vm_id: str, wanted: PortMapping) -> PortMapping:
        """Map a port; see VmPorts.map."""
        vm = self.find(vm_id)
        return await self._change(vm, Operation.MAP_PORT, lambda: vm.ports.map(wanted))

    async def unmap_port(self, vm_id: str, key: PortKey) -> None:
        """End a mapping; see VmPorts.unmap."""
        vm = self.find(vm_id)
        await self._change(vm, Operation.UNMAP_PORT, lambda: vm.ports.unmap(key))

    async def list_ports(self, vm_id: str) -> list[PortMapping]:
        """List the mappings of a VM; see VmPorts.list."""
        return await self.find(vm_id).ports.list()

    async def set_rate_limits(self, vm_id: str, instance_id: str, limits: RateLimits) -> RateLimits:
        """Change how fast frames of an adapter may go; see GuestDevices.set_rate_limits."""
        vm = self.find(vm_id)
        change = partial(vm.devices.set_rate_limits, instance_id, limits)
        return await self._change(vm, Operation.SET_RATE_LIMIT, change)

    async def terminate(self, vm_id: str) -> None:
        """Shut a VM down in order; its devices and memory are gone when this returns.

        It does nothing for a VM that has ended, and does not wait for processes that have no part
        in the guest any more, such as one that exports telemetry.

        Raises:
            PortholeError: See VmRegistry.find.
        """
        await self._finish(self._shut_down(self.find(vm_id), Operation.TERMINATE))

    async def close(self) -> None:
        """Terminate all VMs, each in order, and disconnect when their processes have ended.

        A VM that fails to shut down is logged; the others are waited for all the same.
        """
        self._closing = True
        vms = self.all()
        shutting_down = (self._shut_down(vm, "owner shuts down") for vm in vms)
        ends = await asyncio.gather(*shutting_down, return_exceptions=True)
        for vm, failure in zip(vms, ends, strict=True):
            if failure is not None:
                logger.error("VM %s was not shut down in order", vm.vm_id, exc_info=failure)
        if self._running:
            await asyncio.wait(self._running)
        await self._device_hosts.close()
        if self._surroundings.sweeper is not None:
            await self._surroundings.sweeper.close()

    async def _unmap_same(self, vm: Vm, mapping: PortMapping) -> None:
        await self._change(vm, Operation.UNMAP_PORT, lambda: vm.ports.unmap_same(mapping))

    async def _report(self, vm_id: str, report: Report) -> bool:
        vm = self.find(vm_id)

        async def apply() -> bool:
            await vm.apply_capabilities(report)
            return vm.record.token is not None

        return await self._change(vm, Operation.APPLY_CAPABILITIES, apply)

    async def _change(self, vm: Vm, name: str, work: Callable[[], Awaitable[T]]) -> T:
        async def run() -> T:
            with tracing.operation(name, vm_traceparent=vm.record.facts.traceparent):
                async with vm.lock:
                    return await work()

        return await self._finish(run())

    async def _shut_down(self, vm: Vm, name: str) -> None:
        # Before the lock is taken: an operation that holds it sees this after its present step, and
        # gives up.
        had_ended = vm.record.state is VmState.TERMINATED
        vm.begin_shutdown()
        try:
            with tracing.operation(name, vm_traceparent=vm.record.facts.traceparent):
                async with vm.lock:
                    await vm.shut_down()
        finally:
            # Also after a failure, or it would stay listed for ever.
            if vm.record.state is VmState.TERMINATED:
                self._vms.end(vm.vm_id)
            # What may still export telemetry does not hold up the caller; `close` waits for it.
            if not had_ended:
                self._start(vm.machine.ended())

    def _guest_ended(self, vm: Vm) -> None:
        self._start(self._shut_down(vm, "guest ended"))

    async def _discard(self, vm: Vm) -> None:
        await self._shut_down(vm, "abandon CreateVm")
        # The id may be used again, and with it the sockets that a process removes when it ends.
        await vm.machine.ended()
        self._vms.discard(vm.vm_id)

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.shield(self._start(work))

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            logger.debug("an operation failed: %s", failure)

    def _on_device_status(self, status: DeviceStatus) -> None:
        vm = self._vms.get(status.vm_id)
        if vm is None or vm.devices.find(status.instance_id) is None:
            return
        if status.exhaustion is not None:
            vm.record.publish(DeviceExhausted(status.instance_id, status.tag, status.exhaustion))
        else:
            vm.record.publish(
                DeviceChange(status.instance_id, status.tag, status.state, status.detail)
            )
            if status.link_up is not None:
                vm.devices.report_link(status.instance_id, status.link_up)

    def _on_device_host_stream_end(self, elevated: bool) -> None:
        for vm in self._vms.all():
            for device in vm.devices.all():
                if device.spec.elevated == elevated:
                    cause = "its device host cannot be reached"
                    vm.record.publish(
                        DeviceChange(device.instance_id, device.spec.tag, UNSPECIFIED, cause)
                    )
