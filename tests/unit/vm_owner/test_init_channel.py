"""A guest's init channel: a client from reflection alone reports through it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from services.vm_owner.init_channel import INIT_CHANNEL, open_init_channel

if TYPE_CHECKING:
    from pathlib import Path

    from services.vm_owner.reports import Report

RELEASE = "6.18.26.3-1"


def report(address: str) -> bool:
    """Report a kernel release with nothing but what reflection says."""
    with grpc.insecure_channel(address) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName(INIT_CHANNEL).methods_by_name["ReportGuestCapabilities"]
        request = GetMessageClass(method.input_type)(capabilities={"kernel_release": RELEASE})
        call: Any = channel.unary_unary(
            f"/{INIT_CHANNEL}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return bool(call(request, timeout=10).pool_latched)


async def test_reflection_describes_the_channel(run_dir: Path) -> None:
    reports: list[Report] = []

    async def on_report(report: Report) -> bool:
        reports.append(report)
        return True

    channel = await open_init_channel(run_dir, on_report)
    try:
        assert await asyncio.to_thread(report, channel.address)
        async with grpc.aio.insecure_channel(channel.address) as direct:
            health = health_pb2_grpc.HealthStub(direct)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=INIT_CHANNEL))
    finally:
        await channel.close()
    assert [each.kernel_release for each in reports] == [RELEASE]
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
