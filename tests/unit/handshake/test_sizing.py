"""The sizes that a VM asks for: the numbers of handshake.md section 5, written out."""

from __future__ import annotations

import pytest

from services.handshake.sizing import is_ram, low_ram_bytes, requested_pool_bytes

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("ram_bytes", "device_bounces", "configured_bytes", "requested_bytes"),
    [
        (1088 * MIB, True, None, 67108864),
        (1088 * MIB - 1, True, None, 0),
        (2 * GIB, False, None, 0),
        (256 * MIB, False, 8 * MIB, 8 * MIB),
        (2 * GIB, True, 0, 67108864),
        (2 * GIB, True, 2 * GIB - 1, 2 * GIB - 1),
        (2 * GIB, True, 2 * GIB, 67108864),
        (16 * GIB, True, 3 * GIB - 1, 3 * GIB - 1),
        (16 * GIB, True, 3 * GIB, 67108864),
        (512 * MIB, True, GIB, 0),
    ],
)
def test_the_pool_that_is_asked_for(
    ram_bytes: int, device_bounces: bool, configured_bytes: int | None, requested_bytes: int
) -> None:
    found = requested_pool_bytes(
        ram_bytes, device_bounces=device_bounces, configured_bytes=configured_bytes
    )
    assert found == requested_bytes


def test_ram_below_4_gib_ends_at_3_gib() -> None:
    assert (low_ram_bytes(2 * GIB), low_ram_bytes(16 * GIB)) == (2 * GIB, 3 * GIB)


@pytest.mark.parametrize(
    ("size_bytes", "legal"),
    [
        (0, False),
        (63 * MIB, False),
        (64 * MIB, True),
        (64 * MIB + 1, False),
        (1 << 40, True),
        ((1 << 40) + MIB, False),
    ],
)
def test_ram_has_bounds(size_bytes: int, legal: bool) -> None:
    assert is_ram(size_bytes) == legal
