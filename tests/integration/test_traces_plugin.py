"""The pytest plugin of porthole-client, with running services."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from porthole.vmowner.v1 import vm_owner_pb2

from services.session import apply_guest_capabilities
from tests.support.house import House

if TYPE_CHECKING:
    from pathlib import Path

    from porthole.testing.traces import Traces


async def test_handshakes_are_collected_and_valid(run_dir: Path, porthole_traces: Traces) -> None:
    async with AsyncExitStack() as stack:
        house = House(run_dir, porthole_traces.environment)
        await house.start(stack)
        vm_ids = []
        for kind in (vm_owner_pb2.VM_KIND_WSL2, vm_owner_pb2.VM_KIND_WSLC):
            vm = await house.create(kind, fixed=True)
            if kind == vm_owner_pb2.VM_KIND_WSLC:
                await apply_guest_capabilities(house.services.owner_address, vm.vm_id)
            assert await house.guest_reads(vm, "fixed")
            vm_ids.append(vm.vm_id)
        with pytest.raises(AssertionError, match=f"VM {vm_ids[1]} has ended"):
            porthole_traces.assert_valid(vm_ids[1], wait_s=0)
        for vm_id in vm_ids:
            await house.terminate(vm_id)
        porthole_traces.assert_valid()
        assert porthole_traces.vm_ids == vm_ids
