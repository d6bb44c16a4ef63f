"""Compares our devices with those of another checkout, pair by pair in the same rounds.

Owns the rule that decides whether a case is slower, and the table of results. Must not know how
figures are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench.noise import differences
from bench.ratios import Spread, percentile
from bench.targets import BEFORE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.results import CaseResult

HEAD: Final = ("case", "device", "now : before", "verdict")


@dataclass(frozen=True, slots=True)
class Pair:
    """One device in one case, now and before.

    Attributes:
        case: Name of the case.
        program: Name of the device.
        ratio: Rate now divided by the rate before, round by round.
        noise: 90th percentile, over this run, of the relative difference between two measurements
            of the same program in the same round.
    """

    case: str
    program: str
    ratio: Spread
    noise: float

    @property
    def verdict(self) -> str:
        """The change: "slower" or "faster" if nine of ten rounds agree and it exceeds the noise."""
        if self.ratio.p90 < 1 and self.ratio.median < 1 - self.noise:
            return "slower"
        if self.ratio.p10 > 1 and self.ratio.median > 1 + self.noise:
            return "faster"
        return "as before"


def pairs(results: Sequence[CaseResult]) -> list[Pair]:
    """Pair the results of both checkouts."""
    again = differences(results)
    noise = percentile(again, 90) if again else 0.0
    return [
        Pair(result.case.name, row.name, ratio, noise)
        for result in results
        for row in result.rows
        if (ratio := result.ratio(row.name, [row.name + BEFORE])) is not None
    ]


def summary(found: Sequence[Pair]) -> list[str]:
    """Summarize the comparison of each device over all cases, one line per device."""
    lines = []
    for program in dict.fromkeys(pair.program for pair in found):
        mine = [pair for pair in found if pair.program == program]
        mean = math.exp(sum(math.log(pair.ratio.median) for pair in mine) / len(mine))
        worst = min(mine, key=lambda pair: pair.ratio.median)
        slower = [pair for pair in mine if pair.verdict == "slower"]
        lines.append(
            f"{program}: {mean:.2f} of before (geometric mean of {len(mine)} cases), worst "
            f"{worst.ratio} in {worst.case}; {len(slower)} slower beyond the noise "
            f"({mine[0].noise:.0%})"
        )
    return lines


def rows(found: Iterable[Pair]) -> list[Sequence[str]]:
    """Return a row of HEAD for each pair."""
    return [(pair.case, pair.program, str(pair.ratio), pair.verdict) for pair in found]
