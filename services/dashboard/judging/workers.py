"""The judging processes: calls of worker.py that run in one of them.

Owns their number, their start anew when one is lost, and the longest time of a call. Must not know
what they compute.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from services.dashboard.judging import worker
from services.handshake.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.dashboard.judging.worker import Judged
    from services.dashboard.records import VmRow

logger = logging.getLogger(__name__)

T = TypeVar("T")

PROCESSES: Final = 2
"""Each judges one VM at a time; a reader who waits for details waits for no more than one."""

DEADLINE_S: Final = 30.0
"""Longest time of a call, also of one that waits for others."""


class Workers:
    """The processes, from the first call to `close`.

    Args:
        path: The file, which a writer has open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool: ProcessPoolExecutor | None = None

    async def judge(self, vm_id: str, *, settled: bool) -> Judged | None:
        """See worker.judge_vm.

        Raises:
            UnavailableError: JUDGE_LOST, JUDGE_BUSY.
        """
        return await self._call(partial(worker.judge_vm, vm_id, settled=settled))

    async def describe(self, vm_id: str, *, settled: bool) -> tuple[VmRow, dict[str, Any]] | None:
        """See worker.describe_vm.

        Raises:
            UnavailableError: JUDGE_LOST, JUDGE_BUSY.
        """
        return await self._call(partial(worker.describe_vm, vm_id, settled=settled))

    async def trace(self, vm_id: str) -> bytes | None:
        """See worker.trace_lines.

        Raises:
            UnavailableError: JUDGE_LOST, JUDGE_BUSY.
        """
        return await self._call(partial(worker.trace_lines, vm_id))

    def close(self) -> None:
        """End the processes, without what waits."""
        self._drop()

    async def _call(self, work: Callable[[], T]) -> T:
        pool = self._pool or self._started()
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await asyncio.get_running_loop().run_in_executor(pool, work)
        except BrokenProcessPool:
            if pool is self._pool:
                logger.error("a judging process was lost; it is started anew")
                self._drop()
            raise UnavailableError("JUDGE_LOST", "the process that judges was lost") from None
        except TimeoutError:
            if pool is self._pool:
                logger.error("judging took over %g s; the processes are started anew", DEADLINE_S)
                self._drop()
            raise UnavailableError(
                "JUDGE_BUSY", f"judging took longer than {DEADLINE_S:g} s"
            ) from None

    def _started(self) -> ProcessPoolExecutor:
        self._pool = ProcessPoolExecutor(
            PROCESSES,
            # A fork would copy gRPC's threads in an unknown state.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=worker.begin,
            initargs=(self._path, os.getpid()),
        )
        return self._pool

    def _drop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        # One that is stuck would be waited for; the list is empty once the pool is shut down.
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()
