"""The goals, and which of them a run reached.

Owns the goals. Must not know how figures are measured or reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.cases import MIB, Kind
from bench.net import peers as networks
from bench.net.cases import Direction, Load
from bench.ratios import Spread, paired, spread
from bench.rounds import FLOORS
from bench.targets import RUST, C

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.cases import Case
    from bench.net.results import NetCaseResult
    from bench.results import CaseResult, Results, ScaleRow

NATIVE: Final = "native"
PYTHON: Final = "python"
WINDOWS: Final = ", windows"
VIRTIOFSDS: Final = (C.name, RUST.name)

MAX_IDLE_BYTES: Final = 2 * MIB
"""Most memory that each further idle device may add to its device host."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One figure that is compared with a goal.

    Attributes:
        what: The case.
        figure: The measured figure.
        program: The program that was measured; empty when it cannot be profiled.
        baseline: The network that it was compared with; empty for other comparisons.
    """

    what: str
    figure: Spread
    program: str = ""
    baseline: str = ""


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal.

    Attributes:
        name: The figure that it is about.
        bound: The smallest figure that reaches it, or the largest when `at_most`.
        findings: The figures.
        at_most: Whether smaller is better.
        unit: Unit of the figures, with a space before it.
        lenient: Whether a figure misses the goal only if nine of ten rounds miss it. The goal "no
            drop" needs this: of two equal rates, the median ratio is below 1 half of the time.
    """

    name: str
    bound: float
    findings: list[Finding]
    at_most: bool = False
    unit: str = ""
    lenient: bool = False

    def misses(self) -> list[Finding]:
        """List the findings that fall short, the worst first."""
        if self.at_most:
            short = [each for each in self.findings if each.figure.median > self.bound]
        else:
            short = [each for each in self.findings if self._best(each.figure) < self.bound]
        return sorted(short, key=lambda each: each.figure.median, reverse=self.at_most)

    def middle(self) -> float:
        """Return the geometric mean of the findings' medians."""
        return math.exp(
            sum(math.log(max(each.figure.median, 1e-9)) for each in self.findings)
            / len(self.findings)
        )

    def _best(self, figure: Spread) -> float:
        return figure.p90 if self.lenient else figure.median


def judge(results: Results) -> list[Goal]:
    """Compare a run with all goals; a goal without figures is left out."""
    cases = results.cases
    goals = [
        Goal("small operations, native, to the better virtiofsd", 2.0, _small(cases, NATIVE)),
        Goal("small operations, Python alone, to the better virtiofsd", 0.8, _small(cases, PYTHON)),
        Goal("128 KiB and 1 MiB, native, to the better virtiofsd", 1.0, _large(cases, NATIVE)),
        Goal(
            "128 KiB and 1 MiB, Python alone, to the better virtiofsd", 1.0, _large(cases, PYTHON)
        ),
        Goal("1 MiB, native, to the floor", 0.9, _floor(cases)),
        Goal("4 KiB uncached, native, token to windows", 3.0, _uncached(cases, NATIVE)),
        Goal("4 KiB uncached, Python alone, token to windows", 3.0, _uncached(cases, PYTHON)),
        Goal("one device, others idle, to it alone", 1.0, list(_drops(results)), lenient=True),
        Goal(
            "memory per further idle device",
            MAX_IDLE_BYTES / MIB,
            list(_memory(results)),
            at_most=True,
            unit=" MiB",
        ),
        *net_goals(results.net),
    ]
    return [goal for goal in goals if goal.findings]


def _ratios(
    cases: list[CaseResult], kind: Kind, program: str, baselines: tuple[str, ...]
) -> Iterator[tuple[Case, Finding]]:
    for result in cases:
        if result.case.kind is kind:
            ratio = result.ratio(program, baselines)
            if ratio is not None:
                yield result.case, Finding(result.case.name, ratio, program)


def _small(cases: list[CaseResult], program: str) -> list[Finding]:
    return [finding for _, finding in _ratios(cases, Kind.SMALL, program, VIRTIOFSDS)]


def _large(cases: list[CaseResult], program: str) -> list[Finding]:
    return [finding for _, finding in _ratios(cases, Kind.LARGE, program, VIRTIOFSDS)]


def _floor(cases: list[CaseResult]) -> list[Finding]:
    ratios = _ratios(cases, Kind.LARGE, NATIVE, tuple(FLOORS.values()))
    return [finding for case, finding in ratios if case.block_bytes == MIB]


