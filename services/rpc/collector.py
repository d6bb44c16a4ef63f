"""The way to an OTLP collector: bounded, counted, and never waited for longer than a budget.

Owns what is known of the collector of this process: whether it answers, what waits for it, and
what was dropped. A span that ends is queued or dropped at once; the threads of OpenTelemetry send,
and `CollectorLink` decides whether they are worth waiting for when the process ends. Must not know
OpenTelemetry: services.rpc.exporters sends.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

FLUSH_S: Final = 1.0
"""Longest time that a process which ends waits for its collector, for spans and metrics together.

Also the age from which an export without an answer counts as a failure.
"""

COMMAND_PATIENCE_S: Final = 0.02
"""The same for a command whose collector has not answered by its end: its user waits for it."""

RECENT_FAILURE_S: Final = 30.0
"""How long after a failed export nothing is flushed, unless one has succeeded since."""

CLOSE_S: Final = 0.2
"""Longest time for the exporters' threads to end once their channels are closed."""

EXPORT_DEADLINE_S: Final = 5
"""Longest time that one export takes, with its repetitions, while the process works."""

QUEUE_SPANS: Final = 2048
"""Most spans that wait; OTEL_BSP_MAX_QUEUE_SIZE changes it."""

EVENTS_PAUSE_S: Final = 30.0
EVENTS_PAUSE_MAX_S: Final = 3600.0
"""How long a collector that takes spans is sent no log events after it has refused some: twice as
long after each further refusal, since many collectors take no logs."""


class Loss(StrEnum):
    """Why spans were dropped."""

    QUEUE_FULL = "queue_full"
    """As many as may wait were waiting."""
    NOT_DELIVERED = "not_delivered"
    """The collector did not take them, or the process ended before it did."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What has been lost so far.

    Attributes:
        spans: Number of spans, by the reason.
        metric_exports: Exports of metrics that failed; the next one has their sums.
        events: Log events that the collector did not get, though it got their spans.
    """

    spans: dict[Loss, int]
    metric_exports: int
    events: int

    def __bool__(self) -> bool:
        # A collector without log events has all of them in the spans.
        return bool(self.metric_exports or any(self.spans.values()))


