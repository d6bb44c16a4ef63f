"""What the connections to device hosts keep apart from the VM that happened to open them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from services.vm_owner.device_hosts import DeviceHosts, DeviceStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
