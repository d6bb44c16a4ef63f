"""The difference between two measurements of the same program in the same round. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.rounds import AGAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from bench.results import CaseResult


def differences(cases: Iterable[CaseResult]) -> list[float]:
    """Return the difference as a share of the first rate, for each pair of measurements."""
    return [
        abs(again / once - 1)
        for result in cases
        for row in result.rows
        if row.name.endswith(AGAIN) and (first := result.row(row.name.removesuffix(AGAIN)))
        for once, again in zip(first.rates, row.rates, strict=True)
        if once
    ]
