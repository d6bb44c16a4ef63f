"""A running probe, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from porthole.guest.v1.guest_init_pb2_grpc import InitChannelStub

from services.rpc.channel import Peer, connect
from services.rpc.server import start_server
from tests.unit.rpc.probe_service import SERVICE, Probe, servicer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from porthole.guest.v1.guest_init_pb2_grpc import InitChannelAsyncStub


@pytest.fixture
async def probe(run_dir: Path) -> AsyncIterator[Probe]:
    """A probe that serves on <run_dir>/probe.sock."""
    instance = Probe()
    handle = await start_server([f"unix:{run_dir}/probe.sock"], [servicer(instance)])
    yield instance
    await handle.stop(0)


@pytest.fixture
async def peer(probe: Probe, run_dir: Path) -> AsyncIterator[Peer[InitChannelAsyncStub]]:
    """A connection to the probe."""
    connected = await connect(f"unix:{run_dir}/probe.sock", InitChannelStub, SERVICE)
    yield connected
    await connected.close()
