"""All of a guest's memory, mapped once, for a device that is not confined.

It suits a guest without a pool, where speed counts more than confinement. Must not know when that
is so.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from services.devicehost.memory.linear import LinearMemory
from services.devicehost.memory.mapping import Mapping
from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory.loss import Loss
    from services.devicehost.memory.regions import Region, RegionTable


class WholeMemory(LinearMemory):
    """Every region of a guest."""

    def __init__(self, table: RegionTable, meter: DeviceMeter) -> None:
        """Map every region.

        Raises:
            InvalidArgumentError: A mapping failed; see Mapping. None is left behind.
            FailedPreconditionError: REGION_CLOSED: a region's descriptor is closed already.
        """
        super().__init__(table, meter)
        mappings = _map(sorted(table, key=lambda region: region.gpa), self.loss)
        self._take(mappings)
        self._starts = [gpa for gpa, _ in mappings]
        self._views = [mapping.view for _, mapping in mappings]

    def view(self, gpa: int, length: int) -> memoryview:
        """Return [gpa, gpa + length) of one region; see `Lease.view`."""
        place = bisect_right(self._starts, gpa) - 1
        if place >= 0:
            region = self._views[place]
            offset = gpa - self._starts[place]
            end = offset + length
            if end <= len(region):
                return region[offset:end]
        raise self.refusal(gpa, length, "one region of guest memory")


def _map(regions: Iterable[Region], loss: Loss) -> list[tuple[int, Mapping]]:
    mappings: list[tuple[int, Mapping]] = []
    try:
        for region in regions:
            if region.fd is None:
                raise FailedPreconditionError(
                    "REGION_CLOSED",
                    f"the region at guest address 0x{region.gpa:x} was given up and cannot be "
                    "mapped any more; send the table anew",
                    gpa=region.gpa,
                )
            mapping = Mapping(
                region.fd, region.file_offset, region.size_bytes, loss, region.page_bytes
            )
            mappings.append((region.gpa, mapping))
    except BaseException:
        for _, mapping in mappings:
            mapping.close()
        raise
    return mappings
