"""Writes a run down: results.json, results.md, and the plots that it shows.

Owns the wording of tables. Must not know how figures are measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench.boots import BARE
from bench.cases import Kind
from bench.net import report as net
from bench.noise import differences
from bench.plots import Bars, chart
from bench.ratios import Spread, percentile, spread
from bench.rounds import AGAIN
from bench.tables import table
from bench.verdicts import NATIVE, PYTHON, VIRTIOFSDS, Goal, judge
from bench.walk import DESCRIPTORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from bench.results import (
        BootRow,
        CaseResult,
        GuestFilesRow,
        PoolRow,
        Results,
        Row,
        ScaleRow,
        WalkRow,
    )

TITLES: Final = {
    Kind.SMALL: "Small operations (READDIRPLUS: entries)",
    Kind.LARGE: "128 KiB and 1 MiB",
    Kind.UNCACHED: "Without and with the token, buffers that no window is mapped for",
    Kind.MEMORY: "Token, windows, and the whole of guest memory",
}
SHOWN_MISSES: Final = 8


def write(results: Results, folder: Path) -> None:
    """Write all files of a run into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.model_dump_json(indent=1) + "\n")
    plots = {name: draw for name, draw in _plots(results).items() if draw}
    for name, text in plots.items():
        (folder / name).write_text(text)
    (folder / "results.md").write_text("\n".join(_page(results, plots)) + "\n")


def case_lines(result: CaseResult) -> list[str]:
    """Describe one case in plain text, for people who watch a run."""
    lines = [result.case.name]
    for row in result.rows:
        once = row.name.removesuffix(AGAIN)
        ratio = result.ratio(row.name, VIRTIOFSDS if once == row.name else [once])
        lines.append(
            f"  {row.name:<22} {row.rate.median:>12,.0f}/s  p50 {row.p50_us:>9.1f} us"
            + (f"  ratio {ratio}" if ratio else "")
        )
    return lines


def scale_line(row: ScaleRow) -> str:
    """Describe one device host in plain text."""
    return (
        f"{row.devices} devices in one host, {row.host}: {spread(row.rates).median:,.0f}/s of one, "
        f"{spread(row.busy_rates).median:,.0f}/s of all, {row.rss_bytes / 2**20:.0f} MiB, "
        f"attached in {percentile(row.attach_ms, 50):.1f} ms, idle {row.idle_cpu_ms:.1f} ms/s"
    )


def pool_line(row: PoolRow) -> str:
    """Describe one comparison of pools in plain text."""
    return (
        f"{row.devices} devices of a guest, {row.block_bytes >> 10} KiB reads: "
        f"{spread(row.one_pool).median:,.0f}/s behind one pool, "
        f"{spread(row.pool_each).median:,.0f}/s with a pool each"
    )


def walk_line(row: WalkRow) -> str:
    """Describe one walk in plain text."""
    if row.failure:
        return f"{row.name}: a walk over {row.files:,} files failed: {row.failure}"
    return (
        f"{row.name}: {row.files:,} files known in {row.known_s:.1f} s, seen again in "
        f"{row.again_s:.1f} s, {row.anonymous_bytes / row.files:,.0f} bytes each, "
        f"{row.descriptors:,} descriptors"
    )


def boot_line(row: BootRow) -> str:
    """Describe one milestone of a boot in plain text."""
    return f"Linux guest: {row.name} after {spread(row.seconds)} s"


def guest_files_line(row: GuestFilesRow) -> str:
    """Describe one program under one load of a Linux guest in plain text."""
    return f"Linux guest, {row.load}: {row.name} {spread(row.rates).median:,.0f}/s"


def goal_rows(goals: Iterable[Goal]) -> list[list[str]]:
    """Return a row per goal: its bound, whether it was reached, and the worst case."""
    rows = []
    for goal in goals:
        misses, count = goal.misses(), len(goal.findings)
        medians = [finding.figure.median for finding in goal.findings]
        worst = max(medians) if goal.at_most else min(medians)
        verdict = "reached" if not misses else f"not reached in {len(misses)} of {count}"
        bound = f"{'at most' if goal.at_most else 'at least'} {goal.bound:g}{goal.unit}"
        rows.append(
            [
                goal.name,
                bound,
                verdict,
                f"{goal.middle():.2f}{goal.unit}",
                f"{worst:.2f}{goal.unit}",
            ]
        )
    return rows


