"""The aperture: a mapping of exactly the pool, made once when the device attaches to guest memory.

Memory outside the pool is not mapped, so no address that a guest hands in can reach it. Must not
know where the pool came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.devicehost.memory.linear import LinearMemory
from services.devicehost.memory.mapping import Mapping
from services.handshake.errors import FailedPreconditionError
from services.handshake.pool import SLOT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory.regions import RegionTable
    from services.handshake.pool import SwiotlbPool


class ApertureMemory(LinearMemory):
    """Guest memory bounded by a pool."""

    is_pool = True

    def __init__(
        self,
        table: RegionTable,
        pool: SwiotlbPool,
        meter: DeviceMeter,
        *,
        rings_inside: bool = False,
    ) -> None:
        """Map exactly [base, base + size) of the pool.

        Args:
            table: The regions that the front-end shares.
            pool: The part to map.
            meter: Of the device.
            rings_inside: Whether rings have to be in the pool; for the error of one that is not.

        Raises:
            FailedPreconditionError: POOL_NOT_IN_GUEST_MEMORY: no single region covers the pool.
            InvalidArgumentError: The mapping failed; see Mapping.
        """
        region = table.find(pool.base, pool.size_bytes)
        if region is None or region.fd is None:
            have = ", ".join(f"[0x{r.gpa:x}, 0x{r.gpa + r.size_bytes:x})" for r in table)
            raise FailedPreconditionError(
                "POOL_NOT_IN_GUEST_MEMORY",
                f"pool {pool} is not inside one region of the guest's memory; the front-end "
                f"shares {have or 'none'}",
                base=pool.base,
                size=pool.size_bytes,
            )
        start = region.file_offset + pool.base - region.gpa
        super().__init__(table, meter)
        if rings_inside:
            self.rings_remedy = (
                "with rings=inside the device maps its pool alone, and with aperture= its own part "
                "of it; have the guest put its rings there, or leave the option out"
            )
        mapping = Mapping(region.fd, start, pool.size_bytes, self.loss, region.page_bytes)
        self._take([(pool.base, mapping)])
        self._pool = pool
        self._base: int = pool.base
        self._size = pool.size_bytes
        self._high = 0
        self._view = mapping.view

    def translate(self, gpa: int, length: int) -> int:
        """Turn a guest address into an offset in the aperture: arithmetic and a bound check.

        Raises:
            TranslationError: [gpa, gpa + length) is not wholly inside the pool.
        """
        offset = gpa - self._base
        end = offset + length
        if offset < 0 or end > self._size:
            raise self.refusal(gpa, length, f"the aperture {self._pool}")
        if end > self._high:
            self._raise_high(end)
        return offset

    def view(self, gpa: int, length: int) -> memoryview:
        """Return [gpa, gpa + length) of the pool; see `Lease.view`."""
        offset = self.translate(gpa, length)
        return self._view[offset : offset + length]

    def views(self, addresses: Sequence[int], lengths: Sequence[int]) -> list[memoryview]:
        """Return several ranges of the pool; see `Lease.views`.

        This repeats `translate` inline, because every request calls it.
        """
        base, high, whole = self._base, self._high, self._view
        views = []
        for place, gpa in enumerate(addresses):
            offset = gpa - base
            end = offset + lengths[place]
            if offset < 0:
                raise self.refusal(gpa, lengths[place], f"the aperture {self._pool}")
            if end > high:
                if end > self._size:
                    raise self.refusal(gpa, lengths[place], f"the aperture {self._pool}")
                high = end
            views.append(whole[offset:end])
        if high > self._high:
            self._raise_high(high)
        return views

    def _raise_high(self, end: int) -> None:
        with self._lock:
            self._high = max(self._high, end)
        with self._meter.counting as counters:
            counters.highest_slot = max(counters.highest_slot, -(-end // SLOT_BYTES))
