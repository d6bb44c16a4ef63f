"""The memory of a guest: how a pool is divided and placed, and what QEMU and the kernel get."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import check_pool, reserved_pool_bytes
from services.handshake.sizing import low_ram_bytes
from services.vm_owner.machines.qemu.guest_memory import (
    LEAST_END_BYTES,
    LEAST_POOL_BYTES,
    LOW_RAM_BYTES,
    MOST_POOLS,
    POOLS_BASE,
    GuestMemory,
    place_pools,
)
from services.vm_owner.machines.qemu.ports import PORTS
from services.wire.vhost_user import MAX_TABLE_REGIONS

MIB = 1 << 20


def test_shared_memory_is_one_memfd_and_the_kernel_is_told_nothing() -> None:
    memory = GuestMemory(2048 * MIB)
    assert memory.arguments(2) == [
        *("-m", "2048M"),
        *("-object", "memory-backend-memfd,id=ram,size=2048M,share=on"),
    ]
    assert memory.machine_properties == ",memory-backend=ram"
    assert memory.kernel_words == []
    assert memory.ports == PORTS
    assert memory.pool_of(PORTS - 1) is None


def test_a_divided_pool_is_a_memfd_for_each_port_between_private_memory() -> None:
    memory = place_pools(1280 * MIB, 12 * MIB)
    assert memory.arguments(4) == [
        *("-m", "1280M"),
        *("-object", "memory-backend-ram,id=low,size=128M"),
        *("-numa", "node,memdev=low,cpus=0-3"),
        *("-object", "memory-backend-memfd,id=pool0,size=4M,share=on"),
        *("-numa", "node,memdev=pool0"),
        *("-object", "memory-backend-memfd,id=pool1,size=4M,share=on"),
        *("-numa", "node,memdev=pool1"),
        *("-object", "memory-backend-memfd,id=pool2,size=4M,share=on"),
        *("-numa", "node,memdev=pool2"),
        *("-object", "memory-backend-ram,id=high,size=1140M"),
        *("-numa", "node,memdev=high"),
    ]
    assert memory.machine_properties == ""
    assert memory.kernel_words == [
        "hv_pci_swiotlb=4194304@0x8000000/0000:01:00.0,"
        "4194304@0x8400000/0000:02:00.0,4194304@0x8800000/0000:03:00.0"
    ]


def test_the_default_pool_is_eight_of_8_mib() -> None:
    memory = place_pools(2 << 30, 64 * MIB)
    assert [pool.size_bytes for pool in memory.pools] == [8 * MIB] * 8
    assert memory.ports == 8
    assert memory.pool_of(7) == memory.pools[7]


def test_what_cannot_be_divided_equally_is_divided_in_steps_of_2_mib() -> None:
    sizes = [pool.size_bytes // MIB for pool in place_pools(2 << 30, 69 * MIB).pools]
    assert sizes == [10, 10, 10, 8, 8, 8, 8, 8]


@given(st.integers(1, 4096), st.integers(1, 2 << 30))
def test_pools_are_together_what_was_requested_and_lie_where_a_kernel_takes_them(
    ram_mib: int, pool_bytes: int
) -> None:
    try:
        memory = place_pools(ram_mib * MIB, pool_bytes)
    except InvalidArgumentError:
        return  # other tests know the bounds
    pools = memory.pools
    assert 1 <= len(pools) <= MOST_POOLS
    assert sum(pool.size_bytes for pool in pools) == reserved_pool_bytes(pool_bytes)
    assert pools[0].base == POOLS_BASE
    for before, pool in pairwise(pools):
        assert pool.base == before.end
    for pool in pools:
        assert pool.size_bytes >= LEAST_POOL_BYTES
        assert pool.base % (2 * MIB) == pool.size_bytes % (2 * MIB) == 0
        check_pool(pool, low_ram_bytes(ram_mib * MIB))
    assert pools[-1].end + LEAST_END_BYTES <= min(ram_mib * MIB, LOW_RAM_BYTES)
    said = " ".join(memory.arguments(1))
    assert sum(int(size) for size in re.findall(r"size=(\d+)M", said)) == ram_mib
    assert len(re.findall("share=on", said)) == len(pools)


def test_no_more_pools_than_a_front_end_can_tell_of() -> None:
    assert MOST_POOLS == MAX_TABLE_REGIONS <= PORTS
    assert len(place_pools(2 << 30, 1 << 30).pools) == MOST_POOLS


@pytest.mark.parametrize(
    ("ram_bytes", "pool_bytes"),
    [
        (2 << 30, 0),
        (2 << 30, 1),
        (2 << 30, 2 * MIB),
        (256 * MIB, 66 * MIB),
        (64 * MIB, 4 * MIB),
        (64 << 30, 1857 * MIB),
    ],
)
def test_a_pool_that_cannot_be_divided_or_placed_is_refused_with_the_bounds(
    ram_bytes: int, pool_bytes: int
) -> None:
    with pytest.raises(InvalidArgumentError, match=str(LEAST_POOL_BYTES)) as refused:
        place_pools(ram_bytes, pool_bytes)
    assert refused.value.reason == "ISOLATION_POOL"
    assert refused.value.metadata == {"pool_bytes": str(pool_bytes), "ram_bytes": str(ram_bytes)}


@pytest.mark.parametrize(
    ("ram_bytes", "pool_bytes"),
    [(2 << 30, 3 * MIB), (256 * MIB, 64 * MIB), (64 << 30, 1856 * MIB)],
)
def test_the_bounds_themselves_are_accepted(ram_bytes: int, pool_bytes: int) -> None:
    assert place_pools(ram_bytes, pool_bytes).pools
