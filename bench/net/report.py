"""Writes down what was measured of networks.

Owns the wording of these tables. Must not know how figures are measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.net.cases import Load
from bench.net.results import ENDS, IDLE, OTHERS, Work
from bench.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.net.results import NetCaseResult, NetProfile, NetRow

_LAST: Final = (ENDS, OTHERS, IDLE)
"""Programs that come last in a profile, and are no part of a network."""


def case_lines(result: NetCaseResult) -> list[str]:
    """Describe one case in plain text, for people who watch a run."""
    return [
        result.case.name,
        *(f"  {row.name:<20} {_rate(result, row)} {_aside(row)}".rstrip() for row in result.rows),
    ]


def sections(results: Sequence[NetCaseResult], seconds: float) -> list[str]:
    """Write the section of a report, of measurements of `seconds`; nothing without results."""
    if not results:
        return []
    names = list(dict.fromkeys(row.name for result in results for row in result.rows))
    lines = [
        "",
        "## Networks",
        "",
        f"Medians over the rounds: {len(results[0].rows[0].rounds)} of {seconds:g} s each. A round "
        "in which a TCP stream stalled counts in no rate and in no ratio, and is told beside them.",
        "",
        *_rows(results, names, lambda result, row: f"{_rate(result, row)} {_aside(row)}".strip()),
    ]
    one_way = [result for result in results if not result.case.is_timed]
    if one_way:
        lines += ["", "CPU seconds per gigabit, of the device / the front-end / both ends:", ""]
        lines += _rows(one_way, names, lambda _, row: _cpu(row))
    streams = [result for result in one_way if result.case.load is Load.TCP]
    if streams:
        lines += ["", "TCP segments that were sent again, in each round:", ""]
        lines += _rows(streams, names, lambda _, row: _retransmits(row))
    timed = [result for result in results if result.case.is_timed]
    if timed:
        lines += ["", "One operation, p50 / p99, in µs:", ""]
        lines += _rows(timed, names, lambda _, row: _times(row))
    return lines


def profile_sections(profiles: Sequence[NetProfile]) -> list[str]:
    """Write where the time went, of the cases that were sampled; nothing without profiles."""
    if not profiles:
        return []
    lines = [
        "",
        "## Where the time goes in networks that fell short",
        "",
        "Shares of the time of all CPUs, in percent, sampled while the load ran once more. What "
        "the kernel does in softirqs counts for whom it interrupted.",
    ]
    for profile in profiles:
        programs = list(dict.fromkeys(share.program for share in profile.shares))
        percents = {(share.program, share.work): share.percent for share in profile.shares}
        rows = []
        for program in sorted(programs, key=lambda name: (name in _LAST, name)):
            row = [percents.get((program, work), 0.0) for work in Work]
            rows.append([program, *(f"{each:.1f}" if each else "" for each in row)])
            rows[-1].append(f"{sum(row):.1f}")
        lines += ["", f"{profile.case}, {profile.network}:", ""]
        lines += table(["", *(work.value for work in Work), "all"], rows)
    return lines


def _rows(
    results: Sequence[NetCaseResult],
    names: Sequence[str],
    cell: Callable[[NetCaseResult, NetRow], str],
) -> list[str]:
    rows = []
    for result in results:
        found = [result.row(name) for name in names]
        rows.append([result.case.name, *(cell(result, row) if row else "" for row in found)])
    return table(["case", *names], rows)


def _rate(result: NetCaseResult, row: NetRow) -> str:
    rate = row.median("rate")
    if rate is None:
        return ""
    unit = result.case.load.value
    if result.case.load is Load.TCP:
        return f"{rate:.2f} {unit}"
    loss = row.median("loss") or 0.0
    return f"{rate:,.0f} {unit}" + (f", {loss:.0%} lost" if loss >= 0.005 else "")


def _aside(row: NetRow) -> str:
    """Tell how many rounds have no figure of a network at work."""
    found = [
        f"{count} {what}"
        for count, what in ((row.stalled, "stalled"), (row.failed, "failed"))
        if count
    ]
    return f"({', '.join(found)} of {len(row.rounds)})" if found else ""


def _cpu(row: NetRow) -> str:
    figures = [row.median(name) for name in ("device_cpu_s", "front_end_cpu_s", "ends_cpu_s")]
    return " / ".join(f"{figure:.3f}" for figure in figures if figure is not None)


def _retransmits(row: NetRow) -> str:
    return ", ".join("failed" if each.failure else str(each.retransmits) for each in row.rounds)


def _times(row: NetRow) -> str:
    p50, p99 = row.median("p50_us"), row.median("p99_us")
    return "" if p50 is None or p99 is None else f"{p50:,.1f} / {p99:,.1f}"
