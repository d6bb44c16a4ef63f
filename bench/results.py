"""The findings of a run, as they are written to JSON and read back for tables and plots.

Owns the format of results.json. Must not know how figures are measured or reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from bench.cases import Case, Size
from bench.machine import Busyness, Machine
from bench.ratios import Spread, paired, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.front_end import Measurement


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Model):
    """One program in one case.

    Attributes:
        name: The program's.
        rates: Of each round, in operations (or entries of directories) per second.
        p50_us: Median over the rounds of the median time of one operation, in microseconds.
        p99_us: The same of the 99th percentile.
        device_cpu_us: CPU time of the device for one operation, in microseconds; 0 of what has no
            device, and of listings, whose first one is not counted.
        driver_cpu_us: The same of the front-end.
        kicks: Notifications sent to the device for one operation.
        interrupts: Notifications that the device sent for one operation.
    """

    name: str
    rates: list[float]
    p50_us: float
    p99_us: float
    device_cpu_us: float
    driver_cpu_us: float
    kicks: float
    interrupts: float

    @property
    def rate(self) -> Spread:
        """The rates' median and spread."""
        return spread(self.rates)


class CaseResult(_Model):
    """One case: a row for each program."""

    case: Case
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        """Find a program's row."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, name: str, baselines: Iterable[str]) -> Spread | None:
        """Divide a program's rate by the best baseline's, round by round; None without both."""
        rounds = [
            dict(zip([row.name for row in self.rows], rates, strict=True))
            for rates in zip(*(row.rates for row in self.rows), strict=True)
        ]
        ratios = paired(rounds, name, baselines)
        return spread(ratios) if ratios else None


class ScaleRow(_Model):
    """One number of devices in one device host, all attached.

    Attributes:
        host: How the device host works.
        devices: How many.
        attach_ms: From connecting to INIT's reply, one value for each device.
        rss_bytes: Resident memory of the device host, all of it.
        anonymous_bytes: The part that is no file's and no guest's.
        idle_cpu_ms: CPU time that the device host uses in a second while all devices idle.
        rates: One device's 4 KiB reads per second while the others idle, for each round.
        busy_rates: The reads of all devices together while all work, for each round.
    """

    host: str
    devices: int
    attach_ms: list[float]
    rss_bytes: int
    anonymous_bytes: int
    idle_cpu_ms: float
    rates: list[float]
    busy_rates: list[float]


class PoolRow(_Model):
    """One number of devices of a user-space guest, behind one pool or a pool each.

    Attributes:
        devices: How many, all busy.
        block_bytes: Of each read.
        one_pool: Reads per second of all devices together behind one pool, for each round.
        pool_each: The same behind as many pools, together as large.
    """

    devices: int
    block_bytes: int
    one_pool: list[float]
    pool_each: list[float]


class Symbol(_Model):
    """A place where a program spends its time."""

    share: float
    module: str
    name: str


class Profile(_Model):
    """Where one program's CPU time goes in one case, the most expensive places first."""

    case: str
    program: str
    symbols: list[Symbol]


class Results(_Model):
    """A whole run.

    Attributes:
        machine: Where, and when.
        busyness: The load by others meanwhile.
        size: How much of the matrix.
        seconds: Of each measurement.
        rounds: Of each case, at most.
        duration_s: Of the run.
        versions: Of the programs, by their names.
        cases: In the order in which they ran.
        scale: Devices in one device host.
        pools: Pools in the user-space guest.
        profiles: Of what fell short.
    """

    machine: Machine
    busyness: Busyness
    size: Size
    seconds: float
    rounds: int
    duration_s: float
    versions: dict[str, str]
    cases: list[CaseResult]
    scale: list[ScaleRow]
    pools: list[PoolRow]
    profiles: list[Profile]


def summarize(name: str, rounds: Sequence[Measurement]) -> Row:
    """Make a program's row of its measurements, one for each round."""
    done = sum(m.ops for m in rounds if not m.entries)

    def each(total: float, digits: int = 2) -> float:
        return round(total / done, digits) if done else 0.0

    return Row(
        name=name,
        rates=[round(m.rate, 1) for m in rounds],
        p50_us=round(spread([m.ns.p50 / 1000 for m in rounds]).median, 2),
        p99_us=round(spread([m.ns.p99 / 1000 for m in rounds]).median, 2),
        device_cpu_us=each(1e6 * sum(m.device_cpu_s for m in rounds)),
        driver_cpu_us=each(1e6 * sum(m.front_end_cpu_s for m in rounds)),
        kicks=each(sum(m.kicks for m in rounds), 3),
        interrupts=each(sum(m.interrupts for m in rounds), 3),
    )
