"""The bounce pool that a guest announces, its checks, and the token made from it.

A guest is never trusted: a SwiotlbPool is what was announced, and `check_pool` decides whether it
may be latched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

from services.handshake.errors import InvalidArgumentError

Gpa = NewType("Gpa", int)
"""A guest-physical address, in bytes, 0 to 2**64 - 1."""

PAGE_BYTES: Final = 4096
"""Page size of every supported guest and host."""

SLOT_BYTES: Final = 2048
"""Size of one bounce slot (kernel: include/linux/swiotlb.h, IO_TLB_SHIFT = 11)."""

SEGMENT_SLOTS: Final = 128
"""Most slots that one mapping spans (kernel: include/linux/swiotlb.h, IO_TLB_SEGSIZE)."""

MAX_MAPPING_BYTES: Final = SLOT_BYTES * SEGMENT_SLOTS
"""The longest buffer that a guest with a pool can map: 256 KiB."""

POOL_ALIGN_BYTES: Final = 2 << 20
"""A WSL kernel rounds the size of its pool up to a multiple of this."""

DMA32_LIMIT: Final = 1 << 32
"""A pool lies below this address: the kernel allocates it with __GFP_DMA32."""

_U64: Final = (1 << 64) - 1
_TOKEN: Final = re.compile(r"swiotlb=0x([0-9a-f]{1,16}),([1-9][0-9]{0,19})", re.ASCII)
_APERTURE: Final = re.compile(r"aperture=0x([0-9a-f]{1,16}),([1-9][0-9]{0,19})", re.ASCII)


@dataclass(frozen=True, slots=True)
class SwiotlbPool:
    """One physically contiguous range of guest memory, [base, base + size_bytes)."""

    base: Gpa
    size_bytes: int

    @property
    def end(self) -> int:
        """First address past the pool."""
        return self.base + self.size_bytes

    def contains(self, part: SwiotlbPool) -> bool:
        """Return whether another range lies in this one whole."""
        return self.base <= part.base and part.end <= self.end

    def overlaps(self, other: SwiotlbPool) -> bool:
        """Return whether there is an address that both ranges have."""
        return self.base < other.end and other.base < self.end

    def __str__(self) -> str:
        return f"[0x{self.base:x}, 0x{self.end:x})"


def pool_from_announcement(base: int, size_bytes: int) -> SwiotlbPool | None:
    """Return the pool that an announcement describes.

    Args:
        base: Guest-physical address, or 0.
        size_bytes: Length in bytes, or 0.

    Returns:
        The pool; None when both numbers are 0, which stands for "not published".

    Raises:
        InvalidArgumentError: SWIOTLB_HALF_POOL when one number is 0; SWIOTLB_NOT_U64.
    """
    for name, value in (("base", base), ("size", size_bytes)):
        if not 0 <= value <= _U64:
            raise InvalidArgumentError(
                "SWIOTLB_NOT_U64",
                f"pool {name} {value} is not an unsigned 64-bit number",
                value=value,
            )
    if base == 0 and size_bytes == 0:
        return None
    if base == 0 or size_bytes == 0:
        raise InvalidArgumentError(
            "SWIOTLB_HALF_POOL",
            f"half a pool: base 0x{base:x}, size {size_bytes}; give both, or neither when the "
            "kernel publishes no pool",
            base=base,
            size=size_bytes,
        )
    return SwiotlbPool(Gpa(base), size_bytes)


def reserved_pool_bytes(requested_bytes: int) -> int:
    """Return the size of the pool that a WSL kernel reserves for a request: rounded up to 2 MiB."""
    return -(-requested_bytes // POOL_ALIGN_BYTES) * POOL_ALIGN_BYTES


def check_pool(pool: SwiotlbPool, low_ram_bytes: int, ram_base: int = 0) -> None:
    """Refuse a pool that no kernel could have reserved in this VM.

    Args:
        pool: The announced pool.
        low_ram_bytes: The VM's RAM below 4 GiB, which has no holes.
        ram_base: The address at which it begins.

    Raises:
        InvalidArgumentError: Names the value and the bound; the reason is one of
            SWIOTLB_BASE_UNALIGNED, SWIOTLB_SIZE_UNALIGNED, SWIOTLB_OVERFLOW, SWIOTLB_ABOVE_4G,
            SWIOTLB_OUTSIDE_RAM.
    """

    def refusal(reason: str, what: str, bound: int) -> InvalidArgumentError:
        return InvalidArgumentError(
            reason,
            f"pool base 0x{pool.base:x}, size {pool.size_bytes}: {what}; the VM runs "
            "without a pool until its kernel announces one inside this bound",
            base=pool.base,
            size=pool.size_bytes,
            bound=bound,
        )

    if pool.base % PAGE_BYTES:
        raise refusal(
            "SWIOTLB_BASE_UNALIGNED", f"the base is not a multiple of {PAGE_BYTES}", PAGE_BYTES
        )
    if pool.size_bytes <= 0 or pool.size_bytes % PAGE_BYTES:
        raise refusal(
            "SWIOTLB_SIZE_UNALIGNED",
            f"the size is not a positive multiple of {PAGE_BYTES}",
            PAGE_BYTES,
        )
    if pool.end > _U64:
        raise refusal("SWIOTLB_OVERFLOW", "base + size overflows 64 bits", _U64)
    if pool.end > DMA32_LIMIT:
        raise refusal(
            "SWIOTLB_ABOVE_4G",
            f"it ends at 0x{pool.end:x}, above 4 GiB (0x{DMA32_LIMIT:x})",
            DMA32_LIMIT,
        )
    if pool.base < ram_base:
        raise refusal(
            "SWIOTLB_OUTSIDE_RAM",
            f"it begins outside the VM's RAM, which begins at 0x{ram_base:x}",
            ram_base,
        )
    low_ram_end = ram_base + low_ram_bytes
    if pool.end > low_ram_end:
        raise refusal(
            "SWIOTLB_OUTSIDE_RAM",
            f"it ends at 0x{pool.end:x}, outside the VM's RAM below 4 GiB, which ends at "
            f"0x{low_ram_end:x}",
            low_ram_end,
        )


def format_token(pool: SwiotlbPool) -> str:
    """Format the device option that gives a device its aperture."""
    return f"swiotlb=0x{pool.base:x},{pool.size_bytes}"


def parse_token(token: str) -> SwiotlbPool:
    """Parse a token. Only the form that `format_token` writes is accepted.

    Args:
        token: For instance "swiotlb=0x3c000000,67108864".

    Raises:
        InvalidArgumentError: SWIOTLB_TOKEN_SYNTAX when it does not parse; SWIOTLB_BASE_UNALIGNED,
            SWIOTLB_SIZE_UNALIGNED, SWIOTLB_OVERFLOW or SWIOTLB_ABOVE_4G when it cannot be a pool.
    """
    match = _TOKEN.fullmatch(token)
    if match is None or int(match[1], 16) == 0:
        raise InvalidArgumentError(
            "SWIOTLB_TOKEN_SYNTAX",
            f"{token!r} is not a pool token; write swiotlb=0x<base in hex>,<size in bytes>, for "
            "instance swiotlb=0x3c000000,67108864",
            token=token,
        )
    pool = SwiotlbPool(Gpa(int(match[1], 16)), int(match[2]))
    check_pool(pool, low_ram_bytes=DMA32_LIMIT)
    return pool


def format_aperture(aperture: SwiotlbPool) -> str:
    """Format the device option that gives a device a part of the pool for itself."""
    return f"aperture=0x{aperture.base:x},{aperture.size_bytes}"


def parse_aperture(option: str) -> SwiotlbPool:
    """Parse what `format_aperture` writes, and only that; whose part it is, the caller knows.

    Raises:
        InvalidArgumentError: APERTURE_SYNTAX when it does not parse, or is not made of whole pages.
    """
    match = _APERTURE.fullmatch(option)
    if match is not None:
        aperture = SwiotlbPool(Gpa(int(match[1], 16)), int(match[2]))
        whole_pages = not (aperture.base | aperture.size_bytes) % PAGE_BYTES
        if whole_pages and format_aperture(aperture) == option:
            return aperture
    raise InvalidArgumentError(
        "APERTURE_SYNTAX",
        f"{option!r} is not a device's part of a pool; write aperture=0x<base in hex>,<size in "
        f"bytes>, both multiples of {PAGE_BYTES}, for instance aperture=0x3c000000,8388608",
        option=option,
    )


def check_aperture(aperture: SwiotlbPool, pool: SwiotlbPool | None) -> None:
    """Refuse a part that is none of a pool.

    Args:
        aperture: The part.
        pool: The pool of the device's token; None: it has no token.

    Raises:
        InvalidArgumentError: APERTURE_WITHOUT_POOL or APERTURE_OUTSIDE_POOL, with the ranges.
    """
    if pool is None:
        raise InvalidArgumentError(
            "APERTURE_WITHOUT_POOL",
            f"{format_aperture(aperture)} is a part of the guest's bounce pool, and the device has "
            "no pool; give it the token of one (swiotlb=0x<base>,<size>), or leave the option out",
        )
    if not pool.contains(aperture):
        raise InvalidArgumentError(
            "APERTURE_OUTSIDE_POOL",
            f"the aperture {aperture} is not inside the pool {pool} of the device's token; give it "
            "a part of that pool",
            base=aperture.base,
            size=aperture.size_bytes,
            pool=str(pool),
        )
