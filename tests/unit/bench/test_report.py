"""Goals are judged, and a run is written down and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import pytest

from bench import boots, profiles, report
from bench.cases import MIB, Case, Size
from bench.machine import Busyness, Machine, describe
from bench.plots import Bars, chart
from bench.ratios import Spread
from bench.results import (
    BootRow,
    CaseResult,
    GuestFilesRow,
    PoolRow,
    Profile,
    Results,
    Row,
    ScaleRow,
    Symbol,
    WalkRow,
)
from bench.rounds import AGAIN, FLOORS
from bench.targets import RUST, C
from bench.verdicts import judge

if TYPE_CHECKING:
    from pathlib import Path

SMALL = Case(operation="read", depth=16)
LARGE = Case(operation="read", block_bytes=MIB, depth=8, sequential=True)
UNCACHED = Case(operation="read", depth=16, span_bytes=MIB)


def row(name: str, *rates: float) -> Row:
    return Row(
        name=name,
        rates=list(rates),
        p50_us=1,
        p99_us=2,
        device_cpu_us=3,
        driver_cpu_us=4,
        kicks=0.5,
        interrupts=0.25,
    )


def scale(devices: int, rss_mib: float, rates: list[float]) -> ScaleRow:
    return ScaleRow(
        host="native",
        devices=devices,
        attach_ms=[1.0] * devices,
        rss_bytes=int(rss_mib * MIB),
        anonymous_bytes=0,
        idle_cpu_ms=0,
        rates=rates,
        busy_rates=rates,
    )


def results(*cases: CaseResult, hosts: list[ScaleRow] | None = None) -> Results:
    return Results(
        machine=describe(),
        busyness=Busyness(others=0.1, stolen=0),
        size=Size.QUICK,
        seconds=0.2,
        rounds=3,
        duration_s=1,
        versions={C.name: "7"},
        cases=list(cases),
        scale=hosts or [],
        pools=[PoolRow(devices=2, block_bytes=4096, one_pool=[10, 20], pool_each=[20, 20])],
        walks=[
            WalkRow(
                name="native",
                files=2000,
                known_s=1.5,
                again_s=2,
                anonymous_bytes=400_000,
                descriptors=1001,
            ),
            WalkRow(name=C.name, files=2000, failure="Too many open files"),
        ],
        accelerator="kvm",
        boots=[
            BootRow(name=boots.BARE, seconds=[1.0, 2.0]),
            BootRow(name=boots.COMMAND, seconds=[1.5, 2.0]),
        ],
        guest_files=[
            GuestFilesRow(name="pool", load="read", rates=[90, 100]),
            GuestFilesRow(name="windows", load="read", rates=[30, 50]),
        ],
        profiles=[
            Profile(
                case=SMALL.name,
                program="native",
                symbols=[Symbol(share=50.0, module="kernel", name="copy")],
            )
        ],
    )


def small(native: float, python: float) -> CaseResult:
    return CaseResult(
        case=SMALL,
        rows=[
            row("native", native, native, native),
            row("python", python, python, python),
            row(C.name, 100, 50, 100),
            row(RUST.name, 50, 100, 80),
            row(C.name + AGAIN, 110, 50, 90),
        ],
    )


def test_a_goal_is_held_against_the_better_virtiofsd() -> None:
    native, python = judge(results(small(native=210, python=79)))
    assert native.findings[0].figure.median == pytest.approx(2.1)
    assert not native.misses()
    assert python.misses() == python.findings
    assert python.misses()[0].figure.median == pytest.approx(0.79)


def test_the_floor_counts_at_1_mib() -> None:
    rows = [row("native", 95), row(C.name, 100), row(FLOORS["read"], 100)]
    goals = judge(results(CaseResult(case=LARGE, rows=rows)))
    missed = {goal.name: bool(goal.misses()) for goal in goals}
    assert missed == {
        "128 KiB and 1 MiB, native, to the better virtiofsd": True,
        "1 MiB, native, to the floor": False,
    }


def test_the_token_is_compared_with_windows() -> None:
    rows = [row("native", 90), row("native, windows", 31)]
    (goal,) = judge(results(CaseResult(case=UNCACHED, rows=rows)))
    assert goal.bound == 3
    assert goal.misses()


def test_memory_and_drop_of_further_devices() -> None:
    steady = scale(64, rss_mib=20 + 63 * 1.5, rates=[95.0, 101.0, 99.0])
    fat = scale(65, rss_mib=20 + 64 * 2.5, rates=[80.0, 81.0, 82.0])
    alone = scale(1, rss_mib=20, rates=[100.0, 100.0, 100.0])
    drop, memory = judge(results(hosts=[alone, steady, fat]))
    assert [each.what for each in drop.misses()] == ["native, 65 devices"]
    assert [each.what for each in memory.misses()] == ["native, 65 devices"]
    assert memory.findings[0].figure.median == pytest.approx(1.5, abs=0.01)


def test_a_run_is_written_and_read_back(tmp_path: Path) -> None:
    large = CaseResult(case=LARGE, rows=[row("native", 9), row(C.name, 10), row("python", 5)])
    run = results(small(150, 90), large, hosts=[scale(1, 20, [1.0]), scale(8, 30, [1.0])])
    report.write(run, tmp_path)
    assert Results.model_validate_json((tmp_path / "results.json").read_text()) == run
    page = (tmp_path / "results.md").read_text()
    assert f"| {SMALL.name} | 150 | 90 |" in page
    assert "not reached in 1 of 1" in page
    assert "differs by 10% (median), 10% (90th percentile)" in page
    assert "| 2 | 4 KiB | 15 | 20 | 1.50 (1.10-1.90) |" in page
    assert "| 50.0 % | kernel | `copy` |" in page
    assert "| native | 1.5 s | 2.0 s | 200 bytes | 1,001 |" in page
    assert f"| {boots.COMMAND} | 1.75 (1.55-1.95) s | 1.25 (1.05-1.45) |" in page
    assert "| read | 95 | 40 | 2.50 (2.10-2.90) |" in page
    assert "executed by KVM" in page
    assert f"| {C.name} | failed: Too many open files |" in page
    for name in ("small.svg", "large.svg", "idle.svg", "memory.svg", "pools.svg"):
        assert f"]({name})" in page
        assert ElementTree.parse(tmp_path / name).getroot().tag.endswith("svg")


@pytest.mark.parametrize("linear", [False, True])
def test_a_longer_bar_is_a_larger_number(linear: bool) -> None:
    groups = [Bars("a & b", [Spread(1, 1, 1), None]), Bars("c", [Spread(8, 7, 9), None])]
    root = ElementTree.fromstring(chart("t", ["x", "y"], groups, goals=[2.0], linear=linear))
    bars = [e for e in root if e.tag.endswith("rect") and e.get("height") == "9"]
    first, second = (float(bar.attrib["width"]) for bar in bars)
    assert first < second
    assert not linear or second == pytest.approx(8 * first, rel=0.01)


def test_reports_of_both_samplers_are_read() -> None:
    perf = "# Overhead|Shared Object|Symbol\n   60.20%|[kernel.kallsyms]  |[k] _copy_to_iter\n\n"
    assert profiles.parse_report(perf) == [
        Symbol(share=60.2, module="[kernel.kallsyms]", name="_copy_to_iter")
    ]
    stacks = "main (a.py:1);read (b.py:2) 3\nmain (a.py:1) 1\n"
    assert profiles.parse_stacks(stacks) == [
        Symbol(share=75.0, module="b.py:2", name="read"),
        Symbol(share=25.0, module="a.py:1", name="main"),
    ]


def test_the_machine_is_described() -> None:
    assert isinstance(describe(), Machine)
    assert describe().cpus >= 1
