"""Streams from device hosts and machines outlive the operation that opened them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from services.handshake.exhaustion import Exhaustion
from services.vm_owner.device_hosts import DeviceHosts, DeviceStatus
from services.vm_owner.machines.external import ExternalMachine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tests.support.owner_peers import Rig

ONE_VM = SpanContext(trace_id=1, span_id=1, is_remote=False, trace_flags=TraceFlags(1))


class Host:
    """A device host of which only the event stream is used."""

    def __init__(self) -> None:
        self.watched: asyncio.Future[SpanContext] = asyncio.get_running_loop().create_future()

    async def watch(self) -> AsyncIterator[DeviceStatus]:
        self.watched.set_result(trace.get_current_span().get_span_context())
        await asyncio.Event().wait()
        yield DeviceStatus("", "", "")

    async def close(self) -> None:
        pass


async def test_the_event_stream_is_in_no_vms_trace() -> None:
    host = Host()

    async def dial() -> Any:
        return host

    hosts = DeviceHosts({False: dial}, lambda _: None, lambda _: None)
    try:
        with trace.use_span(NonRecordingSpan(ONE_VM)):
            assert trace.get_current_span().get_span_context().trace_id == ONE_VM.trace_id
            assert await hosts.get(elevated=False) is cast("object", host)
        seen = await asyncio.wait_for(host.watched, 10)
    finally:
        await hosts.close()
    assert not seen.is_valid


async def test_the_stream_of_a_machine_is_in_no_vms_trace(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: asyncio.Future[SpanContext] = asyncio.get_running_loop().create_future()

    async def watch(_: object) -> AsyncIterator[tuple[str, Exhaustion]]:
        watched.set_result(trace.get_current_span().get_span_context())
        await asyncio.Event().wait()
        yield "", Exhaustion("", 0, 0)

    monkeypatch.setattr(ExternalMachine, "watch", watch)
    with trace.use_span(NonRecordingSpan(ONE_VM)):
        await rig.owner.create(rig.vm_spec())
    assert not (await asyncio.wait_for(watched, 10)).is_valid
