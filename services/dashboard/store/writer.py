"""The writer: one thread with the one connection that writes.

Owns the queue before it, which is bounded by bytes, and when what is old is removed. An answer
comes when the transaction is committed. Must not know what is read.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from services.dashboard.store.batches import Ids, write_judgement, write_points, write_spans
from services.dashboard.store.file import FileLock, open_to_write
from services.dashboard.store.removal import (
    is_too_large,
    remove_old_points,
    remove_some,
    shrink,
)
from services.handshake.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from services.dashboard.records import Judgement, Points, Spans, VmRow
    from services.dashboard.store.file import Limits

logger = logging.getLogger(__name__)

T = TypeVar("T")

PENDING_LIMIT_BYTES: Final = 64 << 20
"""Most bytes of requests that wait for the thread; further ones are refused."""

UPKEEP_S: Final = 10.0
"""Time between two looks for what is too old."""

OLD_POINTS_S: Final = 600.0
"""Time between two removals of old points from series that still get some."""

LOG_AGAIN_S: Final = 10.0
"""Least time between two log lines about a failure to write."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a batch.

    Attributes:
        vm_ids: The VMs that it touched.
    """

    vm_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[sqlite3.Connection], Any]
    answer: Future[Any]
    size_bytes: int


class Writer:
    """The thread, from its start to `close`.

    Args:
        path: The file.
        limits: How much is kept.
        on_removal: Gets the VMs that are gone, and those of which a part is; on the thread.
        now_ms: The clock, in milliseconds since 1970.

    Raises:
        FailedPreconditionError: DATABASE_IN_USE, DATABASE_UNUSABLE.
        OSError: The file cannot be made.
    """

    def __init__(
        self,
        path: Path,
        limits: Limits,
        on_removal: Callable[[frozenset[str], frozenset[str]], None] = lambda _gone, _touched: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = FileLock(path)
        try:
            self._connection = open_to_write(path)
        except BaseException:
            self._lock.release()
            raise
        self._limits = limits
        self._on_removal = on_removal
        self._now_ms = now_ms
        self._ids = Ids()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._pending = threading.Lock()
        self._pending_bytes = 0
        self._closed = False
        self._failed_at = 0.0
        self._upkeep_at = 0.0
        self._old_points_at = 0.0
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def failing(self) -> bool:
        """Whether the last transaction failed."""
        return self._failed_at > 0

    def put_spans(self, spans: Spans) -> Future[Kept]:
        """Write spans.

        Raises:
            UnavailableError: STORE_BUSY; also by the future, when the file cannot be written.
        """
        return self._put(
            lambda connection: Kept(write_spans(connection, spans, self._ids, self._now_ms())),
            spans.size_bytes,
        )

    def put_points(self, points: Points) -> Future[Kept]:
        """Write points.

        Raises:
            UnavailableError: See `put_spans`.
        """
        return self._put(
            lambda connection: Kept(write_points(connection, points, self._ids, self._now_ms())),
            points.size_bytes,
        )

    def put_judgement(self, vm_id: str, judgement: Judgement, seen: int) -> Future[VmRow | None]:
        """Write a judgement; see write_judgement.

        Raises:
            UnavailableError: See `put_spans`.
        """
        return self._put(lambda connection: write_judgement(connection, vm_id, judgement, seen), 0)

    def close(self) -> None:
        """Write what waits, and close the file."""
        if self._closed:
            return
        with self._pending:
            self._closed = True
            self._jobs.put(None)
        self._thread.join()

    def _put(self, work: Callable[[sqlite3.Connection], T], size_bytes: int) -> Future[T]:
        answer: Future[T] = Future()
        with self._pending:
            if self._closed:
                raise UnavailableError("SERVICE_STOPPING", "the dashboard is stopping")
            # A single request always has place.
            if self._pending_bytes and self._pending_bytes + size_bytes > PENDING_LIMIT_BYTES:
                raise UnavailableError(
                    "STORE_BUSY",
                    f"{self._pending_bytes} bytes wait to be written, and at most "
                    f"{PENDING_LIMIT_BYTES} may; try again",
                )
            self._pending_bytes += size_bytes
            self._jobs.put(_Job(work, answer, size_bytes))
        return answer

    def _run(self) -> None:
        try:
            while True:
                try:
                    job = self._jobs.get(timeout=UPKEEP_S)
                except queue.Empty:
                    self._look_after()
                    continue
                if job is None:
                    return
                self._do(job)
                self._look_after()
        finally:
            self._connection.close()
            self._lock.release()

    def _do(self, job: _Job) -> None:
        try:
            if not job.answer.set_running_or_notify_cancel():
                return
            job.answer.set_result(self._in_transaction(job.work))
        except sqlite3.Error as error:
            self._ids.clear()
            self._report(error)
            job.answer.set_exception(
                UnavailableError("STORE_FAILED", f"the dashboard cannot write its file: {error}")
            )
        except Exception as error:
            # The caller gets it; the thread has to go on.
            self._ids.clear()
            job.answer.set_exception(error)
        finally:
            with self._pending:
                self._pending_bytes -= job.size_bytes

    def _in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._failed_at = 0.0
        return result

    def _look_after(self) -> None:
        now = time.monotonic()
        try:
            too_large = is_too_large(self._connection, self._limits)
            if not too_large and now - self._upkeep_at < UPKEEP_S:
                return
            self._upkeep_at = now
            self._remove(too_large=too_large)
            if now - self._old_points_at >= OLD_POINTS_S:
                self._old_points_at = now
                self._in_transaction(
                    lambda connection: remove_old_points(connection, self._limits, self._now_ms())
                )
            shrink(self._connection)
        except sqlite3.Error as error:
            self._ids.clear()
            self._report(error)

    def _remove(self, *, too_large: bool) -> None:
        more = True
        while more:
            step = self._in_transaction(
                lambda connection: remove_some(
                    connection, self._limits, self._now_ms(), too_large=too_large
                )
            )
            if step.gone or step.touched:
                self._on_removal(step.gone, step.touched)
            if step.more:
                self._ids.clear()
            # Batches that wait come first; the rest is removed after the next one.
            more = step.more and self._jobs.empty()

    def _report(self, error: sqlite3.Error) -> None:
        now = time.monotonic()
        if now - self._failed_at >= LOG_AGAIN_S or not self._failed_at:
            logger.error("the store cannot write: %s", error)
            self._failed_at = now