def _page(results: Results, plots: Iterable[str]) -> list[str]:
    machine, busyness = results.machine, results.busyness
    lines = [
        "# Results",
        "",
        "Written by `make bench`; docs/benchmarks/README.md says how it is measured.",
        "",
        *table(
            ["", ""],
            [
                ["date", f"{machine.date} UTC, {results.duration_s / 60:.0f} minutes"],
                ["CPU", f"{machine.cpu}, {machine.cpus} usable{_virtual(results)}"],
                ["memory", f"{machine.memory_bytes / 2**30:.0f} GiB"],
                ["kernel", machine.kernel],
                *([name, version] for name, version in results.versions.items()),
                *([["size", _rounds(results)]] if results.cases or not results.net else []),
                ["others", f"{busyness.others:.0%} of all CPU time; {busyness.stolen:.0%} stolen"],
                ["noise", _noise(results.cases)],
            ],
        ),
        "",
    ]
    if goals := judge(results):
        lines += [
            "## Goals",
            "",
            "Middle is the geometric mean over the cases; each case counts with its median.",
            "",
            *table(["goal", "bound", "verdict", "middle", "worst case"], goal_rows(goals)),
            "",
            *_misses(goals),
        ]
    lines += [f"![{name.removesuffix('.svg')}]({name})" for name in plots]
    for kind, title in TITLES.items():
        lines += _cases(title, [result for result in results.cases if result.case.kind is kind])
    rest = [*_scale(results), *_pools(results), *_walks(results), *_boots(results)]
    lines += [*rest, *_guest_files(results), *net.sections(results.net, results.net_seconds)]
    return [*lines, *net.profile_sections(results.net_profiles), *_profiles(results)]


def _virtual(results: Results) -> str:
    return ", virtual" if results.machine.hypervisor else ""


def _rounds(results: Results) -> str:
    fewest = min([len(case.rows[0].rates) for case in results.cases] or [results.rounds])
    rounds = f"{fewest} to {results.rounds}" if fewest < results.rounds else f"{results.rounds}"
    return f"{rounds} rounds of {results.seconds:g} s each"


def _noise(cases: Iterable[CaseResult]) -> str:
    """Describe the difference between two measurements of a program in the same round."""
    found = differences(cases)
    if not found:
        return "not measured"
    return (
        f"a second measurement in the same round differs by {percentile(found, 50):.0%} "
        f"(median), {percentile(found, 90):.0%} (90th percentile)"
    )


def _misses(goals: Iterable[Goal]) -> list[str]:
    lines = []
    for goal in goals:
        misses = goal.misses()
        if not misses:
            continue
        lines += [f"What falls short of *{goal.name}* ({goal.bound:g}{goal.unit}):", ""]
        lines += [f"- {each.what}: {each.figure}{goal.unit}" for each in misses[:SHOWN_MISSES]]
        if len(misses) > SHOWN_MISSES:
            lines.append(f"- and {len(misses) - SHOWN_MISSES} more, in the tables below")
        lines.append("")
    return lines


def _cases(title: str, results: Sequence[CaseResult]) -> list[str]:
    if not results:
        return []
    names = list(dict.fromkeys(row.name for result in results for row in result.rows))
    names = [name for name in names if not name.endswith(AGAIN)]
    ours = [name for name in (NATIVE, PYTHON) if name in names]
    compared = any(result.ratio(name, VIRTIOFSDS) for result in results for name in ours)
    head = ["case", *(f"{name} /s" for name in names)]
    head += [f"{name} : virtiofsd" for name in ours if compared]
    rows = []
    for result in results:
        found = [result.row(name) for name in names]
        line = [result.case.name, *(f"{row.rate.median:,.0f}" if row else "" for row in found)]
        if compared:
            line += [str(result.ratio(name, VIRTIOFSDS) or "") for name in ours]
        rows.append(line)
    times = [
        [result.case.name, *(_times(result.row(name)) for name in names)] for result in results
    ]
    return [
        "",
        f"## {title}",
        "",
        "Rates are medians. Ratios: median (10th to 90th percentile).",
        "",
        *table(head, rows),
        "",
        "<details><summary>One operation: p50 / p99; CPU time of the device / of the driver, all "
        "in µs; kicks / interrupts</summary>",
        "",
        *table(["case", *names], times),
        "",
        "</details>",
    ]


