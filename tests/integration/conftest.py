"""Fixtures of the tests with real processes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.house import House
from tests.support.linux_user import make_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest_asyncio.fixture
async def house(run_dir: Path) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        started = House(run_dir)
        await started.start(stack)
        yield started


@pytest.fixture
def shared_tree(tmp_path: Path) -> Path:
    """A share with a tree in it."""
    return make_tree(tmp_path / "shared")
