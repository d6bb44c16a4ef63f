"""The results of the part `net`, in the form of results.json.

Owns this part of the format. Must not know how figures are measured or reported.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict

from bench.net.cases import NetCase
from bench.ratios import Spread, percentile, spread

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NetRound(_Model):
    """One network under one load, once.

    Attributes:
        rate: In the unit of the load.
        p50_us: Median time of one operation; 0 for loads that go one way.
        p99_us: 99th percentile of that time.
        loss: Share of the datagrams or echoes that did not arrive, 0 to 1.
        retransmits: TCP segments that were sent again.
        stalled_s: Time in which a TCP stream, once begun, hardly moved.
        device_cpu_s: CPU seconds of the device or network for each gigabit that arrived; like the
            two others, 0 for loads that do not go one way.
        front_end_cpu_s: The same of the front-end.
        ends_cpu_s: The same of the two ends.
        failure: Why there are no figures; empty if there are.
    """

    rate: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    loss: float = 0.0
    retransmits: int = 0
    stalled_s: float = 0.0
    device_cpu_s: float = 0.0
    front_end_cpu_s: float = 0.0
    ends_cpu_s: float = 0.0
    failure: str = ""

    @property
    def counts(self) -> bool:
        """Whether the round has a figure of a network that was carrying packets all the time."""
        return not self.failure and not self.stalled_s


class NetRow(_Model):
    """One network in one case: its rounds, in the order of the run."""

    name: str
    rounds: list[NetRound]

    @property
    def stalled(self) -> int:
        """Number of rounds that stalled, which count in no ratio."""
        return sum(bool(each.stalled_s) for each in self.rounds)

    @property
    def failed(self) -> int:
        """Number of rounds without figures."""
        return sum(bool(each.failure) for each in self.rounds)

    def median(self, figure: str) -> float | None:
        """Return the median of an attribute of the rounds that count; None: none does."""
        found = [float(getattr(each, figure)) for each in self.rounds if each.counts]
        return percentile(found, 50) if found else None


ENDS: Final = "both ends"
OTHERS: Final = "others"
IDLE: Final = "idle"
"""What profiles call programs that are no part of a network."""


class Work(Enum):
    """A kind of work; its value is the head of a column."""

    COPIES = "copies by the kernel"
    CALLS = "into and out of system calls"
    WAITING = "waiting and waking"
    MEMORY = "the kernel's memory"
    NETWORK = "the rest of the kernel"
    OWN = "own code"


class NetShare(_Model):
    """CPU time of one program at one kind of work, in percent of that of all CPUs."""

    program: str
    work: Work
    percent: float


class NetProfile(_Model):
    """Where all CPUs spent their time while a network was under one load."""

    case: str
    network: str
    shares: list[NetShare]


class NetCaseResult(_Model):
    """One case: a row for each network."""

    case: NetCase
    rows: list[NetRow]

    def row(self, name: str) -> NetRow | None:
        """Find a network's row."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, name: str, baseline: str, figure: str = "rate") -> Spread | None:
        """Divide a network's figure by another's, in each round in which both count.

        Returns:
            None: One of the two is missing, or there is no such round.
        """
        ours, others = self.row(name), self.row(baseline)
        if ours is None or others is None:
            return None
        ratios = _ratios(ours.rounds, others.rounds, figure)
        return spread(ratios) if ratios else None


def _ratios(ours: Sequence[NetRound], others: Sequence[NetRound], figure: str) -> list[float]:
    return [
        getattr(one, figure) / getattr(other, figure)
        for one, other in zip(ours, others, strict=True)
        if one.counts and other.counts and getattr(other, figure)
    ]
