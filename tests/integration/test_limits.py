"""What runs out names itself to whoever watches the VM, in the log and in the metrics: once.

Provoked by a guest's own work, with real processes: through the rings and through a mount point.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from porthole.machine.v1 import machine_pb2
from porthole.vmowner.v1 import vm_owner_pb2

from services.devicehost.virtio.deferral import MAX_QUEUED
from services.rpc.channel import connect
from tests.support.house import MACHINE, GuestStub, House

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WSL2 = vm_owner_pb2.VM_KIND_WSL2
SMALL_POOL_BYTES = 2 << 20
READERS = 16


@pytest.fixture
def metrics_file(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = run_dir / "metrics.jsonl"
    monkeypatch.setenv("PORTHOLE_METRICS_FILE", str(path))
    return path


def points(metrics_file: Path, name: str) -> list[dict[str, Any]]:
    """All points of one metric that any service has exported: attributes, and value."""
    found = []
    for line in metrics_file.read_text().splitlines():
        for resource in json.loads(line)["resourceMetrics"]:
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    for kind in ("sum", "gauge"):
                        for point in metric.get(kind, {}).get("dataPoints", []):
                            if metric["name"] == name:
                                pairs = point["attributes"]
                                facts = {p["key"]: next(iter(p["value"].values())) for p in pairs}
                                found.append({**facts, "value": int(point["asInt"])})
    return found


class Watch:
    """`porthole vm watch --json` of one VM."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def until(self, event: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while line := await self._process.stdout.readline():
                seen: dict[str, Any] = json.loads(line)
                if seen["event"] == event:
                    return seen
        pytest.fail(f"the watch ended without {event}")

    async def rest(self) -> list[str]:
        """Wait until the VM has ended; the events until then."""
        assert self._process.stdout is not None
        read = await asyncio.wait_for(self._process.stdout.read(), 60)
        return [json.loads(line)["event"] for line in read.splitlines()]


@contextlib.asynccontextmanager
async def watching(house: House, vm_id: str) -> AsyncIterator[Watch]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main"),
        *("--run-dir", str(house.run_dir), "vm", "watch", vm_id, "--json"),
        stdout=asyncio.subprocess.PIPE,
    )
    watch = Watch(process)
    try:
        await watch.until("state")
        yield watch
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def test_a_full_bounce_pool(run_dir: Path, metrics_file: Path) -> None:
    async with AsyncExitStack() as stack:
        house = House(run_dir)
        await house.start(stack)
        for number in range(4):
            (house.shared / f"file{number}").write_bytes(bytes(2 << 20))
        vm = await house.create(WSL2, f"[experimental]\nswiotlb={SMALL_POOL_BYTES}\n", fixed=True)
        assert vm.latched_pool.size_bytes == SMALL_POOL_BYTES
        peer = await connect(vm.machine_address, GuestStub, MACHINE)
        stack.push_async_callback(peer.close)
        watch = await stack.enter_async_context(watching(house, vm.vm_id))

        async def read_all() -> int:
            request = machine_pb2.HashTreeRequest(tag="fixed")
            return sum([len(a.files) async for a in peer.stub.workload.HashTree(request)])

        assert await asyncio.gather(*(read_all() for _ in range(READERS))) == [5] * READERS
        event = await watch.until("exhausted")
        [device] = (await house.get(vm.vm_id)).devices
        assert (event["resource"], event["tag"]) == ("bounce_pool", "fixed")
        assert event["instance_id"] == device.instance_id
        assert event["total"] == SMALL_POOL_BYTES // 2048
        assert event["total"] // 2 < event["used"] <= event["total"]
        assert "hv_pci_swiotlb=" in event["detail"]
        log = (house.run_dir / "vm" / vm.vm_id / "machine.log").read_text()
        assert f"device {device.instance_id}: {event['detail']}" in log
        await house.terminate(vm.vm_id)
        episodes = 1 + (await watch.rest()).count("exhausted")
        assert log.count("bounce_pool exhausted") == episodes
        assert house.broken_rules() == []
    exported = points(metrics_file, "porthole.device.exhaustions")
    of_pool = [each for each in exported if each["porthole.resource"] == "bounce_pool"]
    assert of_pool[-1] == {
        "porthole.vm.id": vm.vm_id,
        "porthole.device.id": device.instance_id,
        "porthole.resource": "bounce_pool",
        "value": episodes,
    }
    assert not any(each["value"] for each in exported if each not in of_pool)


def wait_for_lock(file: Path) -> bool:
    """Open a file and wait for a lock of it; return whether it came."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno != errno.ENOLCK:
            raise
        return False
    finally:
        os.close(descriptor)
    return True


@pytest.mark.fuse
async def test_requests_that_wait_through_a_mount(house: House) -> None:
    """Locks of one guest that wait for the host's: those beyond the bound fail, the others come."""
    beyond = 6
    waiters = ThreadPoolExecutor(MAX_QUEUED + beyond)
    async with AsyncExitStack() as stack:
        vm = await house.create(WSL2)
        share = await house.add_share(vm.vm_id, "data")
        peer = await connect(vm.machine_address, GuestStub, MACHINE)
        stack.push_async_callback(peer.close)
        watch = await stack.enter_async_context(watching(house, vm.vm_id))
        place = house.run_dir / "mnt"
        place.mkdir()
        mount = machine_pb2.MountRequest(tag="data", mount_point=str(place))
        await peer.stub.workload.Mount(mount)
        holder = os.open(house.shared / "file", os.O_RDWR)
        fcntl.flock(holder, fcntl.LOCK_EX)
        waits = [waiters.submit(wait_for_lock, place / "file") for _ in range(MAX_QUEUED + beyond)]
        try:
            event = await watch.until("exhausted")
            ended = asyncio.as_completed([asyncio.wrap_future(each) for each in waits])
            failed = [await result for result in itertools.islice(ended, beyond)]
        finally:
            os.close(holder)
        assert failed == [False] * beyond
        assert (event["resource"], event["tag"]) == ("queued_requests", "data")
        assert (event["instance_id"], event["total"]) == (share.instance_id, MAX_QUEUED)
        assert event["used"] == MAX_QUEUED + 1
        results = await asyncio.gather(*map(asyncio.wrap_future, waits))
        assert sum(results) == MAX_QUEUED
        [device] = (await house.get(vm.vm_id)).devices
        assert device.counters.exhaustions == device.counters.held_back == 1
        await peer.stub.workload.Unmount(machine_pb2.UnmountRequest(tag="data"))
        assert [line for line in house.log if event["detail"] in line and share.instance_id in line]
        await house.terminate(vm.vm_id)
        assert (await watch.rest()).count("exhausted") == 0
        assert house.broken_rules() == []
