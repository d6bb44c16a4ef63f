"""The table of what a collector costs: paired with none, round by round."""

from __future__ import annotations

from bench.collectors import NONE, STEPS, table


def test_a_figure_is_divided_by_that_of_the_same_round() -> None:
    create, terminate = STEPS
    found = [
        {NONE: {create: 1.0, terminate: 2.0}, "dead": {create: 1.0, terminate: 4.0}},
        {NONE: {create: 4.0, terminate: 8.0}, "dead": {create: 4.0, terminate: 16.0}},
    ]
    rows = {(step, name): (seconds, ratio) for step, name, seconds, ratio in table(found)}
    assert set(rows) == {(step, name) for step in STEPS for name in (NONE, "dead")}
    for (step, name), (_, ratio) in rows.items():
        expected = 2.0 if (step, name) == (terminate, "dead") else 1.0
        assert (ratio.p10, ratio.median, ratio.p90) == (expected, expected, expected)
    assert rows[terminate, "dead"][0].median == 10.0
