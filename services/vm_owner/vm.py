"""One virtual machine and its parts: record, machine, init channel, devices, shares, network.

Owns the order in which the parts are brought up and taken down (handshake.md section 10). owner.py
finds, creates and traces VMs. The caller holds `lock` where a docstring says so. The lock
serialises the changes of this VM; no other VM waits for it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

from services.handshake import events
from services.handshake.errors import PortholeError, UnavailableError
from services.rpc.removal import remove_tree
from services.vm_owner.allowed_devices import require_device
from services.vm_owner.capabilities_reader import CapabilitiesReader
from services.vm_owner.client_ids import check_instance_id, require_same
from services.vm_owner.device_hosts import WATCH_RETRY_S
from services.vm_owner.guest_devices import DeviceSpec, GuestDevices, announcement
from services.vm_owner.localhost_forwarding import LocalhostForwarding
from services.vm_owner.machines import BootSpec, GuestInitEnd
from services.vm_owner.networking import NetworkEngine
from services.vm_owner.operations import Operation
from services.vm_owner.record import VmKind
from services.vm_owner.states import VmEvent, VmState
from services.vm_owner.vm_ports import VmPorts
from services.vm_owner.vm_shares import VmShares
from services.vm_owner.warnings import guest_ended, guest_init_ended, guest_init_silent
from services.vm_owner.watch_items import DeviceExhausted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from services.handshake.ports import PortMapping
    from services.vm_owner.capabilities_reader import GuestInit
    from services.vm_owner.device_hosts import DeviceHosts
    from services.vm_owner.guest_devices import GuestDevice
    from services.vm_owner.host_paths import HostPaths
    from services.vm_owner.machines import Machine
    from services.vm_owner.networking import Network, NetworkRequest
    from services.vm_owner.record import VmRecord
    from services.vm_owner.reports import Report
    from services.vm_owner.shares import Share, ShareSpec
    from services.vm_owner.subnets import SubnetPool
    from services.vm_owner.sweeper import Sweeper
    from services.vm_owner.warnings import VmWarning

logger = logging.getLogger(__name__)


class InitChannel(Protocol):
    """The channel that the guest init of one VM reports to."""

    @property
    def address(self) -> str:
        """Address that it listens on."""

    async def close(self) -> None:
        """Stop listening."""


@dataclass(frozen=True, slots=True)
class BringUpPlan:
    """The parameters of bringing a VM up.

    Attributes:
        kernel_release: `uname -r` of its kernel.
        publishes_pool: Whether its kernel publishes the pool that it reserves.
        capabilities_deadline_s: Longest time that a WSL2 guest gets from boot to its report.
        shares: Shares that it has from the beginning.
        open_init_channel: Opens the channel that a WSL2 guest's init reports to.
        dial_guest_init: Connects to the init of a WSLC guest, once it answers.
    """

    kernel_release: str
    publishes_pool: bool
    capabilities_deadline_s: float
    shares: tuple[ShareSpec, ...]
    open_init_channel: Callable[[], Awaitable[InitChannel]]
    dial_guest_init: Callable[[str], Awaitable[GuestInit]]


class Vm:
    """A VM and its parts.

    Args:
        record: Its record.
        machine: The machine that runs its guest.
        device_hosts: Both device hosts.
        subnets: Subnets for its adapters.
        host_paths: Looks at the directories that are to be shared.
        directory: Directory of its files; removed when it ends.
        sweeper: Removes what it has on the host if this process is killed; None: nothing does.
        plan: The parameters of bringing it up.

    Attributes:
        lock: Held by every operation that changes this VM.
        shares: Its shares.
        ports: Its ports on the host.
        reader: Reads the capabilities of a WSLC guest.
        guest_init_address: Where its init serves GuestInit; empty before boot and after the end.
    """

    def __init__(
        self,
        record: VmRecord,
        machine: Machine,
        device_hosts: DeviceHosts,
        subnets: SubnetPool,
        host_paths: HostPaths,
        directory: Path,
        sweeper: Sweeper | None,
        plan: BringUpPlan,
    ) -> None:
        self.record = record
        self.machine = machine
        self.devices = GuestDevices(record, device_hosts, machine)
        self.shares = VmShares(record, self.devices, device_hosts, host_paths, plan.shares)
        self.reader = CapabilitiesReader(record, plan.dial_guest_init)
        self.guest_init_address = ""
        self.lock = asyncio.Lock()
        self._device_hosts = device_hosts
        self._network = NetworkEngine(record, self.devices, subnets)
        self.ports = VmPorts(record, self.devices, device_hosts)
        self._directory = directory
        self._sweeper = sweeper
        self._plan = plan
        self._init_channel: InitChannel | None = None
        self._guest_end = ""
        self._init_end: events.Event | None = None
        self._machine_watch: asyncio.Task[None] | None = None
        self._forwarding: LocalhostForwarding | None = None

    @property
    def vm_id(self) -> str:
        """UUID of the VM."""
        return self.record.vm_id

    async def bring_up(self, on_guest_end: Callable[[], None]) -> None:
        """Boot the guest and wait for its init. For a WSL2 VM, add its shares. Takes the lock.

        When this returns, the init of a WSL2 guest has reported, or had the time to; that of a
        WSLC guest answers.

        After a failure the caller shuts the VM down.

        Args:
            on_guest_end: Called when the guest ends by itself; the VM already refuses new devices.

        Raises:
            UnavailableError: The machine does not start, GUEST_INIT_UNREACHABLE, or VM_ENDED_EARLY.
            DeadlineExceededError: The guest does not boot in time.
        """
        async with self.lock:
            await self._boot(on_guest_end)
        if self.record.facts.kind is VmKind.WSL2:
            await self._wait_for_capabilities()
            async with self.lock:
                await self.shares.add_pending()
            self._require_not_ended()

    async def apply_capabilities(self, report: Report) -> bool:
        """Apply what the guest reported; see VmRecord.apply_capabilities. The lock is held.

        The pending shares of a WSLC VM are added once it is RUNNING, with or without a pool.
        """
        before = self.record.report
        try:
            return self.record.apply_capabilities(report)
        finally:
            if self.record.report != before:
                await self._device_hosts.announce(announcement(self.record))
            if self.record.facts.kind is VmKind.WSLC and self.record.state is VmState.RUNNING:
                await self.shares.add_pending()

    async def add_share(self, spec: ShareSpec) -> tuple[Share, bool]:
        """Add a share; see VmShares.add. The lock is held."""
        return await self.shares.add(spec)

    async def remove_share(self, share_id: str) -> None:
        """Remove a share; see VmShares.remove. The lock is held."""
        await self.shares.remove(share_id)

    async def add_device(self, spec: DeviceSpec, instance_id: str = "") -> GuestDevice:
        """Add a device. The lock is held.

        Args:
            spec: The device.
            instance_id: Its id; a device that was added with it and this spec is returned. Empty:
                one is made.

        Raises:
            InvalidArgumentError: INSTANCE_ID_SYNTAX.
            AlreadyExistsError: DEVICE_EXISTS, for another spec; it names the fields that differ.
            PortholeError: See GuestDevices.add.
        """
        self.record.require(Operation.ADD_DEVICE)
        asked = f"{Operation.ADD_DEVICE} for VM {self.vm_id}"
        require_device(self.record.facts.config, spec.device_class, asked, vm_id=self.vm_id)
        if instance_id:
            check_instance_id(instance_id)
            known = self.devices.find(instance_id)
            if known is not None:
                require_same("DEVICE_EXISTS", f"device {instance_id}", known.spec, spec)
                return known
        return await self.devices.add(spec, instance_id)

    async def remove_device(self, instance_id: str) -> None:
        """Remove a device and its shares. The lock is held.

        Raises:
            NotFoundError: DEVICE_NOT_FOUND.
        """
        self.record.require(Operation.REMOVE_DEVICE)
        await self.devices.remove(instance_id)
        self.shares.forget_device(instance_id)

    async def configure_networking(self, request: NetworkRequest) -> Network:
        """Set networking up. The lock is held.

        Raises:
            PortholeError: See NetworkEngine.configure.
        """
        self.record.require(Operation.CONFIGURE_NETWORKING)
        return await self._network.configure(request)

    def forward_ports(
        self,
        map_port: Callable[[PortMapping], Awaitable[PortMapping]],
        unmap_port: Callable[[PortMapping], Awaitable[None]],
    ) -> None:
        """Map the ports on which the guest listens from now on, if its configuration says so.

        The lock is held: `shut_down` ends what this has begun.

        Args:
            map_port: Maps a port, as an operation of its own.
            unmap_port: Ends that very mapping, likewise; see VmPorts.unmap_same.
        """
        if not self.record.facts.config.localhost_forwarding or self._forwarding is not None:
            return
        dial = partial(self._plan.dial_guest_init, self.guest_init_address)
        self._forwarding = LocalhostForwarding(self.record, dial, map_port, unmap_port)
        self._forwarding.start()

    def begin_shutdown(self) -> None:
        """Refuse new devices from now on, even to an operation that holds the lock."""
        if self.record.state not in (VmState.SHUTTING_DOWN, VmState.TERMINATED):
            self.record.fire(VmEvent.SHUT_DOWN)

    async def shut_down(self) -> None:
        """Take the VM down in order: networking, devices, machine. The lock is held.

        Each part is taken down even if the one before it failed. A second call does nothing.
        """
        if self.record.state is VmState.TERMINATED:
            return
        self.begin_shutdown()
        if self._init_end is not None:
            # Here, and not where it was noticed: this is in an operation of the VM's trace.
            self.record.emit(self._init_end)
            self._init_end = None
        # The stack unwinds in reverse order, and to the end even when a callback raises.
        async with AsyncExitStack() as parts:
            parts.callback(self._mark_terminated)
            if self._sweeper is not None:
                parts.callback(self._sweeper.end, self.vm_id)
            parts.push_async_callback(asyncio.to_thread, self._remove_directory)
            parts.push_async_callback(self._close_init_channel)
            parts.push_async_callback(self.machine.stop)
            parts.push_async_callback(self.reader.close)
            parts.push_async_callback(self._stop_watching)
            parts.push_async_callback(self.devices.shut_down)
            parts.push_async_callback(self._network.shut_down)
            if self._forwarding is not None:
                parts.push_async_callback(self._forwarding.close)

    def _remove_directory(self) -> None:
        for path, why in remove_tree(self._directory).items():
            logger.warning("VM %s: %s is left: %s", self.vm_id, path, why)

    async def _boot(self, on_guest_end: Callable[[], None]) -> None:
        def ended(why: str) -> None:
            self._end_with(guest_ended(why), why)
            on_guest_end()

        facts = self.record.facts
        if self._sweeper is not None:
            await self._sweeper.begin(facts.vm_id)
        if facts.kind is VmKind.WSL2:
            self._init_channel = await self._plan.open_init_channel()
        self._require_not_ended()
        await self.machine.start(ended)
        self._require_not_ended()
        self.record.ram_base = self.machine.ram_base
        # The task has a context of its own: it outlives the operation and belongs to no VM's trace.
        self._machine_watch = asyncio.create_task(
            self._watch_machine(on_guest_end), context=contextvars.Context()
        )
        self.guest_init_address = await self.machine.boot(
            BootSpec(
                vm_id=facts.vm_id,
                ram_bytes=facts.ram_bytes,
                kernel_command_line=facts.kernel_command_line,
                init_channel_address=self._init_channel.address if self._init_channel else "",
                kernel_release=self._plan.kernel_release,
                publishes_pool=self._plan.publishes_pool,
                divided_pool_bytes=facts.requested_bytes if facts.divides_pool else None,
            )
        )
        self._require_not_ended()
        if facts.kind is VmKind.WSLC:
            await self.reader.connect(self.guest_init_address)
            self._require_not_ended()
        self.record.emit(events.guest_booted(facts.vm_id, self.record.ram_base))
        self.record.fire(VmEvent.BOOT)

    async def _wait_for_capabilities(self) -> None:
        """Wait until the guest has reported. One that does not in time runs without a pool."""
        deadline_s = self._plan.capabilities_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                with self.record.watch() as stream:
                    async for event in stream:
                        if event is VmState.RUNNING:
                            return
                        self._require_not_ended()
        except TimeoutError:
            # The report may have come in that very moment.
            if self.record.state is VmState.BOOTED:
                self.record.warn(guest_init_silent(deadline_s, self.machine.last_words()))
                self.record.fire(VmEvent.MISS_CAPABILITIES)

    def _end_with(self, warning: VmWarning, why: str) -> None:
        self._guest_end = why
        self.record.warn(warning)
        self.begin_shutdown()

    async def _watch_machine(self, on_guest_end: Callable[[], None]) -> None:
        """Publish what the machine reports, if it does, and end with guest init."""
        while True:
            try:
                async for report in self.machine.watch():
                    if isinstance(report, GuestInitEnd):
                        self._end_with_init(report.cause, on_guest_end)
                        continue
                    device = self.devices.find(report.instance_id)
                    tag = device.spec.tag if device else ""
                    self.record.publish(DeviceExhausted(report.instance_id, tag, report.exhaustion))
            except PortholeError as failure:
                logger.debug("VM %s: its machine reports nothing: %s", self.vm_id, failure)
                if failure.reason == "METHOD_UNIMPLEMENTED":
                    return
            await asyncio.sleep(WATCH_RETRY_S)

    def _end_with_init(self, cause: str, on_guest_end: Callable[[], None]) -> None:
        """Shut the VM down, as a guest whose process 1 is gone cannot go on."""
        if self.record.state in (VmState.SHUTTING_DOWN, VmState.TERMINATED):
            return
        warning = guest_init_ended(cause)
        logger.error("VM %s: %s", self.vm_id, warning.text)
        self._init_end = events.guest_init_ended(self.vm_id, cause)
        self._end_with(warning, f"guest init ended with {cause}")
        on_guest_end()

    async def _stop_watching(self) -> None:
        if self._machine_watch is not None:
            self._machine_watch.cancel()
            await asyncio.wait([self._machine_watch])

    def _require_not_ended(self) -> None:
        if self.record.state in (VmState.SHUTTING_DOWN, VmState.TERMINATED):
            why = self._guest_end or "it was terminated"
            raise UnavailableError(
                "VM_ENDED_EARLY",
                f"VM {self.vm_id} ended while it was being created: {why}",
                vm_id=self.vm_id,
            )

    async def _close_init_channel(self) -> None:
        if self._init_channel is not None:
            await self._init_channel.close()

    def _mark_terminated(self) -> None:
        self.shares.clear()
        self.guest_init_address = ""
        self.record.report = None  # a guest must not take the owner's memory after its end
        self.record.emit_end()
        self.record.fire(VmEvent.TERMINATE)