def _uncached(cases: list[CaseResult], program: str) -> list[Finding]:
    ratios = _ratios(cases, Kind.UNCACHED, program, (program + WINDOWS,))
    return [finding for _, finding in ratios]


def _by_host(results: Results) -> Iterator[tuple[ScaleRow, list[ScaleRow]]]:
    """Pair the host with one device and the hosts with more, separately for each kind of host."""
    for host in dict.fromkeys(row.host for row in results.scale):
        rows = [row for row in results.scale if row.host == host]
        alone = next((row for row in rows if row.devices == 1), None)
        if alone is not None:
            yield alone, [row for row in rows if row is not alone]


def _drops(results: Results) -> Iterator[Finding]:
    for alone, others in _by_host(results):
        for row in others:
            pairs = [{"alone": a, "one": b} for a, b in zip(alone.rates, row.rates, strict=True)]
            ratio = spread(paired(pairs, "one", ["alone"]))
            yield Finding(f"{row.host}, {row.devices} devices", ratio)


def _memory(results: Results) -> Iterator[Finding]:
    for alone, others in _by_host(results):
        for row in others:
            each = (row.rss_bytes - alone.rss_bytes) / (row.devices - 1) / MIB
            yield Finding(f"{row.host}, {row.devices} devices", Spread(each, each, each))


_SLIRP: Final = networks.SLIRP4NETNS.name
_VHOST_USER: Final = networks.VHOST_USER.name
_PASTA: Final = networks.PASTA.name
_QEMU_STREAM: Final = networks.QEMU_STREAM.name
_VETH: Final = networks.VETH.name


def net_goals(cases: list[NetCaseResult]) -> Iterator[Goal]:
    """Goals of virtio-net: our user-mode network and our TAP, each to others of the same round."""
    user, tap = networks.USER.name, networks.TAP.name
    one = [c for c in cases if c.case.load is Load.TCP and c.case.streams == 1]
    four = [c for c in cases if c.case.load is Load.TCP and c.case.streams > 1]
    udp = [c for c in cases if c.case.load is Load.UDP]
    small = [c for c in udp if c.case.bytes == 64]
    echo = [c for c in cases if c.case.load is Load.ECHO]
    up = [c for c in one if c.case.direction is Direction.UP]
    down = [c for c in one if c.case.direction is Direction.DOWN]
    for bound, name, found in (
        (1.5, _SLIRP, [*one, *udp]),
        (0.75, _VHOST_USER, one),
        (0.85, _PASTA, one),
        (1.0, _QEMU_STREAM, one),
    ):
        yield Goal(
            f"user, one TCP stream{' and UDP' * (name is _SLIRP)}, to {name}",
            bound,
            list(_compared(found, user, name)),
        )
    for name in (_SLIRP, _PASTA, _QEMU_STREAM):
        yield Goal(f"user, four TCP streams, to {name}", 1.0, list(_compared(four, user, name)))
    yield Goal(
        f"user, 64-byte UDP, to {_VHOST_USER}", 1.0, list(_compared(small, user, _VHOST_USER))
    )
    for figure, bound in (("p50_us", 2.0), ("p99_us", 2.5)):
        yield Goal(
            f"user, request and response, {figure.removesuffix('_us')}, to {_SLIRP}",
            bound,
            list(_compared(echo, user, _SLIRP, figure)),
            at_most=True,
        )
    for bound, found in ((0.6, up), (0.8, down)):
        direction = found[0].case.direction.value if found else ""
        yield Goal(
            f"tap, one TCP stream {direction}, to veth", bound, list(_compared(found, tap, _VETH))
        )


def _compared(
    cases: list[NetCaseResult], name: str, baseline: str, figure: str = "rate"
) -> Iterator[Finding]:
    """Compare; a network of ours that has no figure where the other has one is a miss."""
    nothing = 0.0 if figure == "rate" else math.inf
    for result in cases:
        ours, other = result.row(name), result.row(baseline)
        if ours is None or other is None or other.median(figure) is None:
            continue
        if ours.median(figure) is None:
            yield Finding(result.case.name, Spread(nothing, nothing, nothing), name, baseline)
        elif ratio := result.ratio(name, baseline, figure):
            yield Finding(result.case.name, ratio, name, baseline)
