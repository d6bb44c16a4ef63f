"""The architectures of guests: what QEMU emulates for each of them, and what their kernels are.

Owns what differs between them, as data, and the header of a kernel's file, which says whose it is.
So a user who names a kernel need not say more. Must not run anything.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from services.handshake.errors import FailedPreconditionError
from services.handshake.sizing import ARM64_RAM_BASE

HEADER_BYTES: Final = 64
"""How much of a kernel's file `architecture_of` needs."""

_ARM64_MAGIC: Final = b"ARM\x64"  # Documentation/arch/arm64/booting.rst
_ARM64_MAGIC_OFFSET: Final = 56


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture, and the machine that its guests get.

    Attributes:
        name: As `uname -m` has it.
        kernel: What `make kernel` makes, a path below build/kernel.
        image: The directory of what `make guest-image` makes, below .guest/image.
        binary: The program of QEMU.
        package: Debian's package that has it.
        machine: The type of the machine, and its properties.
        console: The kernel's name of the first serial port.
        devices: Devices that only this machine has from the beginning.
        ram_base: The guest-physical address at which RAM begins.
        tcg_cpu: The processor where it is emulated.
        tcg_words: What the kernel is told where it is emulated.
        unplug_deadline_s: Longest that the guest gets to let go of a device.
        isolates: Whether a guest may have strict isolation.
    """

    name: str
    kernel: str
    image: str
    binary: str
    package: str
    machine: str
    console: str
    devices: tuple[str, ...]
    ram_base: int
    tcg_cpu: str
    tcg_words: tuple[str, ...]
    unplug_deadline_s: float
    isolates: bool


X86_64: Final = Architecture(
    name="x86_64",
    kernel="x86_64/vmlinux",
    image="x86_64",
    binary="qemu-system-x86_64",
    package="qemu-system-x86",
    machine="q35,usb=off,vmport=off",
    console="ttyS0",
    devices=("pvpanic",),
    ram_base=0,
    # Without five-level page tables, which no guest of this size needs.
    tcg_cpu="max,la57=off",
    # On a busy host an emulated timer may miss the kernel's check of it, which is then a panic.
    tcg_words=("no_timer_check",),
    unplug_deadline_s=5.0,
    isolates=True,
)

ARM64: Final = Architecture(
    name="aarch64",
    kernel="arm64/Image",
    image="arm64",
    binary="qemu-system-aarch64",
    package="qemu-system-arm",
    # The interrupt controller that QEMU takes otherwise has room for 8 processors.
    machine="virt,gic-version=max",
    console="ttyAMA0",
    devices=(),
    ram_base=ARM64_RAM_BASE,
    tcg_cpu="max",
    tcg_words=(),
    # Without ACPI a device is let go of as if a button was pressed, which may be undone for 5 s.
    unplug_deadline_s=10.0,
    # Pools go by PCI addresses, which no firmware gives out here before the kernel does.
    isolates=False,
)


def host_architecture() -> Architecture:
    """Return this machine's architecture; x86_64 where it is neither."""
    return ARM64 if os.uname().machine == ARM64.name else X86_64


def architecture_of(header: bytes) -> Architecture:
    """Return the architecture that a kernel is for.

    Args:
        header: The beginning of its file, HEADER_BYTES of it.

    Returns:
        ARM64 for an Image. X86_64 for all else: whether it is a kernel, QEMU finds out.
    """
    return ARM64 if header.startswith(_ARM64_MAGIC, _ARM64_MAGIC_OFFSET) else X86_64


def require_strict(architecture: Architecture) -> None:
    """Refuse strict isolation to a guest whose devices would not find their pools.

    Raises:
        FailedPreconditionError: ISOLATION_ARCHITECTURE.
    """
    if not architecture.isolates:
        raise FailedPreconditionError(
            "ISOLATION_ARCHITECTURE",
            f"there is no strict isolation for guests of {architecture.name} yet; leave it out, or "
            "boot a kernel for x86_64",
            architecture=architecture.name,
        )
