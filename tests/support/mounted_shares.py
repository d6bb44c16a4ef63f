"""A device host and a guest as processes, whose shares are mount points for tests to work on.

A test must not serve the mount point that it uses: a page fault on a mapped file would wait, with
the interpreter's lock held, for a thread of the same interpreter. So both sides are processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

from porthole.devicehost.v1 import device_host_pb2, device_host_pb2_grpc
from porthole.handshake.v1 import device_pb2
from porthole.machine.v1 import machine_pb2, machine_pb2_grpc

from services.handshake.options import build_options
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.rpc.channel import connect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from services.rpc.channel import Peer

VM_ID = "3f6b1c52-7a0d-4b5e-9c0e-5d1f2a3b4c5d"
RAM_BYTES = 256 << 20
POOL = "32M"
STOP_DEADLINE_S = 30.0


class MountedShares:
    """Use as a context manager.

    Args:
        directory: For the mount points, which other users reach if they may enter it; and for the
            run directory of both processes, which is private.
        prefix: Command that runs the device host, for instance with fewer rights.
    """

    def __init__(self, directory: Path, prefix: Sequence[str] = ()) -> None:
        self._directory = directory
        self._run_dir = directory / "run"
        self._run_dir.mkdir(mode=0o700)
        self._prefix = prefix
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.device_host = stack.enter_context(self._process("devicehost", *self._prefix))
            self._guest = stack.enter_context(self._process("simguest"))
            loop = stack.enter_context(asyncio.Runner())
            self._run = loop.run
            peers = loop.run(self._connect())
            for peer in peers:
                stack.callback(lambda close: loop.run(close()), peer.close)
            self._host, self._machine, self._workload = (peer.stub for peer in peers)
            self._token = loop.run(self._boot())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the guest, which unmounts, and then the device host."""
        self._stack.close()

    def mount(self, tag: str, directory: Path, options: str = "") -> Path:
        """Share a directory and mount it; return the mount point."""
        mount_point = self._directory / f"mount-{tag}"
        mount_point.mkdir()
        self._run(self._mount(tag, directory, options, mount_point))
        return mount_point

    def mount_aggregate(self, tag: str, shares: Mapping[str, tuple[Path, str]]) -> Path:
        """Mount directories, each with options of its own, as shares of one device."""
        mount_point = self._directory / f"mount-{tag}"
        mount_point.mkdir()
        self._run(self._mount(tag, None, "", mount_point))
        for name, (directory, options) in shares.items():
            child = device_host_pb2.AddChildRequest(
                vm_id=VM_ID,
                instance_id=tag,
                name=name,
                options=build_options(name, options, None, VM_ID),
                shared_dir=str(directory),
            )
            self._run(self._add_child(child))
        return mount_point

    @contextlib.contextmanager
    def deadline(self, seconds: float) -> Iterator[None]:
        """Kill the guest after this time: a hung device then fails a test, but blocks no run."""
        timer = threading.Timer(seconds, self._guest.kill)
        timer.start()
        yield
        timer.cancel()
        timer.join()

    @contextlib.contextmanager
    def _process(self, name: str, *prefix: str) -> Iterator[subprocess.Popen[str]]:
        command = [*prefix, sys.executable, "-m", f"services.{name}"]
        flags = [f"--run-dir={self._run_dir}", "--log-level=warning"]
        with subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert " ready on " in line, line
                yield process
            finally:
                process.terminate()
                try:
                    process.wait(STOP_DEADLINE_S)
                except subprocess.TimeoutExpired:
                    process.kill()

    async def _connect(self) -> tuple[Peer[Any], Peer[Any], Peer[Any]]:
        guest = f"unix:{self._run_dir}/simguest.sock"
        return (
            await connect(
                f"unix:{self._run_dir}/devicehost.sock",
                device_host_pb2_grpc.DeviceHostStub,
                "porthole.devicehost.v1.DeviceHost",
            ),
            await connect(guest, machine_pb2_grpc.MachineStub, "porthole.machine.v1.Machine"),
            await connect(guest, machine_pb2_grpc.WorkloadStub, "porthole.machine.v1.Workload"),
        )

    async def _boot(self) -> str:
        await self._machine.Boot(
            machine_pb2.BootRequest(
                vm_id=VM_ID,
                ram_bytes=RAM_BYTES,
                kernel_command_line=f"swiotlb=force hv_pci_swiotlb={POOL}",
                kernel_release="6.18.26.3",
                publishes_pool=True,
            )
        )
        pool = await self._workload.Stats(machine_pb2.StatsRequest())
        return format_token(SwiotlbPool(Gpa(pool.pool_base), pool.pool_size_bytes))

    async def _add_child(self, child: device_host_pb2.AddChildRequest) -> None:
        await self._host.AddChild(child)

    async def _mount(
        self, tag: str, directory: Path | None, options: str, mount_point: Path
    ) -> None:
        backend = (
            {"fs": device_host_pb2.FsBackend(shared_dir=str(directory))}
            if directory
            else {"aggregate": device_host_pb2.AggregateBackend()}
        )
        made = await self._host.CreateDevice(
            device_host_pb2.CreateDeviceRequest(
                vm_id=VM_ID,
                instance_id=tag,
                tag=tag,
                options=build_options(tag, options, self._token, VM_ID),
                **backend,
            )
        )
        await self._machine.AttachDevice(
            machine_pb2.AttachDeviceRequest(
                instance_id=tag,
                device_class=device_pb2.DEVICE_CLASS_VIRTIO_FS,
                tag=tag,
                socket_path=made.socket_path,
            )
        )
        await self._workload.Mount(machine_pb2.MountRequest(tag=tag, mount_point=str(mount_point)))
