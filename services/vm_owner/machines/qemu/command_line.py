"""The command line of QEMU, and what it adds to the kernel's.

Owns the machine that a guest sees: processors, ports, console, channel; its memory is that of
guest_memory. It is data: nothing is looked at or run here.

Devices are plugged in later, so the machine starts with none but the serial port of the channel,
which QEMU serves itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.vm_owner.machines.qemu.architecture import X86_64
from services.vm_owner.machines.qemu.installation import Accelerator
from services.vm_owner.machines.qemu.ports import FIRST_SLOT, PORTS_PER_SLOT, port_id

if TYPE_CHECKING:
    from pathlib import Path

    from services.vm_owner.machines.qemu.architecture import Architecture
    from services.vm_owner.machines.qemu.guest_memory import GuestMemory
    from services.vm_owner.machines.qemu.installation import Installation

CHANNEL: Final = "org.porthole.init.0"
"""The name of the port in the guest over which its init is reached."""

_END_ARGUMENTS: Final = "panic=-1 reboot=t"
"""A guest that panics resets at once, and QEMU ends with it."""

_SANDBOX: Final = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_SLOW_COPIES: Final = ("fsrs", "fzrm", "fsrm", "erms")
"""String instructions that a kernel takes for fast, and that are slow under TCG: it then zeroes
memory three times as slowly. QEMU knows all four since version 10."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """The hardware of a guest.

    Attributes:
        cpus: Number of virtual CPUs.
        accelerator: How its instructions are executed.
    """

    architecture: Architecture
    memory: GuestMemory
    cpus: int
    accelerator: Accelerator

    @property
    def possible_cpus(self) -> int:
        """The most virtual CPUs that this machine could have.

        For a machine that can have one only, TCG translates atomic operations and barriers to plain
        loads and stores (CF_PARALLEL, in QEMU's accel/tcg). The devices are processes beside the
        guest, so a driver would miss completions, and a device requests.
        """
        return max(self.cpus, 2) if self.accelerator is Accelerator.TCG else self.cpus


@dataclass(frozen=True, slots=True)
class Wiring:
    """What connects QEMU to this process.

    Attributes:
        console_fd: A connected socket that gets the guest's console.
        monitor_fd: A connected socket for QMP.
        channel_path: Where QEMU listens for the guest's init channel.
    """

    console_fd: int
    monitor_fd: int
    channel_path: Path


def kernel_arguments(owners: str, hardware: Hardware) -> str:
    """Return the kernel command line: the owner's, and what this machine needs."""
    architecture = hardware.architecture
    console = f"console={architecture.console}"
    added = [*hardware.memory.kernel_words, console, _END_ARGUMENTS]
    if hardware.accelerator is Accelerator.TCG:
        added += architecture.tcg_words
    return " ".join([owners, *added]).strip()


def command_line(
    installation: Installation,
    vm_id: str,
    hardware: Hardware,
    kernel: Path,
    initramfs: Path,
    kernel_command_line: str,
    wiring: Wiring,
) -> list[str]:
    """Return the program and arguments of QEMU.

    Args:
        installation: The QEMU that is run.
        vm_id: UUID of the VM, which becomes the guest's system UUID.
        hardware: The hardware that the guest has.
        kernel: The file of its kernel.
        initramfs: The file of its initramfs.
        kernel_command_line: As the VM owner wrote it.
        wiring: What connects QEMU to this process.
    """
    architecture, memory = hardware.architecture, hardware.memory
    accelerator = hardware.accelerator
    return [
        installation.binary,
        *("-name", f"porthole-{vm_id}", "-uuid", vm_id),
        *("-no-user-config", "-nodefaults", "-display", "none", "-no-reboot"),
        *("-sandbox", _SANDBOX),
        *("-machine", f"{architecture.machine}{memory.machine_properties}"),
        *("-accel", accelerator, "-cpu", _cpu(installation, hardware)),
        *("-smp", f"{hardware.cpus},maxcpus={hardware.possible_cpus}"),
        *memory.arguments(hardware.possible_cpus),
        *("-kernel", str(kernel), "-initrd", str(initramfs)),
        *("-append", kernel_arguments(kernel_command_line, hardware)),
        *("-chardev", f"socket,id=console,fd={wiring.console_fd}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=monitor,fd={wiring.monitor_fd}"),
        *("-mon", "chardev=monitor,mode=control"),
        *("-device", "virtio-serial-pci,id=serial,addr=2"),
        *("-chardev", f"socket,id=init,path={_escaped(wiring.channel_path)},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=init,bus=serial.0,name={CHANNEL}"),
        *(word for device in architecture.devices for word in ("-device", device)),
        *_ports(memory.ports),
    ]


def _cpu(installation: Installation, hardware: Hardware) -> str:
    if hardware.accelerator is Accelerator.KVM:
        return "host"
    items = [hardware.architecture.tcg_cpu]
    if hardware.architecture is X86_64 and installation.version >= (10, 0):
        items += [f"{feature}=off" for feature in _SLOW_COPIES]
    return ",".join(items)


def _ports(count: int) -> list[str]:
    arguments: list[str] = []
    for port in range(count):
        slot, function = divmod(port, PORTS_PER_SLOT)
        first = ",multifunction=on" if function == 0 else ""
        arguments += [
            "-device",
            # There is I/O space for 16 ports only, and a modern virtio device needs none.
            f"pcie-root-port,id={port_id(port)},chassis={port + 1},io-reserve=0,"
            f"addr={FIRST_SLOT + slot:x}.{function:x}{first}",
        ]
    return arguments


def _escaped(path: Path) -> str:
    # A comma ends a value, and two stand for one.
    return str(path).replace(",", ",,")
