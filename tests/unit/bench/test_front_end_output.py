"""What the front-end prints is read strictly."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from bench.front_end import Measurement
from bench.results import summarize

PRINTED = {
    "operation": "read",
    "ops": 1000,
    "bytes": 4096000,
    "entries": 0,
    "seconds": 0.5,
    "checked_pages": 1000,
    "device_cpu_s": 0.02,
    "front_end_cpu_s": 0.01,
    "ns": {"mean": 2000, "p50": 1500, "p90": 1, "p99": 3000, "p999": 1, "max": 1},
    "kicks": 10,
    "interrupts": 500,
}


def measurement(**changes: object) -> Measurement:
    return Measurement.model_validate_json(json.dumps({**PRINTED, **changes}))


def test_a_rate_is_of_operations_or_of_entries() -> None:
    assert measurement().rate == 2000
    assert measurement(entries=50_000).rate == 100_000
    assert measurement(seconds=0).rate == 0


@pytest.mark.parametrize("change", [{"unknown": 1}, {"ops": "many"}, {"ns": {}}, {"seconds": None}])
def test_what_does_not_fit_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        measurement(**change)


def test_rounds_become_a_row() -> None:
    row = summarize("x", [measurement(), measurement(seconds=1.0), measurement(seconds=0.25)])
    assert row.rates == [2000, 1000, 4000]
    assert row.rate.median == 2000
    assert (row.p50_us, row.p99_us) == (1.5, 3.0)
    assert (row.device_cpu_us, row.driver_cpu_us) == (20.0, 10.0)
    assert (row.kicks, row.interrupts) == (0.01, 0.5)


def test_a_listing_has_no_cpu_time_for_each_operation() -> None:
    assert summarize("x", [measurement(entries=5)]).device_cpu_us == 0
