"""A case is slower only when nine of ten rounds say so, by more than the machine's own noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import against, targets
from bench.cases import Case
from bench.results import CaseResult, Row

if TYPE_CHECKING:
    from pathlib import Path


def row(name: str, *rates: float) -> Row:
    return Row(
        name=name,
        rates=list(rates),
        p50_us=1,
        p99_us=1,
        device_cpu_us=1,
        driver_cpu_us=1,
        kicks=0,
        interrupts=0,
    )


@pytest.mark.parametrize(
    ("now", "again", "verdict"),
    [
        ((90, 90, 90), (90, 90, 90), "slower"),
        ((110, 110, 110), (110, 110, 110), "faster"),
        ((100, 100, 100), (100, 100, 100), "as before"),
        ((90, 90, 90), (110, 70, 90), "as before"),
        ((90, 90, 120), (90, 90, 120), "as before"),
    ],
    ids=["slower", "faster", "equal", "within the noise", "one round says otherwise"],
)
def test_a_verdict(now: tuple[float, ...], again: tuple[float, ...], verdict: str) -> None:
    result = CaseResult(
        case=Case(operation="read"),
        rows=[
            row("native", *now),
            row("native, before", 100, 100, 100),
            row("native again", *again),
        ],
    )
    (pair,) = against.pairs([result])
    assert (pair.program, pair.verdict) == ("native", verdict)


def test_the_summary_names_the_worst_case() -> None:
    results = [
        CaseResult(
            case=Case(operation=operation),
            rows=[row("native", rate), row("native, before", 100)],
        )
        for operation, rate in (("read", 50), ("write", 200))
    ]
    (line,) = against.summary(against.pairs(results))
    assert "1.00 of before" in line
    assert "worst 0.50 (0.50-0.50) in 4 KiB random read QD1" in line
    assert "1 slower" in line


def test_the_other_checkout_runs_its_own_command(tmp_path: Path) -> None:
    pairs = targets.before(tmp_path)
    assert targets.PYTHON in [now for now, _ in pairs]
    for now, other in pairs:
        assert other.name == now.name + ", before"
        assert other.command[0] == str(tmp_path / ".venv/bin/porthole")
        assert other.command[1:] == now.command[1:]
        assert other.environment == now.environment