class CollectorLink:
    """What is known of one collector. Every method may be called on any thread.

    Args:
        queue_spans: Most spans that wait.
        clock: Monotonic time in seconds.
    """

    def __init__(
        self, queue_spans: int = QUEUE_SPANS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._queue_spans = queue_spans
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting = 0
        self._sending: dict[int, float] = {}
        self._numbers = 0
        self._failed_at: float | None = None
        self._abandoned = False
        self._has_answered = False
        self._closers: list[Callable[[], None]] = []
        self._spans = dict.fromkeys(Loss, 0)
        self._metric_exports = 0
        self._events = 0
        self._events_pause_s = EVENTS_PAUSE_S
        self._events_resume_at = -inf

    def on_abandon(self, close: Callable[[], None]) -> None:
        """Have `close` called when the collector is given up; it ends the exports that run."""
        self._closers.append(close)

    def admit_span(self) -> bool:
        """Count a span that has ended; returns False when it must be dropped, which is counted."""
        with self._lock:
            if self._abandoned:
                self._spans[Loss.NOT_DELIVERED] += 1
                return False
            if self._waiting < self._queue_spans:
                self._waiting += 1
                return True
            self._spans[Loss.QUEUE_FULL] += 1
            is_first = self._spans[Loss.QUEUE_FULL] == 1
        if is_first:
            logger.warning(
                "%d spans wait for the collector, the most that may; further ones are dropped",
                self._queue_spans,
            )
        return False

    def send_spans(self, count: int, send: Callable[[], bool]) -> bool:
        """Send admitted spans, unless the collector was given up.

        Args:
            count: Number of spans; they wait until the collector has answered.
            send: Sends them; returns whether the collector took them.

        Returns:
            Whether it took them; if not, they are counted as lost.
        """
        taken = False
        try:
            taken = self._send(send)
        finally:
            with self._lock:
                self._waiting -= count
                if not taken:
                    self._spans[Loss.NOT_DELIVERED] += count
        return taken

    def send_metrics(self, send: Callable[[], bool]) -> bool:
        """Send metrics in the same way."""
        taken = self._send(send)
        if not taken:
            with self._lock:
                self._metric_exports += 1
        return taken

    def send_events(self, count: int, send: Callable[[], bool]) -> None:
        """Send the log events of spans that the collector took, unless it has refused some lately.

        A refusal says nothing of spans and metrics. Events that it does not get are counted.

        Args:
            count: Number of events.
            send: Sends them; returns whether the collector took them.
        """
        with self._lock:
            paused = self._clock() < self._events_resume_at
        taken = False
        try:
            taken = not paused and self._timed(send)
        finally:
            with self._lock:
                if taken:
                    self._events_pause_s = EVENTS_PAUSE_S
                else:
                    self._events += count
                    if not paused:
                        self._events_resume_at = self._clock() + self._events_pause_s
                        self._events_pause_s = min(2 * self._events_pause_s, EVENTS_PAUSE_MAX_S)

    def answers(self) -> bool:
        """Return whether the collector is worth waiting for.

        It is not while an export has had no answer for FLUSH_S, and for RECENT_FAILURE_S after a
        failure, unless it has answered since. One of which nothing is known yet is.
        """
        now = self._clock()
        with self._lock:
            if self._abandoned or any(now - at >= FLUSH_S for at in self._sending.values()):
                return False
            return self._failed_at is None or now - self._failed_at >= RECENT_FAILURE_S

    @property
    def waiting(self) -> int:
        """Number of spans that have ended, and of which the collector has not said anything."""
        return self._waiting

    @property
    def has_answered(self) -> bool:
        """Whether the collector has ever taken an export."""
        return self._has_answered

    def abandon(self) -> None:
        """Give the collector up: end the exports that run, and send nothing any more."""
        with self._lock:
            if self._abandoned:
                return
            self._abandoned = True
        for close in self._closers:
            close()

    def losses(self) -> Losses:
        """Return what has been lost so far; what still waits once the collector was given up is."""
        with self._lock:
            spans = dict(self._spans)
            if self._abandoned:
                spans[Loss.NOT_DELIVERED] += self._waiting
            return Losses(spans, self._metric_exports, self._events)

    def _send(self, send: Callable[[], bool]) -> bool:
        taken = False
        try:
            taken = self._timed(send)
        finally:
            with self._lock:
                self._failed_at = None if taken else self._clock()
                self._has_answered |= taken
        return taken

    def _timed(self, send: Callable[[], bool]) -> bool:
        """Send, unless the collector was given up; how long it takes to answer is seen."""
        with self._lock:
            if self._abandoned:
                return False
            self._numbers += 1
            number = self._numbers
            self._sending[number] = self._clock()
        try:
            return send()
        finally:
            with self._lock:
                del self._sending[number]


def end_within(
    budget_s: float,
    link: CollectorLink,
    ends: Sequence[Callable[[], object]],
    unheard_s: float = inf,
) -> None:
    """Run the ends of all providers at the same time, and give the collector up after a budget.

    A collector that does not answer (`CollectorLink.answers`) is given up at once. What is lost is
    logged.

    Args:
        budget_s: Longest time that the collector gets.
        link: The link of these providers.
        ends: Each ends one provider, and returns once it has sent the rest.
        unheard_s: Longest time that a collector gets which has not answered by then.
    """
    if not link.answers():
        link.abandon()
    threads = [threading.Thread(target=_end, args=(end,), daemon=True) for end in ends]
    for thread in threads:
        thread.start()
    first_s = min(unheard_s, budget_s)
    done = _joined(threads, first_s)
    if not done and link.has_answered:
        done = _joined(threads, budget_s - first_s)
    if not done:
        link.abandon()
        _joined(threads, CLOSE_S)
    losses = link.losses()
    if losses:
        spans = ", ".join(f"{count} {reason}" for reason, count in losses.spans.items() if count)
        logger.warning(
            "the collector did not get everything: spans lost: %s; failed exports of metrics: %d",
            spans or "none",
            losses.metric_exports,
        )


def _end(end: Callable[[], object]) -> None:
    try:
        end()
    except Exception as failure:  # OpenTelemetry raises no other kind
        logger.debug("a provider of telemetry did not end in order: %s", failure)


def _joined(threads: Sequence[threading.Thread], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return not any(thread.is_alive() for thread in threads)


def queue_spans() -> int:
    """Return how many spans may wait."""
    return positive("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SPANS)


def positive(variable: str, default: int) -> int:
    """Return the number in a variable of the environment; `default` if it is none above 0."""
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() and int(text) > 0 else default
