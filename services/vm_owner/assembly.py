"""A new VM, put together from what CreateVm requests and what this owner has for all its VMs.

Owns what may be requested, and what follows from it: configuration, sizes, kernel command line.
Must not know the owner's other VMs, or operations.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import AlreadyExistsError, InvalidArgumentError
from services.handshake.sizing import low_ram_bytes
from services.rpc import tracing
from services.vm_owner.allowed_devices import require_device
from services.vm_owner.host_paths import HostPaths
from services.vm_owner.kernel_command_line import kernel_command_line
from services.vm_owner.machines import Isolation
from services.vm_owner.record import VmFacts, VmKind, VmRecord
from services.vm_owner.shares import ShareSpec, require_no_conflict, share_key
from services.vm_owner.sizing import choose_ram, size_pool
from services.vm_owner.verdicts import trace_verdict
from services.vm_owner.vm import BringUpPlan, InitChannel, Vm
from services.vm_owner.wslconfig import parse_wslconfig

if TYPE_CHECKING:
    from pathlib import Path

    from services.vm_owner.capabilities_reader import GuestInit
    from services.vm_owner.device_hosts import DeviceHosts
    from services.vm_owner.machines import Machine
    from services.vm_owner.manifest import Manifest
    from services.vm_owner.reports import Report
    from services.vm_owner.shares import ShareKey
    from services.vm_owner.subnets import SubnetPool
    from services.vm_owner.sweeper import Sweeper

MAX_FIXED_SHARES: Final = 64
"""Most shares that CreateVm accepts."""

MachineFor = Callable[["Path", "MachineSpec"], "Machine"]
OpenInitChannel = Callable[["Path", Callable[["Report"], Awaitable[bool]]], Awaitable[InitChannel]]


@dataclass(frozen=True, slots=True)
class QemuSpec:
    """A machine of QEMU, with a Linux guest.

    Attributes:
        kernel: Path of its kernel; empty: the owner's.
        initramfs: Path of its initramfs; empty: the owner's.
        cpus: Number of virtual CPUs; 0: 1.
        isolation: What its devices are handed of its memory.
    """

    kernel: str = ""
    initramfs: str = ""
    cpus: int = 0
    isolation: Isolation = Isolation.SHARED_RAM


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """The machine that is to run a guest.

    Attributes:
        address: Address of an external machine; empty: another kind.
        qemu: A machine of QEMU; None: another kind.
        kernel_release: `uname -r`; empty: that of the bundled kernel.
        publishes_pool: Whether the kernel publishes its pool; None: its version decides.
    """

    address: str = ""
    kernel_release: str = ""
    publishes_pool: bool | None = None
    qemu: QemuSpec | None = None

    @property
    def divides_pool(self) -> bool:
        """Whether it places the pool of its guest, and divides it among devices."""
        return self.qemu is not None and self.qemu.isolation is Isolation.STRICT


@dataclass(frozen=True, slots=True)
class VmSpec:
    """A VM that CreateVm requests.

    Attributes:
        vm_id: The id that the client has chosen; empty: one is made.
        ram_bytes: Memory of the guest; 0: the configured size, or 2 GiB.
        wslconfig: Text of a .wslconfig file.
        wslconfig_name: Its name, for warnings; empty: ".wslconfig".
        shares: Shares that the VM has from the beginning.
    """

    kind: VmKind
    ram_bytes: int = 0
    wslconfig: str = ""
    wslconfig_name: str = ""
    machine: MachineSpec = MachineSpec()
    shares: tuple[ShareSpec, ...] = ()
    vm_id: str = ""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts and settings that all VMs of this owner use.

    Attributes:
        run_dir: Directory of sockets and per-VM files.
        capabilities_deadline_s: Longest time that a WSL2 guest gets from boot to its report.
        machine_for: Makes the machine of a VM from the VM's directory and the spec.
        open_init_channel: Opens the init channel in a VM's directory; the callback gets reports.
        dial_guest_init: Connects to a guest's init, once it answers.
        host_paths: Looks at the directories that are to be shared.
        sweeper: Removes what VMs have on the host if this process is killed; None: nothing does.
    """

    run_dir: Path
    manifest: Manifest
    subnets: SubnetPool
    capabilities_deadline_s: float
    machine_for: MachineFor
    open_init_channel: OpenInitChannel
    dial_guest_init: Callable[[str], Awaitable[GuestInit]]
    host_paths: HostPaths = field(default_factory=HostPaths)
    sweeper: Sweeper | None = None


