from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.guest_ring import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    """16 MiB from guest address 0 on, at offset 4 MiB of its file."""
    ram = GuestRam(16 * MIB, file_offset=4 * MIB)
    yield ram
    ram.close()
