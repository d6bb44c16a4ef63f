"""What applies of a VM's configured sizes, and the warning where one does not apply.

The rules are in services.handshake.sizing. Must not know configuration syntax: the package
wslconfig parses that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.sizing import (
    MAX_RAM_BYTES,
    MIN_RAM_BYTES,
    RAM_STEP_BYTES,
    is_ram,
    low_ram_bytes,
    requested_pool_bytes,
)
from services.vm_owner.warnings import VmWarning, memory_out_of_bounds, pool_too_large

DEFAULT_RAM_BYTES: Final = 2 << 30
"""Default memory of a VM."""

LEAST_CONFIGURED_RAM_BYTES: Final = 256 << 20
"""Least memory that a .wslconfig may ask for, as in WSL; CreateVm may ask for less."""


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
        configured_bytes: `wsl2.memory`; None when not configured. It is rounded down to a MiB, and
            the nearest bound applies instead of a size that is out of bounds.

    Raises:
        InvalidArgumentError: RAM_BYTES, naming the value and the bounds.
    """
    if asked_bytes:
        if not is_ram(asked_bytes):
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
    used_bytes = min(max(rounded_bytes, LEAST_CONFIGURED_RAM_BYTES), MAX_RAM_BYTES)
    if used_bytes != rounded_bytes:
        return Size(used_bytes, memory_out_of_bounds(configured_bytes, used_bytes))
    return Size(rounded_bytes)


def size_pool(ram_bytes: int, *, device_bounces: bool, explicit_bytes: int | None = None) -> Size:
    """Decide on the pool of one VM; see `requested_pool_bytes`."""
    requested_bytes = requested_pool_bytes(
        ram_bytes, device_bounces=device_bounces, configured_bytes=explicit_bytes
    )
    limit_bytes = low_ram_bytes(ram_bytes)
    if explicit_bytes is not None and explicit_bytes >= limit_bytes:
        return Size(requested_bytes, pool_too_large(explicit_bytes, limit_bytes, requested_bytes))
    return Size(requested_bytes)
