"""Fixtures of the tests with real processes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest_asyncio

from tests.support.house import House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest_asyncio.fixture
async def house(run_dir: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        started = House(run_dir)
        await started.start(stack)
        yield started
