"""What a machine is told of links, and when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    PortholeError,
)
from services.vm_owner import adapter_links as module
from services.vm_owner.adapter_links import AdapterLinks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Machine:
    """Notes what it is told; `gate` holds it up."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[str, bool]] = asyncio.Queue()
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: PortholeError | None = None

    async def set_link(self, instance_id: str, is_up: bool) -> None:
        self.told.put_nowait((instance_id, is_up))
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def next(self) -> tuple[str, bool]:
        async with asyncio.timeout(10):
            return await self.told.get()


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest_asyncio.fixture
async def links(machine: Machine) -> AsyncIterator[AdapterLinks]:
    made = AdapterLinks(machine.set_link)
    yield made
    await made.close()


async def test_a_loss_and_a_return_are_told_in_order(machine: Machine, links: AdapterLinks) -> None:
    links.attached("a")
    links.report("a", False)
    assert await machine.next() == ("a", False)
    links.report("a", True)
    assert await machine.next() == ("a", True)


async def test_a_link_that_came_back_in_the_meantime_goes_and_comes_back(
    machine: Machine, links: AdapterLinks
) -> None:
    links.attached("a")
    for _ in range(3):
        links.report("a", False)
        links.report("a", True)
    assert [await machine.next(), await machine.next()] == [("a", False), ("a", True)]
    links.report("b", False)
    links.attached("b")
    assert await machine.next() == ("b", False), "nothing more of a"


async def test_reports_of_what_has_not_changed_are_not_told(
    machine: Machine, links: AdapterLinks
) -> None:
    links.attached("a")
    links.report("a", True)  # the state of the device has changed
    links.report("a", False)
    assert await machine.next() == ("a", False)
    links.report("a", False)
    links.report("a", True)
    assert await machine.next() == ("a", True)


async def test_an_adapter_that_the_machine_does_not_have_yet_is_told_later(
    machine: Machine, links: AdapterLinks
) -> None:
    links.report("a", False)
    links.attached("b")
    links.report("b", False)
    assert await machine.next() == ("b", False)
    links.attached("a")
    assert await machine.next() == ("a", False)


async def test_an_adapter_that_is_forgotten_is_not_told(
    machine: Machine, links: AdapterLinks
) -> None:
    links.attached("a")
    links.report("a", False)
    links.forget("a")
    links.forget("a")
    links.attached("b")
    links.report("b", False)
    assert await machine.next() == ("b", False)


async def test_a_machine_that_refuses_is_told_of_the_next_change(
    machine: Machine, links: AdapterLinks
) -> None:
    machine.failure = FailedPreconditionError("QEMU_REFUSED", "it was unplugged")
    links.attached("a")
    links.report("a", False)
    assert await machine.next() == ("a", False)
    links.report("a", True)
    assert await machine.next() == ("a", True)


@pytest.mark.parametrize("is_back", [False, True])
async def test_a_machine_that_does_not_answer_is_told_again(
    machine: Machine, links: AdapterLinks, is_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    machine.failure = DeadlineExceededError("QEMU_SILENT", "QEMU does not answer set_link")
    links.attached("a")
    links.report("a", False)
    if is_back:
        links.report("a", True)
    assert [await machine.next() for _ in range(3)] == [("a", False)] * 3
    machine.failure = None
    if not is_back:
        links.report("a", True)
    while (told := await machine.next()) == ("a", False):
        pass  # the tries before, and the one that succeeds
    assert told == ("a", True)


async def test_a_link_that_came_back_is_told_again(
    machine: Machine, links: AdapterLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    links.attached("a")
    links.report("a", False)
    assert await machine.next() == ("a", False)
    machine.failure = DeadlineExceededError("QEMU_SILENT", "QEMU does not answer set_link")
    links.report("a", True)
    assert [await machine.next() for _ in range(3)] == [("a", True)] * 3


async def test_a_machine_that_may_have_heard_of_a_return_is_told_of_the_next_loss(
    machine: Machine, links: AdapterLinks
) -> None:
    links.attached("a")
    links.report("a", False)
    assert await machine.next() == ("a", False)
    machine.failure = DeadlineExceededError("QEMU_SILENT", "QEMU does not answer set_link")
    links.report("a", True)
    assert await machine.next() == ("a", True)
    links.report("a", False)
    assert await machine.next() == ("a", False)


async def test_one_that_does_not_answer_holds_up_no_news_of_another(
    machine: Machine, links: AdapterLinks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 3600)
    machine.failure = DeadlineExceededError("QEMU_SILENT", "QEMU does not answer set_link")
    links.attached("a")
    links.report("a", False)
    assert await machine.next() == ("a", False)
    links.attached("b")
    links.report("b", False)
    assert [await machine.next() for _ in range(2)] == [("a", False), ("b", False)]


async def test_closing_waits_for_no_machine(machine: Machine, links: AdapterLinks) -> None:
    machine.gate.clear()
    links.attached("a")
    links.report("a", False)
    await machine.next()
    async with asyncio.timeout(10):
        await links.close()
        await links.close()
