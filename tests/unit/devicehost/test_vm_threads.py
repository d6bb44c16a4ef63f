"""Calls of one VM hold up no other VM, and no end of the process."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vm_threads import VmThreads

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 3


class Hanging:
    """Calls that hang until `end`."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.names: list[str] = []
        self._may_end = threading.Event()

    def __call__(self) -> None:
        self.names.append(threading.current_thread().name)
        self.entered.release()
        self._may_end.wait(30)

    def end(self) -> None:
        self._may_end.set()


@pytest.fixture
def hang() -> Iterator[Hanging]:
    hang = Hanging()
    yield hang
    hang.end()


async def test_a_call_returns_and_raises_what_it_does() -> None:
    threads = VmThreads()
    assert await threads.run("a", lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.run("a", lambda: 1 // 0)
    await asyncio.sleep(0)
    assert threads._vms == {}


async def test_one_vm_whose_calls_hang_holds_up_no_other(hang: Hanging) -> None:
    threads = VmThreads(LIMIT)
    stuck = [asyncio.create_task(threads.run("hostile-vm", hang)) for _ in range(5 * LIMIT)]
    for _ in range(LIMIT):
        await asyncio.to_thread(hang.entered.acquire, timeout=10)
    name = await asyncio.wait_for(
        threads.run("innocent-vm", lambda: threading.current_thread().name), 10
    )
    assert name == "vm-innocent"
    assert hang.names == ["vm-hostile-"] * LIMIT, "not one more at a time"
    hang.end()
    await asyncio.gather(*stuck)
    assert len(hang.names) == 5 * LIMIT
    await asyncio.sleep(0)
    assert threads._vms == {}


async def test_a_call_that_nobody_waits_for_counts_until_it_ends(hang: Hanging) -> None:
    threads = VmThreads(1)
    abandoned = asyncio.create_task(threads.run("a", hang))
    await asyncio.to_thread(hang.entered.acquire, timeout=10)
    abandoned.cancel()
    waits = asyncio.create_task(threads.run("a", lambda: 1))
    gives_up = asyncio.create_task(threads.run("a", lambda: 2))
    await asyncio.wait([abandoned])
    assert not (await asyncio.wait([waits], timeout=0.05))[0]
    gives_up.cancel()
    hang.end()
    assert await waits == 1
    await asyncio.wait([gives_up])
    assert threads._vms == {}


def test_a_call_that_hangs_does_not_keep_a_process_from_ending() -> None:
    program = """
import asyncio, threading
from services.devicehost.vm_threads import VmThreads

async def main():
    threads = VmThreads()
    asyncio.ensure_future(threads.run("a", threading.Event().wait))
    await asyncio.sleep(0.1)

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
