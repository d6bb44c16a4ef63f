"""Localhost forwarding against guests that report what they like."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from services.handshake.errors import (
    FailedPreconditionError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.handshake.ports import PortKey, PortMapping, PortProtocol, PortState
from services.handshake.trace.judgement import EVENTS_KEPT
from services.vm_owner import localhost_forwarding as module
from services.vm_owner.localhost_forwarding import (
    BURST_CHANGES,
    CHANGE_S,
    FIRST_PORT,
    MAX_PORTS,
    ROUND_CHANGES,
    ChangeBudget,
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


def test_with_too_many_mapped_nothing_is_added() -> None:
    mapped = {key(port) for port in range(3000, 3000 + MAX_PORTS + 1)}
    wanted, left_out = wanted_keys(both(*range(2000, 4000)), mapped)
    assert wanted == mapped
    assert left_out == 2000 - len(mapped)


def test_a_port_of_one_family_is_mapped_in_it() -> None:
    reported = [Listener(3000, ipv4=False, ipv6=True), Listener(3001, ipv4=True, ipv6=False)]
    assert wanted_keys(reported, set())[0] == {key(3000, V6), key(3001)}


def test_a_budget_is_spent_and_fills_again() -> None:
    budget, now_s = ChangeBudget(), 1_000_000.0
    assert [budget.take(now_s) for _ in range(BURST_CHANGES)] == [0.0] * BURST_CHANGES
    assert budget.take(now_s) == CHANGE_S
    assert budget.take(now_s + CHANGE_S / 4) == CHANGE_S * 3 / 4
    assert budget.take(now_s + CHANGE_S) == 0
    assert budget.take(now_s + CHANGE_S) == CHANGE_S
    now_s += 1_000_000
    assert [budget.take(now_s) for _ in range(BURST_CHANGES)] == [0.0] * BURST_CHANGES
    assert budget.take(now_s) == CHANGE_S, "it has not filled beyond its bound"


def test_a_guest_that_flaps_leaves_its_owner_able_to_judge_for_hours() -> None:
    budget, changes = ChangeBudget(), 0
    for second in range(4 * 3600):
        while budget.take(1000.0 + second) == 0:
            changes += 1
    assert changes < EVENTS_KEPT - 100


class Stage:
    """A guest that reports, and a host that maps.

    Attributes:
        mapped: What is mapped now.
        changes: All that was asked of the host, in order.
        most_mapped: The most that were mapped at a time.
        refusals: What the host refuses to map, by port.
        made: What the host has answered to mapping, by key.
        unmap_failure: What the host says to each unmapping.
        on_map: What the guest reports while the host maps a port.
    """

    def __init__(self) -> None:
        self.reports: asyncio.Queue[list[Listener] | PortholeError] = asyncio.Queue()
        self.mapped: set[PortKey] = set()
        self.changes: list[str] = []
        self.made: dict[PortKey, PortMapping] = {}
        self.most_mapped = 0
        self.refusals: dict[int, PortholeError] = {}
        self.unmap_failure: PortholeError | None = None
        self.on_map: dict[int, list[Listener]] = {}
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
        if report := self.on_map.pop(mapping.key.port, None):
            self.reports.put_nowait(report)
            while not self.reports.empty():  # noqa: ASYNC110 - it is taken without a wait
                await asyncio.sleep(0)
        if refusal := self.refusals.get(mapping.key.port):
            raise refusal
        self.mapped.add(mapping.key)
        self.most_mapped = max(self.most_mapped, len(self.mapped))
        self.made[mapping.key] = replace(mapping, state=PortState.LISTENING)
        return self.made[mapping.key]

    async def _unmap(self, mapping: PortMapping) -> None:
        wanted = mapping.key
        assert mapping is self.made[wanted]
        self.changes.append(f"-{wanted.port}")
        self.moved.set()
        if self.unmap_failure is not None:
            raise self.unmap_failure
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


async def test_the_bound_holds_while_nothing_can_be_unmapped(stage: Stage) -> None:
    first, second = range(3000, 3000 + MAX_PORTS), range(3001, 3001 + MAX_PORTS)
    stage.reports.put_nowait(both(*first))
    await stage.until(lambda: len(stage.mapped) == MAX_PORTS)
    stage.unmap_failure = UnavailableError("USER_NETWORK_DOWN", "passt is starting")
    stage.reports.put_nowait(both(*second))
    await stage.until(lambda: stage.changes.count("-3000") >= 3)
    stage.unmap_failure = None
    await stage.until(lambda: stage.mapped == {key(port) for port in second})
    assert stage.most_mapped == MAX_PORTS


async def test_a_report_that_comes_during_a_round_counts_in_it(stage: Stage) -> None:
    second = range(2000, 2010)
    stage.on_map[3000] = both(*second)
    stage.reports.put_nowait(both(*range(3000, 3010)))
    await stage.until(lambda: stage.mapped == {key(port) for port in second})
    assert stage.changes == ["+3000", "-3000", *(f"+{port}" for port in second)]


async def test_a_failure_that_passes_ends_the_round_and_lengthens_the_pause(stage: Stage) -> None:
    down = UnavailableError("USER_NETWORK_DOWN", "passt is starting")
    stage.refusals |= dict.fromkeys(range(3000, 3020), down)
    forwarding = stage.forwarding
    await forwarding.close()
    forwarding._wanted, _ = wanted_keys(both(*range(3000, 3020)), set())
    pauses = [await forwarding._change() for _ in range(20)]
    assert stage.changes == ["+3000"] * 20
    assert pauses == [min(module.RETRY_S * 2**tries, module.LONGEST_RETRY_S) for tries in range(20)]
    del stage.refusals[3000]
    assert await forwarding._change() == module.RETRY_S, "one was made meanwhile"
    assert stage.changes[20:] == ["+3000", "+3001"]


async def test_changes_wait_when_their_budget_is_spent(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BURST_CHANGES", 5)
    stage.refusals[3001] = FailedPreconditionError("PORT_IN_USE", "another has it")
    forwarding = stage.forwarding
    await forwarding.close()
    forwarding._wanted, _ = wanted_keys(both(*range(3000, 3010)), set())
    assert CHANGE_S - 30 < await forwarding._change() <= CHANGE_S
    assert stage.changes == [f"+{port}" for port in range(3000, 3005)], "a try is a change"
    assert forwarding._changed.is_set(), "the others are changed after the pause"
    forwarding._wanted, _ = wanted_keys(both(), set())
    assert CHANGE_S - 30 < await forwarding._change() <= CHANGE_S
    assert len(stage.changes) == 5


async def test_a_full_table_is_a_refusal(stage: Stage) -> None:
    stage.refusals[3000] = ResourceExhaustedError("PORTS_EXHAUSTED", "it has 256")
    stage.reports.put_nowait(both(3000, 3001))
    await stage.until(lambda: stage.mapped == {key(3001)})
    stage.reports.put_nowait(both(3000, 3001, 3002))
    await stage.until(lambda: key(3002) in stage.mapped)
    assert stage.changes == ["+3000", "+3001", "+3002"]
    assert stage.warnings == ["PortNotForwarded"]


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
