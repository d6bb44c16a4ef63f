"""Configurations that cannot work, with a real kernel: the device says so, and what the guest does.

Each guest has three devices: one of `porthole device` and one of the device host that are set up
wrongly, and beside them one that is set up as it should be, which serves.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc

from services.handshake.options import build_options
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.rpc.channel import connect
from tests.support.qemu_guest import QemuGuest, booted
from tests.support.standalone import fs, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import grpc

    Watch = grpc.aio.UnaryStreamCall[
        device_host_pb2.WatchDevicesRequest, device_host_pb2.WatchDevicesResponse
    ]

pytestmark = pytest.mark.qemu

VM_ID = "0e6f1f0b-3f0e-4a53-9d0c-6d2f5a4b7c21"
DEADLINE_S = 60.0
PORTS = tuple(
    text
    for number in range(3)
    for text in ("-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number}")
)
WAITS = "The guest may wait for the device for ever"
FAILS = "Linux says 'Connection refused'"


@dataclass(frozen=True)
class Control:
    """One configuration.

    Attributes:
        reason: Of what the device refuses.
        cause: Part of the likely causes.
        waits: Whether the guest waits for ever; else its use of the share fails.
        moved_by: Where the token's pool begins, in lengths of the guest's pool after that.
        base: Where it begins instead.
        bounces: Whether the guest has a pool for its devices.
        iommu_platform: Of the front-end.
    """

    reason: str
    cause: str
    waits: bool = False
    moved_by: int = 0
    base: int | None = None
    bounces: bool = True
    iommu_platform: bool = True

    def token(self, pool: SwiotlbPool) -> str:
        base = pool.base + self.moved_by * pool.size_bytes if self.base is None else self.base
        return format_token(SwiotlbPool(Gpa(base), pool.size_bytes))


CONTROLS = {
    "the token of another pool": Control(
        "ADDRESS_OUT_OF_BOUNDS", "the token is that of another pool", moved_by=-1
    ),
    "a token outside the front-end's memory": Control(
        "POOL_NOT_IN_GUEST_MEMORY", "the token is that of another VM", waits=True, base=1 << 31
    ),
    "no pool for the device in the guest": Control(
        "ADDRESS_OUT_OF_BOUNDS", "no swiotlb=force on its command line", bounces=False
    ),
    "iommu_platform=off": Control(
        "ADDRESS_OUT_OF_BOUNDS", "iommu_platform=off", iommu_platform=False
    ),
}


@contextmanager
def device_host(run_dir: Path) -> Iterator[str]:
    """Run the device host; yields its address."""
    command = [sys.executable, "-m", "services.devicehost", f"--run-dir={run_dir}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert " ready on " in process.stdout.readline()
            yield f"unix:{run_dir}/devicehost.sock"
        finally:
            process.terminate()
            process.wait(DEADLINE_S)


class Hosted:
    """A device of the device host, and the changes of it that watchers get."""

    def __init__(
        self, stub: device_host_pb2_grpc.DeviceHostAsyncStub, watch: Watch, socket_path: Path
    ) -> None:
        self.stub = stub
        self._watch = watch
        self.socket_path = socket_path

    async def await_change(self, detail: str) -> str:
        """Wait until the detail of a change has this text; return the whole."""
        async with asyncio.timeout(DEADLINE_S):
            async for change in self._watch:
                if detail in change.detail:
                    return change.detail
        raise AssertionError("the stream of changes ended")


@asynccontextmanager
async def hosted(
    address: str, shared: Path, token: str, part: SwiotlbPool | None = None
) -> AsyncIterator[Hosted]:
    peer = await connect(
        address, device_host_pb2_grpc.DeviceHostStub, "porthole.devicehost.v1.DeviceHost"
    )
    try:
        watch = peer.stub.WatchDevices(device_host_pb2.WatchDevicesRequest(vm_id=VM_ID))
        await watch.initial_metadata()
        made = await peer.stub.CreateDevice(
            device_host_pb2.CreateDeviceRequest(
                vm_id=VM_ID,
                instance_id="hosted",
                tag="hosted",
                options=build_options("hosted", "", token, VM_ID, part),
                fs=device_host_pb2.FsBackend(shared_dir=str(shared)),
            )
        )
        yield Hosted(peer.stub, watch, Path(made.socket_path))
        watch.cancel()
    finally:
        await peer.close()


def use(guest: QemuGuest, tag: str) -> None:
    """Have the guest mount a share and list it, in the background."""
    command = f"mount -t virtiofs {tag} /{tag} && ls /{tag}"
    guest.run(f"mkdir /{tag}; ({command}) > /tmp/{tag} 2>&1 & {tag}=$!")


@pytest.mark.parametrize("name", CONTROLS)
async def test_what_cannot_work_is_said(run_dir: Path, shared_tree: Path, name: str) -> None:
    control = CONTROLS[name]
    host_dir = run_dir / "host"
    bounces = "swiotlb=force" if control.bounces else ""
    with booted(run_dir, *PORTS, kernel_arguments=bounces) as guest, device_host(host_dir) as host:
        pool = guest.pool()
        token = control.token(pool)
        right = ("--" + format_token(pool),) if control.bounces else ("--memory=windows",)
        alone_at, right_at = (f"--socket-path={run_dir}/{each}.sock" for each in ("a", "r"))
        with (
            running(*fs(run_dir, shared_tree, alone_at, "--" + token)) as alone,
            running(*fs(run_dir, shared_tree, right_at, *right)) as served,
        ):
            async with hosted(host, shared_tree, token) as other:
                wrong = {"iommu_platform": control.iommu_platform}
                guest.plug(alone.socket_path, "alone", port="port0", **wrong)
                guest.plug(other.socket_path, "hosted", port="port1", **wrong)
                guest.plug(served.socket_path, "right", port="port2")
                for tag in ("alone", "hosted", "right"):
                    use(guest, tag)
                assert guest.run("wait $right; cat /tmp/right") == "tree\n"

                # The event comes while the front-end is still there: it may stay for ever.
                event = await other.await_change("Likely cause")
                assert control.cause in event
                assert (WAITS if control.waits else FAILS) in event
                for tag in ("alone", "hosted"):
                    if control.waits:
                        assert guest.run(f"kill -0 ${tag}; cat /tmp/{tag}") == ""
                    else:
                        code, said = guest.attempt(f"cat /tmp/{tag}; wait ${tag}")
                        assert code != 0
                        assert "Connection refused" in guest.run(f"cat /tmp/{tag}"), said
                guest.close()
                event = await other.await_change("RINGS_NEVER_SERVED")
                assert control.reason in event
            code, log = alone.end()
            assert served.end()[0] == 0
    assert code == 3, log
    (line,) = (line for line in log.splitlines() if "Likely cause" in line)
    assert control.cause in line
    assert control.reason in line
    assert (WAITS if control.waits else FAILS) in line
    assert log.splitlines()[-1].startswith("error: ")
    assert "[RINGS_NEVER_SERVED]" in log.splitlines()[-1]
