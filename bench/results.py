"""The results of a run, in the form of results.json.

Owns the format of results.json. Must not know how figures are measured or reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from bench.cases import Case, Size
from bench.machine import Busyness, Machine
from bench.net.results import NetCaseResult, NetProfile
from bench.ratios import Spread, paired, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.front_end import Measurement


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Model):
    """One program in one case.

    Attributes:
        name: Name of the program.
        rates: The rate of each round, in operations (or directory entries) per second.
        p50_us: Median time of one operation, in microseconds; the median over the rounds.
        p99_us: 99th percentile of that time; the median over the rounds.
        device_cpu_us: CPU time of the device per operation, in microseconds. It is 0 for a floor,
            which has no device, and for listings, because it includes their uncounted first one.
        driver_cpu_us: CPU time of the front-end per operation; 0 for listings.
        kicks: Notifications sent to the device, per operation.
        interrupts: Notifications that the device sent, per operation.
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
        """Median and spread of the rates."""
        return spread(self.rates)


class CaseResult(_Model):
    """One case: a row for each program."""

    case: Case
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        """Find a program's row."""
        return next((row for row in self.rows if row.name == name), None)

    def ratio(self, name: str, baselines: Iterable[str]) -> Spread | None:
        """Divide a program's rate by the best baseline's, per round; None if either is missing."""
        rounds = [
            dict(zip([row.name for row in self.rows], rates, strict=True))
            for rates in zip(*(row.rates for row in self.rows), strict=True)
        ]
        ratios = paired(rounds, name, baselines)
        return spread(ratios) if ratios else None


class ScaleRow(_Model):
    """One device host with a number of devices, all of them attached.

    Attributes:
        host: Kind of device host: native or Python alone.
        devices: Number of devices.
        attach_ms: Time from connecting to the reply to INIT, for each device.
        rss_bytes: Resident memory of the device host.
        anonymous_bytes: The part of it that belongs to no file and to no guest.
        idle_cpu_ms: CPU time that the device host uses in a second while all devices idle.
        rates: 4 KiB reads per second of one device while the others idle, for each round.
        busy_rates: Reads per second of all devices together while all are busy, for each round.
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
    """A user-space guest with a number of devices: one pool compared with a pool per device.

    Attributes:
        devices: Number of devices, all of them busy.
        block_bytes: Bytes per read.
        one_pool: With one pool: reads per second of all devices together, for each round.
        pool_each: The same with a pool per device; the pools together have the size of the one.
    """

    devices: int
    block_bytes: int
    one_pool: list[float]
    pool_each: list[float]


class WalkRow(_Model):
    """A program whose guest looked up many files, and then looked at each again.

    Attributes:
        name: Name of the program.
        files: Files that were looked up.
        known_s: Seconds until all were looked up.
        again_s: Seconds until the attributes of each were read once more.
        anonymous_bytes: Memory that all files took, which belongs to no file and to no guest.
        descriptors: Descriptors of the program at the end.
        failure: The reason why it ended before; empty if it did not.
    """

    name: str
    files: int
    known_s: float = 0.0
    again_s: float = 0.0
    anonymous_bytes: int = 0
    descriptors: int = 0
    failure: str = ""


class BootRow(_Model):
    """A milestone of the boot of a Linux guest.

    Attributes:
        name: What has happened then.
        seconds: Time until then, for each round.
    """

    name: str
    seconds: list[float]


class GuestFilesRow(_Model):
    """One program that serves files to a Linux guest, under one load.

    Attributes:
        name: Name of the program.
        load: What the guest does.
        rates: Operations per second, for each round.
    """

    name: str
    load: str
    rates: list[float]


class Symbol(_Model):
    """A function and its share of the samples, in percent."""

    share: float
    module: str
    name: str


class Profile(_Model):
    """The profile of one program in one case, the most expensive functions first."""

    case: str
    program: str
    symbols: list[Symbol]


class Results(_Model):
    """A whole run.

    Attributes:
        machine: The machine, and the date.
        busyness: The load by others during the run.
        size: The part of the matrix that was measured.
        seconds: Length of each measurement.
        rounds: Most rounds of a case.
        duration_s: Length of the whole run.
        versions: Versions of the programs, by their names.
        cases: The cases, in the order in which they ran.
        scale: Device hosts with different numbers of devices.
        pools: Comparisons of pools in the user-space guest.
        walks: Walks over many files.
        accelerator: How Linux guests were executed; empty: there was none.
        boots: Milestones of booting one.
        guest_files: Programs that served files to one.
        net: Networks under each load.
        net_seconds: Length of each of their measurements.
        net_profiles: Where the time went in the worst case of each of their goals that was missed.
        profiles: Profiles of the worst case of each goal that was missed.
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
    walks: list[WalkRow] = []
    accelerator: str = ""
    boots: list[BootRow] = []
    guest_files: list[GuestFilesRow] = []
    net: list[NetCaseResult] = []
    net_seconds: float = 0.0
    net_profiles: list[NetProfile] = []
    profiles: list[Profile]


def summarize(name: str, rounds: Sequence[Measurement]) -> Row:
    """Summarize the measurements of a program, one per round."""
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
