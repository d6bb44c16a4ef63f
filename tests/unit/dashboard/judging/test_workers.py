"""The judging processes are replaced when they are lost, or take too long."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from services.dashboard.judging import workers as workers_module
from services.dashboard.judging.workers import Workers
from services.dashboard.records import Verdict
from services.dashboard.store import Limits, Writer
from services.handshake.errors import UnavailableError
from tests.support.handshake_traces import wslc
from tests.support.otlp_requests import spans_of, vm_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    writer = Writer(tmp_path / "d.sqlite", Limits(10**12, 1 << 30))
    writer.put_spans(spans_of(wslc(), 1)).result(10)
    made = Workers(tmp_path / "d.sqlite")
    yield made
    made.close()
    writer.close()


def pids(workers: Workers) -> list[int]:
    assert workers._pool is not None
    return list(workers._pool._processes)


async def until_it_fails(workers: Workers) -> None:
    while True:  # the pool notices a moment later
        await workers.judge(vm_id(1), settled=True)


async def test_a_vm_is_judged_described_and_handed_out(workers: Workers) -> None:
    judged = await workers.judge(vm_id(1), settled=False)
    assert judged is not None
    assert (judged.judgement.verdict, judged.seen) == (Verdict.VALID, 1)
    described = await workers.describe(vm_id(1), settled=True)
    assert described is not None
    assert described[1]["lives"][0]["verdict"] == "valid"
    lines = await workers.trace(vm_id(1))
    assert lines is not None
    assert len(lines.splitlines()) == len(spans_of(wslc(), 1).spans)
    assert await workers.judge("nobody", settled=True) is None
    assert await workers.describe("nobody", settled=True) is None
    assert await workers.trace("nobody") is None


async def test_a_process_that_is_lost_is_replaced(workers: Workers) -> None:
    await workers.judge(vm_id(1), settled=True)
    for pid in pids(workers):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(UnavailableError) as caught:
        await until_it_fails(workers)
    assert caught.value.reason == "JUDGE_LOST"
    assert await workers.judge(vm_id(1), settled=True) is not None


async def test_a_process_that_is_stuck_is_replaced(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    await workers.judge(vm_id(1), settled=True)
    stuck = pids(workers)
    for pid in stuck:
        os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as impatient:
        impatient.setattr(workers_module, "DEADLINE_S", 0.2)
        with pytest.raises(UnavailableError) as caught:
            await workers.judge(vm_id(1), settled=True)
    assert caught.value.reason == "JUDGE_BUSY"
    assert await workers.judge(vm_id(1), settled=True) is not None
    assert set(pids(workers)).isdisjoint(stuck)
