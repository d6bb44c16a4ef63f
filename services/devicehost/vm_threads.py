"""Threads for calls that block: a few for each VM, so that the calls of one hold up no other VM.

Owns the threads and the queues before them. The threads are daemons: a call that hangs, for
instance on a dead network drive, keeps the process from ending no more than it keeps other VMs
waiting. Must not know what is called.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

CALLS_OF_A_VM: Final = 16
"""Most calls for one VM that run at a time. Its further calls wait until one of these ends."""

T = TypeVar("T")


class _Vm:
    """The calls of one VM, as long as there are any."""

    def __init__(self, limit: int) -> None:
        self.room = asyncio.Semaphore(limit)
        self.calls = 0


class VmThreads:
    """Runs blocking calls for coroutines of the event loop that it is made on."""

    def __init__(self, limit: int = CALLS_OF_A_VM) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._vms: dict[str, _Vm] = {}

    async def run(self, vm_id: str, call: Callable[[], T]) -> T:
        """Make one call on a thread, and wait for it.

        Args:
            vm_id: Of the VM that waits for it; empty for calls that concern all VMs.
            call: It goes on when this is cancelled while it runs, and counts until it ends.

        Returns:
            What the call returned.

        Raises:
            BaseException: What the call raised.
            RuntimeError: The process may have no further thread.
        """
        vm = self._vms.setdefault(vm_id, _Vm(self._limit))
        vm.calls += 1
        try:
            await vm.room.acquire()
        except BaseException:
            self._forget_call(vm_id, vm)
            raise
        outcome: asyncio.Future[T] = self._loop.create_future()
        thread = threading.Thread(
            target=self._make_call,
            args=(call, outcome, partial(self._end_call, vm_id, vm)),
            name=f"vm-{vm_id[:8] or 'all'}",
            daemon=True,
        )
        try:
            thread.start()
        except BaseException:
            self._end_call(vm_id, vm)
            raise
        return await outcome

    def _make_call(
        self, call: Callable[[], T], outcome: asyncio.Future[T], end: Callable[[], None]
    ) -> None:
        """Make a call and settle its outcome; runs on a thread of its own."""
        try:
            result = call()
        except BaseException as error:
            settle = partial(outcome.set_exception, error)
        else:
            settle = partial(outcome.set_result, result)

        def finish() -> None:
            end()
            if not outcome.done():  # somebody waits for it
                settle()

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(finish)

    def _end_call(self, vm_id: str, vm: _Vm) -> None:
        vm.room.release()
        self._forget_call(vm_id, vm)

    def _forget_call(self, vm_id: str, vm: _Vm) -> None:
        vm.calls -= 1
        if not vm.calls:
            del self._vms[vm_id]