def _times(row: Row | None) -> str:
    if row is None:
        return ""
    return (
        f"{row.p50_us:,.1f} / {row.p99_us:,.1f}; "
        f"{row.device_cpu_us:.1f} / {row.driver_cpu_us:.1f}; "
        f"{row.kicks:.2f} / {row.interrupts:.2f}"
    )


def _scale(results: Results) -> list[str]:
    if not results.scale:
        return []
    rows = []
    for row in results.scale:
        alone = next(r for r in results.scale if r.host == row.host)
        more = row.devices - alone.devices
        each = (row.rss_bytes - alone.rss_bytes) / more / 2**10 if more else 0.0
        anonymous = (row.anonymous_bytes - alone.anonymous_bytes) / more / 2**10 if more else 0.0
        rows.append(
            [
                row.host,
                str(row.devices),
                f"{spread(row.rates).median:,.0f}",
                f"{spread(row.busy_rates).median:,.0f}",
                f"{row.rss_bytes / 2**20:.0f} MiB",
                f"{each:,.0f} KiB, {anonymous:,.0f} KiB of it anonymous" if more else "",
                f"{percentile(row.attach_ms, 50):.1f} / {max(row.attach_ms):.1f} ms",
                f"{row.idle_cpu_ms:.1f} ms/s",
            ]
        )
    head = ["device host", "devices", "one busy, others idle /s", "all busy, together /s"]
    head += ["resident", "per further device", "attach p50 / max", "CPU when idle"]
    title = "4 KiB random reads; QD16 of one device, QD4 of each when all are busy."
    return ["", "## Devices in one device host", "", title, "", *table(head, rows)]


def _walks(results: Results) -> list[str]:
    if not results.walks:
        return []
    rows = [
        [row.name, *([f"failed: {row.failure}", "", "", ""] if row.failure else _walked(row))]
        for row in results.walks
    ]
    head = ["program", "all looked up", "all seen again", "memory for each file", "descriptors"]
    title = (
        f"A guest looks up {results.walks[0].files:,} files of one directory, one after the other, "
        f"and then asks for the attributes of each. An ordinary user has {DESCRIPTORS:,} "
        "descriptors, and opens no file handles."
    )
    return ["", "## A walk over many files", "", title, "", *table(head, rows)]


def _walked(row: WalkRow) -> list[str]:
    return [
        f"{row.known_s:.1f} s",
        f"{row.again_s:.1f} s",
        f"{row.anonymous_bytes / row.files:,.0f} bytes",
        f"{row.descriptors:,}",
    ]


def _boots(results: Results) -> list[str]:
    if not results.boots:
        return []
    bare = next(row for row in results.boots if row.name == BARE)
    rows = [
        [row.name, f"{spread(row.seconds)} s", str(_ratio(bare.seconds, row.seconds))]
        for row in results.boots
    ]
    title = (
        f"Executed by {results.accelerator.upper()}. The bare guest has the same kernel, machine "
        "and pool; its time begins with QEMU, that of the others with CreateVm."
    )
    return ["", "## Boot of a Linux guest", "", title, "", *table(["", "after", "ratio"], rows)]


