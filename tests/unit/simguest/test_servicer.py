"""The guest's gRPC edge, where a caller goes away."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest
from porthole.machine.v1 import machine_pb2

from services.handshake.errors import FailedPreconditionError
from services.simguest.servicer import WorkloadServicer

DEADLINE_S = 20
REQUEST = machine_pb2.ServeRequest(port=80)


class Workload:
    """Begins to serve when it is let to.

    Attributes:
        asked: Set when it is to serve.
        gate: It begins when this is set.
        failure: Why it cannot.
        closed: Set when what it serves is closed.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.gate = threading.Event()
        self.failure: FailedPreconditionError | None = None
        self.closed = threading.Event()

    def serve(self, address: str, port: int, body: bytes) -> SimpleNamespace:
        self.asked.set()
        assert self.gate.wait(DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        return SimpleNamespace(port=port, close=self.closed.set)


@pytest.fixture
def workload() -> Workload:
    return Workload()


@pytest.fixture
def servicer(workload: Workload) -> WorkloadServicer:
    return WorkloadServicer(SimpleNamespace(workload=workload))  # type: ignore[arg-type]


async def test_serving_ends_with_the_call(workload: Workload, servicer: WorkloadServicer) -> None:
    workload.gate.set()
    answers = aiter(servicer.Serve(REQUEST, None))
    assert (await anext(answers)).port == 80
    waiting = asyncio.ensure_future(anext(answers))
    assert not workload.closed.is_set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert workload.closed.is_set()


async def test_serving_ends_with_a_caller_that_goes_before_it_has_begun(
    workload: Workload, servicer: WorkloadServicer
) -> None:
    first = asyncio.ensure_future(anext(aiter(servicer.Serve(REQUEST, None))))
    assert await asyncio.to_thread(workload.asked.wait, DEADLINE_S)
    first.cancel()
    await asyncio.sleep(0)
    workload.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert workload.closed.is_set()


async def test_what_cannot_be_served_is_refused(
    workload: Workload, servicer: WorkloadServicer
) -> None:
    workload.failure = FailedPreconditionError("SERVE_FAILED", "the port is taken")
    workload.gate.set()
    with pytest.raises(FailedPreconditionError, match="the port is taken"):
        await anext(aiter(servicer.Serve(REQUEST, None)))
    assert not workload.closed.is_set()
