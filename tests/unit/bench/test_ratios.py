"""Medians, spreads and paired ratios."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.ratios import paired, percentile, spread

FLOATS = st.lists(st.floats(0.001, 1e9), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([3.0], 50, 3.0), ([1.0, 2.0], 50, 1.5), ([4.0, 1.0, 2.0, 3.0, 5.0], 10, 1.4)],
)
def test_a_percentile_lies_between_the_two_nearest_ranks(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


@given(FLOATS)
def test_a_spread_is_ordered_and_inside_its_values(values: list[float]) -> None:
    found = spread(values)
    assert min(values) <= found.p10 <= found.median <= found.p90 <= max(values)


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_there_is_no_percentile_of_nothing_or_out_of_range(
    values: list[float], percent: float
) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        percentile(values, percent)


def test_a_ratio_is_to_the_best_baseline_of_the_same_round() -> None:
    rounds = [
        {"ours": 10.0, "a": 5.0, "b": 2.0},
        {"ours": 10.0, "a": 5.0, "b": 20.0},
        {"ours": 10.0, "b": 4.0},
        {"ours": 10.0},
        {"a": 1.0},
        {"ours": 10.0, "a": 0.0},
    ]
    assert paired(rounds, "ours", ["a", "b"]) == [2.0, 0.5, 2.5]
