"""The guest's gRPC edge: Machine for its VM owner, Workload for tests and demonstrations.

Owns the translation between protobuf and the guest only. Blocking calls run in threads.
"""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from porthole.machine.v1 import machine_pb2, machine_pb2_grpc

from services.rpc.convert import (
    device_class_from_proto,
    duration_to_proto,
    exhaustion_to_proto,
    timeout_from_proto,
)
from services.rpc.server import Servicer
from services.rpc.version import service_version
from services.simguest.guest import AttachSpec, BootSpec, Guest
from services.simguest.kernel import Kernel
from services.simguest.reports import InitEnd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Generator

    from services.simguest.workload.hash import FileDigest

T = TypeVar("T")

MACHINE: Final = "porthole.machine.v1.Machine"
WORKLOAD: Final = "porthole.machine.v1.Workload"

_DIGESTS_PER_BATCH: Final = 64
"""Digests that are fetched from the worker thread at a time."""


def servicers(guest: Guest) -> list[Servicer]:
    """Return the services of the guest's process."""
    return [
        Servicer(machine_pb2_grpc.add_MachineServicer_to_server, MachineServicer(guest), MACHINE),
        Servicer(
            machine_pb2_grpc.add_WorkloadServicer_to_server, WorkloadServicer(guest), WORKLOAD
        ),
    ]


class MachineServicer(machine_pb2_grpc.MachineServicer):
    """Serves porthole.machine.v1.Machine."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._running: set[asyncio.Task[Any]] = set()

    async def GetVersion(  # noqa: N802, D102
        self, request: machine_pb2.MachineGetVersionRequest, context: object
    ) -> machine_pb2.MachineGetVersionResponse:
        return machine_pb2.MachineGetVersionResponse(version=service_version(MACHINE))

    async def Boot(  # noqa: N802, D102
        self, request: machine_pb2.BootRequest, context: object
    ) -> machine_pb2.BootResponse:
        spec = BootSpec(
            ram_bytes=request.ram_bytes,
            kernel_command_line=request.kernel_command_line,
            kernel=Kernel(request.kernel_release, request.publishes_pool),
            init_channel_address=request.init_channel_address,
            vm_id=request.vm_id,
        )
        address = await self._to_the_end(self._guest.boot(spec))
        return machine_pb2.BootResponse(guest_init_address=address)

    async def AttachDevice(  # noqa: N802, D102
        self, request: machine_pb2.AttachDeviceRequest, context: object
    ) -> machine_pb2.AttachDeviceResponse:
        spec = AttachSpec(
            instance_id=request.instance_id,
            device_class=device_class_from_proto(request.device_class),
            tag=request.tag,
            socket_path=Path(request.socket_path),
            client_address=request.client_address,
            gateway_address=request.gateway_address,
            client_address_ipv6=request.client_address_ipv6,
            name_servers=tuple(request.name_servers),
        )
        await self._to_the_end(self._guest.attach(spec))
        return machine_pb2.AttachDeviceResponse()

    async def DetachDevice(  # noqa: N802, D102
        self, request: machine_pb2.DetachDeviceRequest, context: object
    ) -> machine_pb2.DetachDeviceResponse:
        await self._to_the_end(self._guest.detach(request.instance_id))
        return machine_pb2.DetachDeviceResponse()

    async def WatchMachine(  # noqa: N802, D102
        self, request: machine_pb2.WatchMachineRequest, context: object
    ) -> AsyncIterator[machine_pb2.WatchMachineResponse]:
        async for report in self._guest.reports.watch():
            if isinstance(report, InitEnd):
                end = machine_pb2.GuestInitEnd(cause=report.cause)
                yield machine_pb2.WatchMachineResponse(guest_init_end=end)
            else:
                yield machine_pb2.WatchMachineResponse(
                    instance_id=report.device_id, exhaustion=exhaustion_to_proto(report.exhaustion)
                )

    async def PowerOff(  # noqa: N802, D102
        self, request: machine_pb2.PowerOffRequest, context: object
    ) -> machine_pb2.PowerOffResponse:
        await self._to_the_end(self._guest.power_off())
        return machine_pb2.PowerOffResponse()

    async def _to_the_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Finish a change even when the caller hangs up, so that none is left half done."""
        task = asyncio.create_task(change)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)