def _guest_files(results: Results) -> list[str]:
    if not results.guest_files:
        return []
    loads = list(dict.fromkeys(row.load for row in results.guest_files))
    names = list(dict.fromkeys(row.name for row in results.guest_files))
    found = {(row.load, row.name): row.rates for row in results.guest_files}
    first = names[0]
    head = ["load", *(f"{name} /s" for name in names), *(f"{first} : {name}" for name in names[1:])]
    rows = [
        [
            load,
            *(f"{spread(found[load, name]).median:,.0f}" for name in names),
            *(str(_ratio(found[load, name], found[load, first])) for name in names[1:]),
        ]
        for load in loads
    ]
    title = (
        f"fio in one guest, executed by {results.accelerator.upper()}, with direct I/O and one "
        "operation at a time. All programs are attached to it; it bounces for *pool* alone."
    )
    return ["", "## Files in a Linux guest", "", title, "", *table(head, rows)]


def _pools(results: Results) -> list[str]:
    if not results.pools:
        return []
    rows = [
        [
            str(row.devices),
            f"{row.block_bytes >> 10} KiB",
            f"{spread(row.one_pool).median:,.0f}",
            f"{spread(row.pool_each).median:,.0f}",
            str(_ratio(row.one_pool, row.pool_each)),
        ]
        for row in results.pools
    ]
    head = ["devices", "reads", "one pool /s", "a pool each /s", "a pool each : one pool"]
    title = (
        "Reads of all devices together, by the user-space guest's own drivers (Python), QD4 each."
    )
    return ["", "## One pool, or a pool for each device", "", title, "", *table(head, rows)]


def _ratio(baseline: Sequence[float], figures: Sequence[float]) -> Spread:
    """Divide the figures by the baseline's of the same round."""
    return spread([b / a for a, b in zip(baseline, figures, strict=True) if a] or [0.0])


def _profiles(results: Results) -> list[str]:
    if not results.profiles:
        return []
    lines = ["", "## Profiles of what fell short", ""]
    lines.append(
        "Shares of the device's CPU time, sampled while the case ran once more; of Python, by "
        "function where py-spy was there, threads that wait included."
    )
    for case in dict.fromkeys(profile.case for profile in results.profiles):
        lines += ["", f"### {case}"]
        for profile in results.profiles:
            if profile.case == case:
                rows = [[f"{s.share:.1f} %", s.module, f"`{s.name}`"] for s in profile.symbols]
                lines += ["", f"{profile.program}:", "", *table(["share", "in", "what"], rows)]
    return lines


def _plots(results: Results) -> dict[str, str]:
    cases = results.cases

    def ratios(title: str, kind: Kind, goals: Sequence[float]) -> str:
        groups = [
            Bars(
                result.case.name,
                [result.ratio(name, VIRTIOFSDS) for name in (NATIVE, PYTHON)],
            )
            for result in cases
            if result.case.kind is kind
        ]
        return chart(title, [NATIVE, "Python alone"], groups, goals=goals) if groups else ""

    def hosts(title: str, value: Callable[[ScaleRow], Sequence[float]]) -> str:
        names = list(dict.fromkeys(row.host for row in results.scale))
        counts = sorted({row.devices for row in results.scale})
        found = {(row.host, row.devices): spread(value(row)) for row in results.scale}
        groups = [
            Bars(
                f"{count} device{'s' if count > 1 else ''}",
                [found.get((name, count)) for name in names],
            )
            for count in counts
        ]
        return chart(title, names, groups, linear=True) if groups else ""

    pools = [
        Bars(
            f"{row.devices} device{'s' if row.devices > 1 else ''}, {row.block_bytes >> 10} KiB",
            [spread(row.one_pool), spread(row.pool_each)],
        )
        for row in results.pools
    ]
    better = "ratio to the better virtiofsd"
    return {
        "small.svg": ratios(f"Small operations: {better}", Kind.SMALL, (0.8, 2.0)),
        "large.svg": ratios(f"128 KiB and 1 MiB: {better}", Kind.LARGE, (1.0,)),
        "idle.svg": hosts("One busy device, the others idle: reads/s", lambda row: row.rates),
        "memory.svg": hosts(
            "Resident memory of the device host, MiB", lambda row: [row.rss_bytes / 2**20]
        ),
        "pools.svg": chart(
            "Reads/s of all devices", ["one pool", "a pool each"], pools, linear=True
        )
        if pools
        else "",
    }
