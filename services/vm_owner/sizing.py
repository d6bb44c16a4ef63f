"""The sizes of a VM: its memory, and the pool that it requests (handshake.md section 5).

Owns the defaults and their bounds. Must not know configuration syntax: wslconfig.py parses that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.handshake.errors import InvalidArgumentError
from services.vm_owner.machines import LOW_RAM_LIMIT
from services.vm_owner.warnings import VmWarning, memory_unusable, pool_too_large

DEFAULT_POOL_BYTES: Final = 64 << 20
"""Default size of a pool."""

DEFAULT_POOL_MIN_RAM_BYTES: Final = (1 << 30) + DEFAULT_POOL_BYTES
"""Least RAM of a VM that gets a pool by default."""

DEFAULT_RAM_BYTES: Final = 2 << 30
"""Default memory of a VM."""

MIN_RAM_BYTES: Final = 64 << 20
MAX_RAM_BYTES: Final = 1 << 40
RAM_STEP_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """A decided size.

    Attributes:
        bytes: The size; 0: none.
        warning: The reason why the configured size does not apply; None: it applies.
    """

    bytes: int
    warning: VmWarning | None = None


def choose_ram(asked_bytes: int, configured_bytes: int | None) -> Size:
    """Decide on the memory of one VM.

    Args:
        asked_bytes: The size in CreateVm; 0: none.
        configured_bytes: `wsl2.memory`; None when not configured. It is rounded down to a MiB.

    Raises:
        InvalidArgumentError: RAM_BYTES, naming the value and the bounds.
    """
    if asked_bytes:
        if not _is_ram(asked_bytes):
            raise InvalidArgumentError(
                "RAM_BYTES",
                f"ram_bytes {asked_bytes} is not a multiple of {RAM_STEP_BYTES} from "
                f"{MIN_RAM_BYTES} to {MAX_RAM_BYTES}; 0 means {DEFAULT_RAM_BYTES}",
                ram_bytes=asked_bytes,
                minimum=MIN_RAM_BYTES,
                maximum=MAX_RAM_BYTES,
            )
        return Size(asked_bytes)
    if configured_bytes is None:
        return Size(DEFAULT_RAM_BYTES)
    rounded_bytes = configured_bytes - configured_bytes % RAM_STEP_BYTES
    if not _is_ram(rounded_bytes):
        return Size(
            DEFAULT_RAM_BYTES,
            memory_unusable(configured_bytes, MIN_RAM_BYTES, MAX_RAM_BYTES, DEFAULT_RAM_BYTES),
        )
    return Size(rounded_bytes)


def _is_ram(size_bytes: int) -> bool:
    return MIN_RAM_BYTES <= size_bytes <= MAX_RAM_BYTES and size_bytes % RAM_STEP_BYTES == 0


def size_pool(ram_bytes: int, *, device_bounces: bool, explicit_bytes: int | None = None) -> Size:
    """Decide on the pool of one VM.

    Args:
        ram_bytes: Memory of the VM.
        device_bounces: Whether a device that bounces is in use: virtio-fs, virtio-9p, or user-mode
            (VirtioProxy) networking.
        explicit_bytes: `experimental.swiotlb`: overrides the default, also on a small VM and when
            no device bounces yet; 0 asks for none. None: not configured.
    """
    default_bytes = (
        DEFAULT_POOL_BYTES if device_bounces and ram_bytes >= DEFAULT_POOL_MIN_RAM_BYTES else 0
    )
    if explicit_bytes is None:
        return Size(default_bytes)
    limit_bytes = min(ram_bytes, LOW_RAM_LIMIT)
    if explicit_bytes >= limit_bytes:
        return Size(default_bytes, pool_too_large(explicit_bytes, limit_bytes, default_bytes))
    return Size(explicit_bytes)
