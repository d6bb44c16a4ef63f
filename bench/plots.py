"""Bar charts as SVG. Owns their look; must not know the meaning of the figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.ratios import Spread

WIDTH: Final = 900
LABEL_WIDTH: Final = 330
RIGHT: Final = 70
BAR: Final = 11
GAP: Final = 9
TOP: Final = 62
COLOURS: Final = ("#2f6f9f", "#c9822b", "#5b8c5a", "#8b5a8c", "#777777")


@dataclass(frozen=True, slots=True)
class Bars:
    """One group of bars.

    Attributes:
        label: Text to the left of the group.
        values: One value per series; None leaves the bar out.
    """

    label: str
    values: Sequence[Spread | None]


def chart(
    title: str,
    series: Sequence[str],
    groups: Sequence[Bars],
    *,
    goals: Sequence[float] = (),
    linear: bool = False,
) -> str:
    """Draw horizontal bars with whiskers from the 10th to the 90th percentile.

    Args:
        title: Text above the chart.
        series: Names of the bars of a group.
        groups: The groups, the topmost first.
        goals: Values at which a line is drawn.
        linear: Whether the axis is linear and begins at zero; otherwise it is logarithmic.
    """
    values = [value for group in groups for value in group.values if value is not None]
    numbers = [n for value in values for n in (value.p10, value.p90, value.median) if n > 0]
    low, high = _bounds([*numbers, *goals])
    low = 0.0 if linear else low
    inner = WIDTH - LABEL_WIDTH - RIGHT

    def x(value: float) -> float:
        within = min(max(value, low), high)
        place = within / high if linear else math.log(within / low) / math.log(high / low)
        return round(LABEL_WIDTH + inner * place, 1)

    row_height = BAR * len(series) + GAP
    bottom = TOP + row_height * len(groups)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 30}" '
        f'width="{WIDTH}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{bottom + 30}" fill="#ffffff"/>',
        _text(10, 20, title, size=14, weight="bold"),
    ]
    at = 10.0
    for name, colour in zip(series, COLOURS, strict=False):
        parts.append(f'<rect x="{at}" y="32" width="10" height="10" fill="{colour}"/>')
        parts.append(_text(at + 14, 41, name))
        at += 34 + 6.5 * len(name)
    for tick in [high * part / 5 for part in range(6)] if linear else _ticks(low, high):
        parts.append(_line(x(tick), TOP, bottom, "#dddddd"))
        parts.append(_text(x(tick), bottom + 16, _figure(tick), anchor="middle"))
    for goal in goals:
        parts.append(_line(x(goal), TOP - 4, bottom, "#b03030", dash=True))
    for number, group in enumerate(groups):
        y = TOP + row_height * number
        middle = y + BAR * len(series) / 2 + 4
        parts.append(_text(LABEL_WIDTH - 8, middle, group.label, anchor="end"))
        for value, colour in zip(group.values, COLOURS, strict=False):
            if value is not None and value.median > 0:
                parts += _bar(x(low), x(value.median), x(value.p10), x(value.p90), y, colour)
                parts.append(_text(x(value.p90) + 5, y + BAR - 2, _figure(value.median), size=9))
            y += BAR
    return "\n".join([*parts, "</svg>", ""])


def _bar(left: float, right: float, p10: float, p90: float, y: float, colour: str) -> list[str]:
    middle = y + (BAR - 2) / 2
    return [
        f'<rect x="{left}" y="{y}" width="{max(right - left, 0.5):.1f}" height="{BAR - 2}" '
        f'fill="{colour}"/>',
        f'<line x1="{p10}" y1="{middle}" x2="{p90}" y2="{middle}" stroke="#222222"/>',
    ]


def _bounds(numbers: Sequence[float]) -> tuple[float, float]:
    """Return bounds around all numbers, each 1, 2 or 5 times a power of ten."""
    low, high = min(numbers, default=1.0), max(numbers, default=1.0)
    steps = _ticks(low / 10, high * 10)
    below = [step for step in steps if step <= low]
    above = [step for step in steps if step > high * 1.05]
    return below[-1], above[0]


def _ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = [m * 10.0**power for power in range(first, last + 1) for m in (1, 2, 5)]
    return [step for step in steps if low * 0.999 <= step <= high * 1.001]


def _figure(value: float) -> str:
    """Write a number with three significant digits."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _line(x: float, top: float, bottom: float, colour: str, *, dash: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dash else ""
    return f'<line x1="{x}" y1="{top}" x2="{x}" y2="{bottom}" stroke="{colour}"{dashes}/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 11, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )
