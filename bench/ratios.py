"""Medians, spreads and paired ratios of figures that were measured in rounds. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some numbers, and the range that holds the middle four fifths of them."""

    median: float
    p10: float
    p90: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.p10:.2f}-{self.p90:.2f})"


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, interpolated between the two nearest ranks.

    Args:
        values: The numbers, in any order; at least one.
        percent: 0 to 100.

    Raises:
        ValueError: There is no value, or `percent` is out of range.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(values)} values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the 10th and 90th percentile.

    Raises:
        ValueError: There is no value.
    """
    return Spread(percentile(values, 50), percentile(values, 10), percentile(values, 90))


def paired(
    rounds: Iterable[Mapping[str, float]], target: str, baselines: Iterable[str]
) -> list[float]:
    """Divide a target's rate by the best baseline's rate, for each round that has both.

    Args:
        rounds: For each round, the rates by target.
        target: Name of the target.
        baselines: Names of the targets that it is compared with; a round may lack some of them.
    """
    names = tuple(baselines)
    found = []
    for rates in rounds:
        best = max((rates[name] for name in names if rates.get(name)), default=0.0)
        if best and target in rates:
            found.append(rates[target] / best)
    return found
