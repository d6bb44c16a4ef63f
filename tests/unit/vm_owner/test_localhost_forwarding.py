"""Localhost forwarding against guests that report what they like."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from services.handshake.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
    UnavailableError,
)
from services.handshake.ports import PortKey, PortMapping, PortProtocol
from services.vm_owner import localhost_forwarding as module
from services.vm_owner.localhost_forwarding import (
    FIRST_PORT,
    MAX_PORTS,
    ROUND_CHANGES,
    Listener,
    LocalhostForwarding,
    wanted_keys,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

V4, V6 = "127.0.0.1", "::1"


def key(port: int, address: str = V4) -> PortKey:
    return PortKey(PortProtocol.TCP, address, port)


def both(*ports: int) -> list[Listener]:
    return [Listener(port, ipv4=True, ipv6=False) for port in ports]


@pytest.mark.parametrize("port", [0, 1, 80, 1023, 65536, 1 << 31])
def test_no_port_outside_of_the_policy_is_wanted(port: int) -> None:
    assert wanted_keys(both(port), set()) == (frozenset(), 0)


def test_only_loopback_is_wanted_whatever_is_reported() -> None:
    everything = [Listener(port, ipv4=True, ipv6=True) for port in range(-5, 70_000)]
    wanted, left_out = wanted_keys(everything, set())
    assert len(wanted) == MAX_PORTS
    assert {each.address for each in wanted} == {V4, V6}
    assert {each.protocol for each in wanted} == {PortProtocol.TCP}
    assert {each.port for each in wanted} == set(range(FIRST_PORT, FIRST_PORT + MAX_PORTS // 2))
    assert left_out == 2 * (65536 - FIRST_PORT) - MAX_PORTS


def test_what_is_mapped_gives_way_to_nobody() -> None:
    kept = key(60_000)
    wanted, _ = wanted_keys(both(*range(2000, 3000), 60_000), {kept})
    assert kept in wanted
    assert len(wanted) == MAX_PORTS


def test_a_port_of_one_family_is_mapped_in_it() -> None:
    reported = [Listener(3000, ipv4=False, ipv6=True), Listener(3001, ipv4=True, ipv6=False)]
    assert wanted_keys(reported, set())[0] == {key(3000, V6), key(3001)}


class Stage:
    """A guest that reports, and a host that maps.

    Attributes:
        mapped: What is mapped now.
        changes: All that was asked of the host, in order.
        refusals: What the host refuses, by port.
    """

    def __init__(self) -> None:
        self.reports: asyncio.Queue[list[Listener] | PortholeError] = asyncio.Queue()
        self.mapped: set[PortKey] = set()
        self.changes: list[str] = []
        self.refusals: dict[int, PortholeError] = {}
        self.warnings: list[str] = []
        self.dialled = 0
        self.moved = asyncio.Event()
        self.forwarding = LocalhostForwarding(
            SimpleNamespace(vm_id="vm", warn_once=self._warn),  # type: ignore[arg-type]
            self._dial,
            self._map,
            self._unmap,
        )

    def _warn(self, warning: Any) -> bool:
        new = warning.id not in self.warnings
        self.warnings += [warning.id] * new
        self.moved.set()
        return new

    async def _dial(self) -> Any:
        self.dialled += 1
        return self

    async def listeners(self) -> AsyncIterator[list[Listener]]:
        while True:
            report = await self.reports.get()
            if isinstance(report, PortholeError):
                raise report
            yield report

    async def close(self) -> None: ...

    async def _map(self, mapping: PortMapping) -> PortMapping:
        assert mapping.guest_port == mapping.key.port
        self.changes.append(f"+{mapping.key.port}")
        self.moved.set()
        if refusal := self.refusals.get(mapping.key.port):
            raise refusal
        self.mapped.add(mapping.key)
        return mapping

    async def _unmap(self, wanted: PortKey) -> None:
        self.changes.append(f"-{wanted.port}")
        self.moved.set()
        if wanted not in self.mapped:
            raise NotFoundError("PORT_UNKNOWN", "somebody has ended it")
        self.mapped.discard(wanted)

    async def until(self, done: Any) -> None:
        async with asyncio.timeout(20):
            while not done():
                self.moved.clear()
                await self.moved.wait()


@pytest_asyncio.fixture
async def stage(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    made = Stage()
    made.forwarding.start()
    yield made
    await made.forwarding.close()


async def test_ports_come_and_go_with_what_the_guest_listens_on(stage: Stage) -> None:
    stage.reports.put_nowait(both(3000, 3001))
    await stage.until(lambda: stage.mapped == {key(3000), key(3001)})
    stage.reports.put_nowait(both(3001, 3002))
    await stage.until(lambda: stage.mapped == {key(3001), key(3002)})
    stage.reports.put_nowait([])
    await stage.until(lambda: not stage.mapped)
    assert stage.changes == ["+3000", "+3001", "-3000", "+3002", "-3001", "-3002"]
    assert stage.warnings == []


async def test_a_port_that_the_host_refuses_is_one_warning_and_no_repetition(stage: Stage) -> None:
    stage.refusals[3000] = FailedPreconditionError("PORT_IN_USE", "another has it")
    stage.refusals[3001] = PermissionDeniedError("PORT_NOT_PERMITTED", "it is privileged")
    stage.reports.put_nowait(both(3000, 3001, 3002))
    await stage.until(lambda: stage.mapped == {key(3002)})
    stage.reports.put_nowait(both(3000, 3001, 3002, 3003))
    await stage.until(lambda: key(3003) in stage.mapped)
    assert stage.changes == ["+3000", "+3001", "+3002", "+3003"]
    assert stage.warnings == ["PortNotForwarded"]
    del stage.refusals[3000]
    stage.reports.put_nowait(both(3003))
    await stage.until(lambda: stage.mapped == {key(3003)})
    stage.reports.put_nowait(both(3000, 3003))
    await stage.until(lambda: stage.mapped == {key(3000), key(3003)})


async def test_a_refusal_that_passes_is_tried_again(stage: Stage) -> None:
    stage.refusals[3000] = UnavailableError("USER_NETWORK_DOWN", "passt is starting")
    stage.reports.put_nowait(both(3000))
    await stage.until(lambda: len(stage.changes) >= 2)
    stage.refusals.clear()
    await stage.until(lambda: stage.mapped == {key(3000)})
    assert stage.warnings == []


async def test_a_mapping_that_somebody_has_ended_is_forgotten(stage: Stage) -> None:
    stage.reports.put_nowait(both(3000))
    await stage.until(lambda: stage.mapped == {key(3000)})
    stage.mapped.clear()
    stage.reports.put_nowait([])
    await stage.until(lambda: stage.changes[-1] == "-3000")
    stage.reports.put_nowait(both(3000))
    await stage.until(lambda: stage.mapped == {key(3000)})


async def test_a_guest_that_flaps_costs_bounded_work(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 3600)
    # The first round takes what is there; the others wait for the pause that never ends here.
    for number in range(1000):
        stage.reports.put_nowait(both(*range(2000 + number % 2, 3000)))
    await stage.until(lambda: len(stage.changes) >= ROUND_CHANGES)
    while not stage.reports.empty():  # noqa: ASYNC110 - all have been taken, without a wait
        await asyncio.sleep(0)
    assert len(stage.changes) == ROUND_CHANGES
    assert stage.warnings == ["PortsLeftOut"]


async def test_guest_init_that_is_lost_is_asked_again(stage: Stage) -> None:
    stage.reports.put_nowait(UnavailableError("PEER_UNAVAILABLE", "it is gone"))
    stage.reports.put_nowait(both(3000))
    await stage.until(lambda: stage.mapped == {key(3000)})
    assert stage.dialled == 2


async def test_one_that_cannot_tell_is_asked_once(stage: Stage) -> None:
    stage.reports.put_nowait(FailedPreconditionError("METHOD_UNIMPLEMENTED", "it is older"))
    follow, _ = stage.forwarding._tasks
    await asyncio.wait_for(follow, 20)
    assert stage.dialled == 1
