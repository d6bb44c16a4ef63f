"""Which VM is judged when."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from services.dashboard.judging.schedule import AGAIN_S, DELAY_S, PAUSE, Judged, Schedule
from services.dashboard.records import Verdict
from services.handshake.errors import UnavailableError

SETTLE_S = 5.0


class Harness:
    """A schedule with a clock that the test sets, and a judge that answers what the test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.verdicts: dict[str, Verdict | None] = {}
        self.calls: list[tuple[str, bool]] = []
        self.fails = False
        self.work_s = 0.01
        self.schedule = Schedule(self.judge, SETTLE_S, lambda: self.now)

    async def judge(self, vm_id: str, settled: bool) -> Judged:
        self.calls.append((vm_id, settled))
        if self.fails:
            raise UnavailableError("JUDGE_LOST", "lost")
        return Judged(self.verdicts.get(vm_id, Verdict.VALID), self.work_s)

    async def pass_time(self, seconds: float) -> list[tuple[str, bool]]:
        """Let time pass; return the calls that follow, without waiting."""
        self.now += seconds
        self.calls = []
        while (found := self.schedule._next())[0] is not None:
            await self.schedule.judge_now(found[0])
        return self.calls


async def test_a_vm_is_judged_a_second_after_its_first_span() -> None:
    harness = Harness()
    harness.schedule.touch(["a"])
    assert await harness.pass_time(DELAY_S / 2) == []
    harness.schedule.touch(["a"])
    assert await harness.pass_time(DELAY_S / 2) == [("a", False)]
    assert await harness.pass_time(100) == []


async def test_a_vm_is_judged_once_a_second_at_most() -> None:
    harness = Harness()
    calls = 0
    for _ in range(100):
        harness.schedule.touch(["a"])
        calls += len(await harness.pass_time(DELAY_S / 10))
    assert 9 <= calls <= 10  # sums of tenths are not exact


async def test_an_open_verdict_is_judged_again_when_the_vm_has_settled() -> None:
    harness = Harness()
    harness.verdicts["a"] = Verdict.OPEN
    harness.schedule.touch(["a"])
    assert await harness.pass_time(DELAY_S) == [("a", False)]
    assert not harness.schedule.has_settled("a")
    assert await harness.pass_time(SETTLE_S - DELAY_S - 0.1) == []
    assert await harness.pass_time(0.2) == [("a", True)]
    assert harness.schedule.has_settled("a")
    assert await harness.pass_time(100) == []
    assert harness.schedule._quiet_since == {}


async def test_spans_that_come_meanwhile_put_it_off() -> None:
    harness = Harness()
    harness.verdicts["a"] = Verdict.OPEN
    harness.schedule.touch(["a"])
    await harness.pass_time(DELAY_S)
    await harness.pass_time(SETTLE_S - DELAY_S - 0.1)
    harness.schedule.touch(["a"])
    assert await harness.pass_time(0.2) == []
    assert await harness.pass_time(DELAY_S) == [("a", False)]
    assert await harness.pass_time(SETTLE_S) == [("a", True)]


async def test_a_vm_whose_judging_failed_is_judged_later() -> None:
    harness = Harness()
    harness.fails = True
    harness.schedule.touch(["a"])
    assert len(await harness.pass_time(DELAY_S)) == 1
    assert harness.schedule.waiting == 1
    harness.fails = False
    assert await harness.pass_time(AGAIN_S - 0.1) == []
    assert len(await harness.pass_time(0.2)) == 1
    assert harness.schedule.waiting == 0


async def test_a_vm_that_is_gone_is_left_out() -> None:
    harness = Harness()
    harness.verdicts["a"] = Verdict.OPEN
    harness.schedule.touch(["a", "b"])
    harness.schedule.forget(["a"])
    assert await harness.pass_time(DELAY_S) == [("b", False)]
    assert await harness.pass_time(100) == []


async def test_a_vm_whose_judging_is_much_work_waits_longer() -> None:
    harness = Harness()
    harness.work_s = 2.0
    harness.schedule.touch(["a"])
    await harness.pass_time(DELAY_S)
    harness.schedule.touch(["a"])
    assert await harness.pass_time(PAUSE * 2.0 - 1.0) == []
    harness.schedule.touch(["a"])
    assert len(await harness.pass_time(1.5)) == 1


async def test_a_busy_machine_puts_no_vm_off() -> None:
    harness = Harness()
    judge = harness.judge

    async def late(vm_id: str, settled: bool) -> Judged:
        harness.now += 60.0
        return await judge(vm_id, settled)

    harness.schedule = Schedule(late, SETTLE_S, lambda: harness.now)
    harness.schedule.touch(["a"])
    await harness.pass_time(DELAY_S)
    harness.schedule.touch(["a"])
    assert len(await harness.pass_time(DELAY_S)) == 1


async def test_a_vm_that_is_touched_while_it_is_judged_is_judged_again() -> None:
    harness = Harness()

    async def touching(vm_id: str, settled: bool) -> Judged:
        harness.calls.append((vm_id, settled))
        if len(harness.calls) == 1:
            harness.schedule.touch([vm_id])
        return Judged(Verdict.OPEN, 0.01)

    harness.schedule = Schedule(touching, SETTLE_S, lambda: harness.now)
    harness.schedule.touch(["a"])
    assert len(await harness.pass_time(DELAY_S)) == 1
    harness.calls = [("", False)]
    assert await harness.pass_time(DELAY_S) == [("a", False)]


async def test_an_unknown_vm_has_settled() -> None:
    assert Harness().schedule.has_settled("a")


async def test_a_vm_that_is_being_judged_is_not_judged_beside() -> None:
    harness = Harness()
    release = asyncio.Event()
    inside = 0

    async def slow(vm_id: str, settled: bool) -> Judged:
        nonlocal inside
        inside += 1
        assert inside == 1
        await release.wait()
        inside -= 1
        return Judged(Verdict.VALID, 0.01)

    harness.schedule = Schedule(slow, SETTLE_S, lambda: harness.now)
    first = asyncio.create_task(harness.schedule.judge_now("a"))
    await asyncio.sleep(0)
    await harness.schedule.judge_now("a")
    release.set()
    await first
    harness.now += DELAY_S
    assert harness.schedule._next() == ("a", None)


async def test_the_task_wakes_up_for_a_vm() -> None:
    done = asyncio.Event()

    async def judge(vm_id: str, settled: bool) -> Judged:
        done.set()
        return Judged(Verdict.VALID, 0.01)

    schedule = Schedule(judge, SETTLE_S, lambda: asyncio.get_running_loop().time() * 50)
    task = asyncio.create_task(schedule.run())
    await asyncio.sleep(0)
    schedule.touch(["a"])
    async with asyncio.timeout(10):
        await done.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
