"""An owner with fake peers, and the events of its traces."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from services.rpc import tracing
from tests.support.owner_peers import running_rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.handshake.events import Event
    from tests.support.owner_peers import Rig


@pytest_asyncio.fixture
async def rig(run_dir: Path) -> AsyncIterator[Rig]:
    async with running_rig(run_dir) as running:
        yield running


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    events: list[Event] = []
    monkeypatch.setattr(tracing, "emit", events.append)
    return events
