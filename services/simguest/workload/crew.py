"""Threads that work through jobs, which add further jobs and results, until none is left.

Owns the threads, the count of open jobs, and the end: finished, failed or abandoned. Must not know
what the jobs do.
"""

from __future__ import annotations

import threading
from queue import LifoQueue, SimpleQueue
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

WORKERS: Final = 4
"""Threads of a crew; few are enough, because each has many requests in flight."""


class Crew(Generic[T]):
    """The threads for one piece of work; use it as a context manager.

    Attributes:
        abandoned: Set when a job has failed or the results are no longer wanted. Jobs still run
            then, but only clean up.
    """

    def __init__(self, name: str) -> None:
        self.abandoned = False
        # The newest job first: the tree is walked depth-first, so that few of its nodes wait.
        self._jobs: LifoQueue[Callable[[], None] | None] = LifoQueue()
        self._results: SimpleQueue[T | BaseException | _Done] = SimpleQueue()
        self._open = 0
        self._idle = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True)
            for n in range(WORKERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.abandoned = True
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0)
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def add(self, job: Callable[[], None]) -> None:
        """Add a job; jobs may add jobs. A job that raises ends the work."""
        with self._idle:
            self._open += 1
        self._jobs.put(job)

    def yield_result(self, result: T) -> None:
        """Pass a result to `results`; called by jobs."""
        self._results.put(result)

    def results(self) -> Iterator[T]:
        """Yield results until every job is done; at least one job must have been added.

        Raises:
            BaseException: The exception of the first job that failed.
        """
        while not isinstance(result := self._results.get(), _Done):
            if isinstance(result, BaseException):
                raise result
            yield result

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except BaseException as error:
                self.abandoned = True
                self._results.put(error)
            with self._idle:
                self._open -= 1
                if self._open == 0:
                    self._idle.notify_all()
                    self._results.put(_Done())


class _Done:
    """Marks the end of the results: every job is done."""
