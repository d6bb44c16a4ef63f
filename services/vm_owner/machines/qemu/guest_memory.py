"""The memory of a guest: all of it shared with devices, or private but for a pool of each port.

Owns where the pools are, how the requested size is divided among them, and the arguments of QEMU
and of the guest's kernel that follow. It is data: nothing is looked at or run here.

With shared memory the kernel places its pool. With strict isolation it is placed here: a memory
file for each port, between two pieces of private memory. QEMU hands every device all files, and
private memory to none. So a device gets nothing but pools, of which it keeps its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import POOL_ALIGN_BYTES, Gpa, SwiotlbPool, reserved_pool_bytes
from services.vm_owner.machines.qemu.ports import PORTS, pci_address
from services.wire.vhost_user import MAX_TABLE_REGIONS

POOLS_BASE: Final = 128 << 20
"""Where the first pool begins. QEMU puts the kernel at 16 MiB."""

LEAST_END_BYTES: Final = 64 << 20
"""Least memory behind the pools: QEMU puts the initramfs and ACPI tables at the end of what is
below 4 GiB."""

LOW_RAM_BYTES: Final = 2 << 30
"""How much memory a machine has below 4 GiB at least, if it has as much (QEMU: hw/i386/pc_q35.c,
pc_q35_init: 2 GiB from 2.75 GiB on, all of it below that)."""

MOST_POOLS: Final = MAX_TABLE_REGIONS
"""Pools of a machine: a front-end tells each device of all of them, in one table."""

LEAST_POOL_BYTES: Final = 4 << 20
"""Least size of a port's pool: rings, and requests of 256 KiB from several processors."""


@dataclass(frozen=True, slots=True)
class GuestMemory:
    """The memory of one guest.

    Attributes:
        ram_bytes: All of it, a multiple of 1 MiB.
        pools: The pool of each port, by rising address and without a gap; none: devices may be
            plugged into all ports, and all memory is shared with them.
    """

    ram_bytes: int
    pools: tuple[SwiotlbPool, ...] = ()

    @property
    def ports(self) -> int:
        """How many devices may be plugged in."""
        return len(self.pools) or PORTS

    def pool_of(self, port: int) -> SwiotlbPool | None:
        """Return the pool that the device at a port has for itself; None: all use the same."""
        return self.pools[port] if self.pools else None

    @property
    def kernel_words(self) -> list[str]:
        """What the kernel is told of the pools; nothing: the owner asks it for one."""
        if not self.pools:
            return []
        places = (
            f"{pool.size_bytes}@0x{pool.base:x}/{pci_address(port)}"
            for port, pool in enumerate(self.pools)
        )
        return [f"hv_pci_swiotlb={','.join(places)}"]

    def arguments(self, possible_cpus: int) -> list[str]:
        """Return the arguments of QEMU, without those of the machine itself.

        Args:
            possible_cpus: The most virtual CPUs that the machine could have; all belong to the
                first piece of memory.
        """
        size = _size(self.ram_bytes)
        if not self.pools:
            return ["-m", size, "-object", f"memory-backend-memfd,id={SHARED},size={size},share=on"]
        arguments = ["-m", size, *_piece("ram", "low", POOLS_BASE, f",cpus=0-{possible_cpus - 1}")]
        for port, pool in enumerate(self.pools):
            arguments += _piece("memfd", f"pool{port}", pool.size_bytes)
        return arguments + _piece("ram", "high", self.ram_bytes - self.pools[-1].end)

    @property
    def machine_properties(self) -> str:
        """What the machine is told of its memory, to be appended to its other properties."""
        return "" if self.pools else f",memory-backend={SHARED}"


SHARED: Final = "ram"
"""QEMU's name of memory that is shared as a whole."""


def place_pools(ram_bytes: int, pool_bytes: int) -> GuestMemory:
    """Divide a pool among ports, and place it.

    The parts are as equal as multiples of 2 MiB can be, and together they are what a kernel would
    reserve for the request. A small pool has fewer of them, and the machine fewer ports.

    Args:
        ram_bytes: All memory of the guest.
        pool_bytes: Size of the pool that was requested; 0: none.

    Raises:
        InvalidArgumentError: ISOLATION_POOL: there is none, or it is too small or too large.
    """
    whole_bytes = reserved_pool_bytes(pool_bytes)
    most_bytes = min(ram_bytes, LOW_RAM_BYTES) - POOLS_BASE - LEAST_END_BYTES
    if not LEAST_POOL_BYTES <= whole_bytes <= most_bytes:
        asked = f"{pool_bytes} bytes" if pool_bytes else "none"
        raise InvalidArgumentError(
            "ISOLATION_POOL",
            f"strict isolation needs a pool of {LEAST_POOL_BYTES} bytes or more, and of "
            f"{max(most_bytes, 0)} or less with {ram_bytes} bytes of memory; the VM asks for "
            f"{asked}. Give it more memory, or another size by [experimental] swiotlb= in "
            ".wslconfig",
            pool_bytes=pool_bytes,
            ram_bytes=ram_bytes,
        )
    count = min(MOST_POOLS, whole_bytes // LEAST_POOL_BYTES)
    steps, longer = divmod(whole_bytes // POOL_ALIGN_BYTES, count)
    pools: list[SwiotlbPool] = []
    base = POOLS_BASE
    for number in range(count):
        size_bytes = (steps + (number < longer)) * POOL_ALIGN_BYTES
        pools.append(SwiotlbPool(Gpa(base), size_bytes))
        base += size_bytes
    return GuestMemory(ram_bytes, tuple(pools))


def _piece(kind: str, name: str, size_bytes: int, rest_of_node: str = "") -> list[str]:
    # QEMU joins pieces as NUMA nodes, in the order of the arguments. The guest's kernel knows none.
    share = ",share=on" if kind == "memfd" else ""
    return [
        *("-object", f"memory-backend-{kind},id={name},size={_size(size_bytes)}{share}"),
        *("-numa", f"node,memdev={name}{rest_of_node}"),
    ]


def _size(size_bytes: int) -> str:
    return f"{size_bytes >> 20}M"