def vm_directories(run_dir: Path) -> Path:
    """Return where the directories of an owner's VMs are, named by their ids."""
    return run_dir / "vm"


def assemble(
    spec: VmSpec,
    surroundings: Surroundings,
    device_hosts: DeviceHosts,
    apply_report: Callable[[str, Report], Awaitable[bool]],
) -> Vm:
    """Put a VM together; nothing of it runs yet. The present span is the parent of its spans.

    Args:
        spec: The VM, with an id; its shares are checked.
        surroundings: The parts and settings that all VMs use.
        device_hosts: Both device hosts.
        apply_report: Called with the id of the VM and each report on its init channel; returns
            whether a pool is latched.

    Raises:
        InvalidArgumentError: RAM_BYTES, WSLCONFIG_TOO_LARGE or KERNEL_RELEASE_SYNTAX.
        FailedPreconditionError: VIRTIO_OFF or VIRTIOFS_OFF, for any share.
    """
    vm_id = spec.vm_id
    parsed = parse_wslconfig(spec.wslconfig, spec.wslconfig_name or ".wslconfig")
    config = parsed.config
    for share in spec.shares:
        require_device(config, events.FS, f"share of {share.host_path}")
    ram = choose_ram(spec.ram_bytes, config.memory_bytes)
    size = size_pool(
        ram.bytes, device_bounces=config.device_bounces, explicit_bytes=config.swiotlb_bytes
    )
    release = spec.machine.kernel_release or surroundings.manifest.bundled_kernel_release
    publishes = surroundings.manifest.publishes_pool(release)
    if spec.machine.publishes_pool is not None:
        publishes = spec.machine.publishes_pool
    traceparent = tracing.current_traceparent()
    divides_pool = spec.machine.divides_pool
    facts = VmFacts(
        vm_id=vm_id,
        kind=spec.kind,
        ram_bytes=ram.bytes,
        low_ram_bytes=low_ram_bytes(ram.bytes),
        requested_bytes=size.bytes,
        kernel_command_line=kernel_command_line(
            0 if divides_pool else size.bytes, vm_id, traceparent
        ),
        config=config,
        traceparent=traceparent,
        divides_pool=divides_pool,
    )
    configured = [*parsed.warnings, *(w for w in (ram.warning, size.warning) if w is not None)]
    on_verdict = partial(trace_verdict, spec.kind, time.monotonic())
    record = VmRecord(facts, surroundings.manifest, tracing.emit, configured, on_verdict)
    directory = vm_directories(surroundings.run_dir) / vm_id
    plan = BringUpPlan(
        kernel_release=release,
        publishes_pool=publishes,
        capabilities_deadline_s=surroundings.capabilities_deadline_s,
        shares=spec.shares,
        open_init_channel=lambda: surroundings.open_init_channel(
            directory, lambda report: apply_report(vm_id, report)
        ),
        dial_guest_init=surroundings.dial_guest_init,
    )
    return Vm(
        record,
        surroundings.machine_for(directory, spec.machine),
        device_hosts,
        surroundings.subnets,
        surroundings.host_paths,
        directory,
        surroundings.sweeper,
        plan,
    )


async def check_shares(shares: tuple[ShareSpec, ...], host_paths: HostPaths) -> None:
    """Check the shares that a VM is to have from the beginning.

    Raises:
        InvalidArgumentError: TOO_MANY_SHARES.
        AlreadyExistsError: TAG_EXISTS or SHARE_EXISTS, for two of them.
        PortholeError: See share_key and HostPaths.look.
    """
    if len(shares) > MAX_FIXED_SHARES:
        raise InvalidArgumentError(
            "TOO_MANY_SHARES",
            f"{len(shares)} shares at once, more than {MAX_FIXED_SHARES}; add the rest with "
            "AddShare",
            shares=len(shares),
            limit=MAX_FIXED_SHARES,
        )
    seen: set[str] = set()
    known: dict[ShareKey, ShareSpec] = {}
    for spec in shares:
        key = await host_paths.look(spec.host_path, partial(share_key, spec))
        require_no_conflict(known.setdefault(key, spec), spec)
        if spec.tag and spec.tag in seen:
            raise AlreadyExistsError(
                "TAG_EXISTS", f"two shares have the tag {spec.tag!r}", tag=spec.tag
            )
        seen.add(spec.tag)
