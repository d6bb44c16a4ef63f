"""Connections to device hosts are shared, and streams outlive the operation that opened them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from services.handshake.errors import UnavailableError
from services.handshake.exhaustion import Exhaustion
from services.vm_owner.device_hosts import DeviceHosts, DeviceStatus
from services.vm_owner.machines import KernelExhaustion
from services.vm_owner.machines.external import ExternalMachine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.vm_owner.machines import MachineReport
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

    async def watch(_: object) -> AsyncIterator[MachineReport]:
        watched.set_result(trace.get_current_span().get_span_context())
        await asyncio.Event().wait()
        yield KernelExhaustion("", Exhaustion("", 0, 0))

    monkeypatch.setattr(ExternalMachine, "watch", watch)
    with trace.use_span(NonRecordingSpan(ONE_VM)):
        await rig.owner.create(rig.vm_spec())
    assert not (await asyncio.wait_for(watched, 10)).is_valid


async def test_all_that_wait_for_a_device_host_share_one_attempt() -> None:
    """Each of them holds the lock of a VM: it must not wait for one attempt per VM."""
    attempts = 0
    gate = asyncio.Event()

    async def dial() -> Any:
        nonlocal attempts
        attempts += 1
        await gate.wait()
        raise UnavailableError("PEER_UNAVAILABLE", "on purpose")

    hosts = DeviceHosts({False: dial}, lambda _: None, lambda _: None)
    waiting = [asyncio.create_task(hosts.get(elevated=False)) for _ in range(3)]
    await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert [type(outcome) for outcome in outcomes] == [UnavailableError] * 3
    assert attempts == 1
    with pytest.raises(UnavailableError):
        await hosts.get(elevated=False)
    assert attempts == 2
    await hosts.close()


async def test_a_caller_who_goes_away_leaves_the_attempt_to_the_others() -> None:
    host = Host()
    gate = asyncio.Event()

    async def dial() -> Any:
        await gate.wait()
        return host

    hosts = DeviceHosts({False: dial}, lambda _: None, lambda _: None)
    first, second = (asyncio.create_task(hosts.get(elevated=False)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    assert await asyncio.wait_for(second, 10) is cast("object", host)
    await hosts.close()


async def test_closing_ends_an_attempt() -> None:
    ended = asyncio.Event()

    async def dial() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    hosts = DeviceHosts({False: dial}, lambda _: None, lambda _: None)
    waiting = asyncio.create_task(hosts.get(elevated=False))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(hosts.close(), 10)
    assert ended.is_set()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_both_are_closed_whatever_a_stream_and_the_other_one_did(
    caplog: pytest.LogCaptureFixture,
) -> None:
    closed: list[str] = []

    class Broken(Host):
        def __init__(self, name: str) -> None:
            super().__init__()
            self._name = name

        async def watch(self) -> AsyncIterator[DeviceStatus]:
            self.watched.set_result(SpanContext(0, 0, is_remote=False))
            if self._name:
                raise ValueError("unforeseen")
            yield DeviceStatus("", "", "")

        async def close(self) -> None:
            closed.append(self._name)
            raise OSError("unforeseen, too")

    made = {False: Broken("ordinary"), True: Broken("elevated")}

    async def ordinary() -> Any:
        return made[False]

    async def elevated() -> Any:
        return made[True]

    hosts = DeviceHosts({False: ordinary, True: elevated}, lambda _: None, lambda _: None)
    for each in made:
        await hosts.get(elevated=each)
        await asyncio.wait_for(made[each].watched, 10)
    await asyncio.wait_for(hosts.close(), 10)
    assert closed == ["ordinary", "elevated"]
    failures = [type(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert failures == [ValueError, ValueError, OSError, OSError]
