"""The QEMU machine: boots a Linux guest, attaches devices to it, and ends it.

Owns the order of these. Guest init runs in a process of its own on this host: it speaks with
process 1 of the guest over a serial port, and serves GuestInit and GuestControl. So what a guest
says is parsed there, and neither here nor in the owner.

A share is mounted in the guest at /mnt/<tag>, and a mount that succeeds is how its probing is
noticed; an adapter that is configured is, likewise.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import dataclass
from hashlib import blake2s
from typing import TYPE_CHECKING, Any, Final

from services.handshake import events
from services.handshake.errors import DeadlineExceededError, PortholeError, UnavailableError
from services.vm_owner.machines import GuestInitEnd, Placement
from services.vm_owner.machines.qemu.architecture import X86_64, require_strict
from services.vm_owner.machines.qemu.command_line import Hardware, Wiring, command_line
from services.vm_owner.machines.qemu.control import SHARES, Adapter
from services.vm_owner.machines.qemu.guest_memory import GuestMemory, place_pools
from services.vm_owner.machines.qemu.hot_plug import FsDevice, HotPlug, NetDevice
from services.vm_owner.machines.qemu.image import one_initramfs
from services.vm_owner.machines.qemu.installation import (
    Accelerator,
    choose_accelerator,
    find_qemu,
)
from services.vm_owner.machines.qemu.ports import Ports
from services.vm_owner.machines.qemu.running import GuestPaths, RunningGuest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
    from pathlib import Path

    from services.vm_owner.machines import AttachSpec, BootSpec, MachineReport
    from services.vm_owner.machines.qemu.control import GuestControl
    from services.vm_owner.machines.qemu.image import GuestImage
    from services.vm_owner.machines.qemu.installation import Installation

logger = logging.getLogger(__name__)

PROBE_DEADLINE_S: Final = 10.0
"""Longest that the guest gets to probe a device that was plugged in."""

UNMOUNT_DEADLINE_S: Final = 3.0
"""Longest that the guest gets to unmount a share."""

KVM_WORDS_S: Final = 5.0
"""Longest that a guest's kernel gets until its first words, where KVM is tried. They come within
half a second; under a KVM that is itself emulated badly, they never do."""


@dataclass(frozen=True, slots=True)
class QemuSettings:
    """What an owner's QEMU machines have in common.

    Attributes:
        binary: Name or path of QEMU; empty: that of the guest's architecture.
        accelerator: How guests are executed; None: by KVM, if this process may use it.
        boot_deadline_s: Longest time from the start of QEMU until the guest's init speaks.
        environment: PORTHOLE_ variables for guest init's process.
        dial: Connects to guest init at an address within a time, once the guest has spoken.
        init_command: How to run guest init's process, without its flags.
    """

    binary: str
    accelerator: Accelerator | None
    boot_deadline_s: float
    environment: Mapping[str, str]
    dial: Callable[[str, float], Coroutine[Any, Any, GuestControl]]
    init_command: tuple[str, ...] = (sys.executable, "-m", "services.guest_init")


class QemuMachine:
    """A Linux guest that QEMU runs.

    Args:
        vm_dir: Directory of the VM: sockets and logs.
        find_image: Finds the files that the guest boots, or raises a PortholeError.
        cpus: Number of virtual CPUs.
        settings: What all machines have in common.
    """

    address: Final = ""
    """It serves no porthole.machine.v1.Machine."""

    def __init__(
        self,
        vm_dir: Path,
        find_image: Callable[[], GuestImage],
        cpus: int,
        settings: QemuSettings,
    ) -> None:
        self._paths = GuestPaths(vm_dir)
        self._find_image = find_image
        self._cpus = cpus
        self._settings = settings
        self._memory = GuestMemory(0)
        self._guest, self._hot_plug = self._new_guest()
        self._control: GuestControl | None = None
        self._mounts: dict[str, str] = {}
        self._installation: Installation | None = None
        self._image: GuestImage | None = None
        self._architecture = X86_64
        self._accelerator = Accelerator.TCG
        self._on_end: Callable[[str], None] = lambda _: None
        self._watch: asyncio.Task[None] | None = None
        self._meeting: asyncio.Task[None] | None = None
        self._init_end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def ram_base(self) -> int:
        """The guest-physical address at which RAM begins, by the kernel that `start` found."""
        return self._architecture.ram_base

    async def start(self, on_end: Callable[[str], None]) -> None:
        """Look for what a boot needs.

        Raises:
            FailedPreconditionError: QEMU_NOT_FOUND, QEMU_TOO_OLD, GUEST_KERNEL_MISSING, or
                GUEST_IMAGE_MISSING.
        """
        self._image = await asyncio.to_thread(self._find_image)
        self._architecture = self._image.architecture
        self._installation = await find_qemu(self._architecture, self._settings.binary)
        self._accelerator = choose_accelerator(self._settings.accelerator, self._architecture)
        self._on_end = on_end

    async def boot(self, spec: BootSpec) -> str:
        """Boot the guest; returns the address at which its init serves GuestInit.

        Where KVM was not asked for, and the guest ends before it has said anything or says nothing
        for KVM_WORDS_S, it is emulated: there are hosts whose KVM runs no guest.

        A guest that is to report by itself, and whose init does not speak in time, goes on without
        it: whatever runs in there may use the devices that are plugged in.

        Raises:
            InvalidArgumentError: ISOLATION_POOL.
            FailedPreconditionError: ISOLATION_ARCHITECTURE.
            UnavailableError: GUEST_ENDED, with the last lines of what ended.
            DeadlineExceededError: GUEST_BOOT_DEADLINE, with those of the guest's console, unless
                the guest is to report by itself.
        """
        if self._installation is None or self._image is None:
            raise UnavailableError("GUEST_ENDED", "the machine was not started")
        if spec.divided_pool_bytes is None:
            self._memory = GuestMemory(spec.ram_bytes)
        else:
            require_strict(self._architecture)
            self._memory = place_pools(spec.ram_bytes, spec.divided_pool_bytes)
        self._guest, self._hot_plug = self._new_guest()
        initramfs = await asyncio.to_thread(self._write_files, spec, self._image)
        try:
            await self._boot(spec, self._installation, self._image.kernel, initramfs)
        except (UnavailableError, DeadlineExceededError) as failure:
            if not self._tries_kvm or self._guest.console.last_lines():
                raise
            logger.warning(
                "guests run by emulation (TCG): KVM fails: %s; PORTHOLE_QEMU_ACCEL=tcg does not "
                "try it",
                failure.message,
            )
            await self._guest.end(None)
            await self._guest.init_ended()  # its address is needed again
            self._guest, self._hot_plug = self._new_guest()
            self._accelerator = Accelerator.TCG
            await self._boot(spec, self._installation, self._image.kernel, initramfs)
        self._watch = asyncio.create_task(self._report_end())
        return self._paths.guest_init

    async def _boot(
        self, spec: BootSpec, installation: Installation, kernel: Path, initramfs: Path
    ) -> None:
        hardware = Hardware(self._architecture, self._memory, self._cpus, self._accelerator)
        words = spec.kernel_command_line

        def command(wiring: Wiring) -> list[str]:
            return command_line(
                installation, spec.vm_id, hardware, kernel, initramfs, words, wiring
            )

        owner = spec.init_channel_address
        init_command = [
            *self._settings.init_command,
            f"--cmdline-file={self._paths.kernel_command_line}",
            *([f"--owner={owner}"] if owner else []),
        ]
        await self._guest.start(command, init_command, self._settings.environment)
        if self._tries_kvm:
            await self._guest.await_words(KVM_WORDS_S)
        try:
            await self._meet_init()
        except DeadlineExceededError as silence:
            if not owner:
                raise
            logger.warning("VM %s: %s", spec.vm_id, silence.message)
            self._meeting = asyncio.create_task(self._meet_late_init())

    @property
    def _tries_kvm(self) -> bool:
        return self._settings.accelerator is None and self._accelerator is Accelerator.KVM

    async def _meet_init(self) -> None:
        self._control = await self._guest.await_init(
            self._settings.dial, self._settings.boot_deadline_s
        )

    async def _meet_late_init(self) -> None:
        while self._control is None:
            try:
                await self._meet_init()
            except DeadlineExceededError:
                continue
            except PortholeError as failure:
                logger.info("the guest's init is of no use: %s", failure.message)
                return

    def _new_guest(self) -> tuple[RunningGuest, HotPlug]:
        guest = RunningGuest(self._paths, self._on_event)
        return guest, HotPlug(guest.monitor, Ports(self._memory.ports))

    def reserve(self, instance_id: str) -> Placement:
        """Take a port for a device.

        Raises:
            ResourceExhaustedError: GUEST_PORTS_EXHAUSTED.
        """
        return Placement(self._memory.pool_of(self._hot_plug.reserve(instance_id)))

    def give_back(self, instance_id: str) -> None:
        """Give back the port of a device that was never attached."""
        self._hot_plug.give_back(instance_id)

    async def attach_device(self, spec: AttachSpec) -> None:
        """Attach a device, and mount or configure it; the guest uses it when this returns.

        In a guest whose init has not spoken it is attached, and nothing more.

        After a failure, `detach_device` removes what is left of it.

        Raises:
            ResourceExhaustedError: GUEST_PORTS_EXHAUSTED.
            PortholeError: See Monitor.execute, and GuestControl.
        """
        self._guest.require_running()
        device: FsDevice | NetDevice
        if spec.device_class == events.FS:
            device = FsDevice(spec.tag, spec.queues)
        else:
            device = NetDevice(
                spec.mac_address or _mac_of(spec.instance_id), self._vectors(), spec.mtu
            )
        await self._hot_plug.plug(spec.instance_id, spec.socket_path, device)
        if self._control is not None:
            await self._set_up(spec, device, self._control)

    async def _set_up(
        self, spec: AttachSpec, device: FsDevice | NetDevice, control: GuestControl
    ) -> None:
        if isinstance(device, FsDevice):
            target = self._mounts[spec.instance_id] = f"{SHARES}/{device.tag}"
            await control.mount(device.tag, target, PROBE_DEADLINE_S)
            return
        given = (spec.client_address, spec.client_address_ipv6)
        adapter = Adapter(
            device.mac_address,
            spec.tag,
            tuple(address for address in given if address),
            spec.gateway_address,
            spec.name_servers,
        )
        await control.configure_adapter(adapter, PROBE_DEADLINE_S)

    async def set_link(self, instance_id: str, is_up: bool) -> None:
        """Have the guest see the link of an adapter come or go.

        Raises:
            PortholeError: See Monitor.execute.
        """
        if self._guest.is_running:
            await self._hot_plug.set_link(instance_id, is_up)

    async def release_device(self, instance_id: str) -> None:
        """Have the guest let go of a device while the device still answers."""
        if not self._guest.is_running:
            return
        try:
            await self._let_go(instance_id)
        except PortholeError as failure:
            logger.warning("device %s: %s", instance_id, failure.message)

    async def detach_device(self, instance_id: str) -> None:
        """Detach a device.

        Raises:
            DeadlineExceededError: GUEST_KEEPS_DEVICE: the guest does not let go of it.
            PortholeError: See Monitor.execute.
        """
        self._guest.require_running()
        await self._let_go(instance_id)

    async def watch(self) -> AsyncIterator[MachineReport]:
        """Stream the end of guest init. What the guest's kernel uses up is not known here."""
        yield GuestInitEnd(await asyncio.shield(self._init_end))
        await asyncio.Event().wait()

    def last_words(self) -> str:
        """Return the last lines of the guest's console."""
        return self._guest.console.last_lines()

    async def stop(self) -> None:
        """Power the guest off, and end QEMU, by force if need be."""
        tasks = [task for task in (self._watch, self._meeting) if task is not None]
        self._watch = self._meeting = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        control, self._control = self._control, None
        await self._guest.end(control)
        if control is not None:
            await control.close()

    async def ended(self) -> None:
        """Wait for the process of guest init, which may export telemetry."""
        await self._guest.init_ended()

    async def _let_go(self, instance_id: str) -> None:
        if instance_id not in self._hot_plug:
            return
        # A share whose device is gone is unplugged first: its unmounting would wait for the device.
        target = self._mounts.pop(instance_id, "")
        alive = bool(target) and await self._hot_plug.is_connected(instance_id)
        if alive:
            await self._unmount(target)
        try:
            await self._hot_plug.unplug(instance_id, self._architecture.unplug_deadline_s)
        finally:
            if target and not alive:
                await self._unmount(target)

    async def _unmount(self, target: str) -> None:
        if self._control is None:
            return
        try:
            await self._control.unmount(target, UNMOUNT_DEADLINE_S)
        except PortholeError as failure:
            logger.info("%s was not unmounted in the guest: %s", target, failure.message)

    async def _report_end(self) -> None:
        cause, init_only = await self._guest.wait_for_end()
        if init_only:
            self._init_end.set_result(cause)
        else:
            self._on_end(cause)

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "DEVICE_DELETED":
            self._hot_plug.on_deleted(str(data.get("device", "")))

    def _write_files(self, spec: BootSpec, image: GuestImage) -> Path:
        self._paths.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Guest init takes the trace to continue from there, as it does in a guest.
        self._paths.kernel_command_line.write_text(spec.kernel_command_line)
        return one_initramfs(image, self._paths.directory)

    def _vectors(self) -> int | None:
        # Without KVM, QEMU 7.2 crashes in msix_set_vector_notifiers of a vhost-user adapter.
        return 0 if self._accelerator is Accelerator.TCG else None


def _mac_of(instance_id: str) -> str:
    # Locally administered: bit 1 of the first byte.
    return ":".join(
        f"{byte:02x}"
        for byte in (0x52, 0x54, *blake2s(instance_id.encode(), digest_size=4).digest())
    )
