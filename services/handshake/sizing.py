"""The sizes of a VM that the handshake depends on: its RAM, and the pool that it asks for.

Owns the defaults and bounds (handshake.md section 5), so that the VM owner, which decides, and the
trace checker, which judges, compute the same. Must not know configuration syntax or warnings.
"""

from __future__ import annotations

from typing import Final

DEFAULT_POOL_BYTES: Final = 64 << 20
"""Default size of a pool."""

DEFAULT_POOL_MIN_RAM_BYTES: Final = (1 << 30) + DEFAULT_POOL_BYTES
"""Least RAM of a VM that asks for a pool by default."""

MIN_RAM_BYTES: Final = 64 << 20
MAX_RAM_BYTES: Final = 1 << 40
RAM_STEP_BYTES: Final = 1 << 20

LOW_RAM_LIMIT: Final = 3 << 30
"""The most RAM below 4 GiB. On a PC it begins at address 0, and what is left is at 4 GiB
(machine.proto, BootRequest); on an arm64 machine all RAM follows its beginning."""

ARM64_RAM_BASE: Final = 1 << 30
"""Where the RAM of QEMU's virt machine begins (hw/arm/virt.c, VIRT_MEM)."""

RAM_BASES: Final = (0, ARM64_RAM_BASE)
"""Where RAM begins: on a PC, and on an arm64 machine."""


def is_ram(size_bytes: int) -> bool:
    """Return whether a VM may have this much RAM."""
    return MIN_RAM_BYTES <= size_bytes <= MAX_RAM_BYTES and size_bytes % RAM_STEP_BYTES == 0


def low_ram_bytes(ram_bytes: int) -> int:
    """Return how much of a VM's RAM is below 4 GiB, at its beginning; it has no holes."""
    return min(ram_bytes, LOW_RAM_LIMIT)


def default_pool_bytes(ram_bytes: int, *, device_bounces: bool) -> int:
    """Return the size of the pool of a VM whose configuration names none; 0: no pool.

    Args:
        ram_bytes: RAM of the VM.
        device_bounces: Whether the VM may get a device that bounces: virtio-fs, or an adapter of
            the modes VirtioProxy and NAT.
    """
    return DEFAULT_POOL_BYTES if device_bounces and ram_bytes >= DEFAULT_POOL_MIN_RAM_BYTES else 0


def requested_pool_bytes(
    ram_bytes: int, *, device_bounces: bool, configured_bytes: int | None
) -> int:
    """Return the size of the pool that a VM asks its kernel for; 0: it asks for none.

    Args:
        ram_bytes: RAM of the VM.
        device_bounces: See `default_pool_bytes`.
        configured_bytes: `experimental.swiotlb`: overrides the default if it is smaller than the
            RAM below 4 GiB, also on a small VM and when no device bounces. 0 or None: not
            configured.
    """
    if configured_bytes and configured_bytes < low_ram_bytes(ram_bytes):
        return configured_bytes
    return default_pool_bytes(ram_bytes, device_bounces=device_bounces)