class WorkloadServicer(machine_pb2_grpc.WorkloadServicer):
    """Serves porthole.machine.v1.Workload."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._workload = guest.workload

    async def GetVersion(  # noqa: N802, D102
        self, request: machine_pb2.WorkloadGetVersionRequest, context: object
    ) -> machine_pb2.WorkloadGetVersionResponse:
        return machine_pb2.WorkloadGetVersionResponse(version=service_version(WORKLOAD))

    async def Stats(  # noqa: N802, D102
        self, request: machine_pb2.StatsRequest, context: object
    ) -> machine_pb2.StatsResponse:
        in_use = self._guest.pool_usage()
        if in_use is None:
            return machine_pb2.StatsResponse()
        pool, usage = in_use
        return machine_pb2.StatsResponse(
            pool_base=pool.base,
            pool_size_bytes=pool.size_bytes,
            slots_total=usage.slots_total,
            slots_used=usage.slots_used,
            slots_used_high_water=usage.slots_used_high_water,
            bytes_bounced=usage.bytes_bounced,
        )

    async def Mount(  # noqa: N802, D102
        self, request: machine_pb2.MountRequest, context: object
    ) -> machine_pb2.MountResponse:
        await asyncio.to_thread(self._workload.mount, request.tag, request.mount_point)
        return machine_pb2.MountResponse()

    async def Unmount(  # noqa: N802, D102
        self, request: machine_pb2.UnmountRequest, context: object
    ) -> machine_pb2.UnmountResponse:
        await asyncio.to_thread(self._workload.unmount, request.tag)
        return machine_pb2.UnmountResponse()

    async def HashTree(  # noqa: N802, D102
        self, request: machine_pb2.HashTreeRequest, context: object
    ) -> AsyncIterator[machine_pb2.HashTreeResponse]:
        digests = self._workload.hash_tree(request.tag, request.path, request.exclude)
        async for batch in _from_thread(digests):
            answer = machine_pb2.HashTreeResponse()
            for digest in batch:
                answer.files.add(
                    path=digest.path, size_bytes=digest.size_bytes, sha256=digest.sha256
                )
            yield answer

    async def CopyTree(  # noqa: N802, D102
        self, request: machine_pb2.CopyTreeRequest, context: object
    ) -> machine_pb2.CopyTreeResponse:
        copied = await asyncio.to_thread(
            self._workload.copy_tree,
            request.source_tag,
            request.source_path,
            request.target_tag,
            request.target_path,
            request.exclude,
        )
        return machine_pb2.CopyTreeResponse(
            directories=copied.directories,
            files=copied.files,
            symbolic_links=copied.symbolic_links,
            bytes_copied=copied.bytes_copied,
        )

    async def HttpGet(  # noqa: N802, D102
        self, request: machine_pb2.HttpGetRequest, context: object
    ) -> machine_pb2.HttpGetResponse:
        got = await asyncio.to_thread(
            self._workload.http_get, request.url, timeout_from_proto(request.timeout)
        )
        return machine_pb2.HttpGetResponse(
            status=got.status, size_bytes=got.size_bytes, sha256=got.sha256
        )

    async def Ping(  # noqa: N802, D102
        self, request: machine_pb2.PingRequest, context: object
    ) -> machine_pb2.PingResponse:
        result = await asyncio.to_thread(
            self._workload.ping, request.address, request.count, timeout_from_proto(request.timeout)
        )
        return machine_pb2.PingResponse(
            sent=result.sent,
            received=result.received,
            round_trip_median=duration_to_proto(result.round_trip_median_s)
            if result.received
            else None,
        )

    async def Resolve(  # noqa: N802, D102
        self, request: machine_pb2.ResolveRequest, context: object
    ) -> machine_pb2.ResolveResponse:
        addresses = await asyncio.to_thread(
            self._workload.resolve, request.name, timeout_from_proto(request.timeout)
        )
        return machine_pb2.ResolveResponse(addresses=addresses)

    async def Serve(  # noqa: N802, D102
        self, request: machine_pb2.ServeRequest, context: object
    ) -> AsyncIterator[machine_pb2.ServeResponse]:
        serve = asyncio.to_thread(self._workload.serve, request.address, request.port, request.body)
        starting = asyncio.ensure_future(serve)
        try:
            service = await asyncio.shield(starting)
            yield machine_pb2.ServeResponse(port=service.port)
            await asyncio.get_running_loop().create_future()
        finally:
            # The caller may have hung up before it listened.
            await asyncio.wait([starting])
            if starting.exception() is None:
                await asyncio.to_thread(starting.result().close)


async def _from_thread(
    digests: Generator[FileDigest, None, None],
) -> AsyncIterator[list[FileDigest]]:
    """Iterate over a blocking generator in batches, without blocking the event loop."""

    def step() -> list[FileDigest]:
        return list(islice(digests, _DIGESTS_PER_BATCH))

    running = asyncio.ensure_future(asyncio.to_thread(step))
    try:
        while batch := await asyncio.shield(running):
            running = asyncio.ensure_future(asyncio.to_thread(step))
            yield batch
    finally:
        # The reader may have hung up during a step; a generator cannot be closed while it runs.
        await asyncio.wait([running])
        await asyncio.to_thread(digests.close)
