"""`python -m bench`: run the matrix, print ratios, write JSON, tables and plots.

Owns the command line and the order of a run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import against, boots, guest_files, machine, pools, profiles, report, scale, trees, walk
from bench import targets as all_targets
from bench.cases import WORKING_SET_BYTES, Case, Kind, Medium, Size, matrix
from bench.net import cases as net_cases
from bench.net import loads as net_loads
from bench.net import peers as net_peers
from bench.net import profiles as net_profiles
from bench.net import report as net_report
from bench.net import rounds as net_rounds
from bench.results import (
    BootRow,
    CaseResult,
    GuestFilesRow,
    PoolRow,
    Profile,
    Results,
    ScaleRow,
    WalkRow,
)
from bench.rounds import Runner, Settings
from bench.tables import table
from bench.targets import C, Target, virtiofsds
from bench.verdicts import judge, net_goals

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.net.results import NetCaseResult, NetProfile
    from services.vm_owner.machines.qemu.installation import Accelerator

DISK_DIR: Final = Path("build/bench/shared")
OUTPUT: Final = {Size.FULL: Path("docs/benchmarks")}
"""Output folder by size; only a full run may replace the published results."""
OTHER_OUTPUT: Final = Path("build/bench/results")
SECONDS: Final = {Size.SMOKE: (0.1, 0.02, 1), Size.QUICK: (0.2, 0.05, 5), Size.FULL: (0.2, 0.05, 7)}
"""Seconds, warm-up and rounds of each measurement."""
DEVICES: Final = {Size.SMOKE: (1, 4), Size.QUICK: (1, 64), Size.FULL: (1, 8, 64, 256)}
GUEST_DEVICES: Final = {Size.SMOKE: (2,), Size.QUICK: (1, 8), Size.FULL: (1, 2, 4, 8, 16)}
PROFILE_S: Final = 2.0
"""Length of a profiled run, in seconds."""
WALKED: Final = {Size.SMOKE: 2000, Size.QUICK: 100_000, Size.FULL: 1_000_000}
NET_ROUNDS: Final = {Size.SMOKE: 1, Size.QUICK: 3, Size.FULL: 7}
NET_S: Final = 1.0
"""Length of each measurement of a network: the shortest that iperf3 has."""
QUICK_PARTS: Final = ("cases", "scale", "pools", "walks", "net", "profiles")
PARTS: Final = (*QUICK_PARTS, "guests")


def main() -> None:
    """Run."""
    given = _arguments()
    # Guests and devices are ended by those who started them.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begin, watch, where = time.monotonic(), machine.Watch(), machine.describe()
    with contextlib.ExitStack() as stack:
        if given.precedence:
            stack.enter_context(machine.precedence())
        settings = _settings(given, stack)
        runner = Runner(settings)
        if given.against is not None:
            _against(given, settings, runner)
            return
        # The parts "scale" and "pools" always read on tmpfs, whatever the cases use.
        trees.make_tree(settings.shared[Medium.TMPFS], WORKING_SET_BYTES)
        cases = list(_cases(given, settings, runner)) if "cases" in given.parts else []
        rows = list(_scale(given, settings)) if "scale" in given.parts else []
        pool_rows = list(_pools(given, settings)) if "pools" in given.parts else []
        walks = list(_walks(given, settings)) if "walks" in given.parts else []
        net_results = list(_net(given)) if "net" in given.parts else []
        accelerator = boots.find_accelerator() if _has_guests(given) else None
        boot_rows = list(_boots(settings, accelerator)) if accelerator else []
        file_rows = list(_guest_files(settings, accelerator)) if accelerator else []
        results = Results(
            machine=where,
            busyness=watch.read(),
            size=given.size,
            seconds=settings.seconds,
            rounds=settings.rounds,
            duration_s=round(time.monotonic() - begin, 1),
            versions=all_targets.versions() | (net_peers.versions() if net_results else {}),
            cases=cases,
            scale=rows,
            pools=pool_rows,
            walks=walks,
            accelerator=accelerator or "",
            boots=boot_rows,
            guest_files=file_rows,
            net=net_results,
            net_seconds=net_loads.whole_seconds(given.seconds or NET_S) if net_results else 0.0,
            profiles=[],
        )
        if given.size is not Size.SMOKE and profiles.is_possible():
            results = results.model_copy(update={"net_profiles": list(_net_profiles(results))})
        if "profiles" in given.parts and profiles.is_possible():
            longer = dataclasses.replace(settings, seconds=PROFILE_S)
            found = list(_profiles(results, Runner(longer)))
            results = results.model_copy(update={"profiles": found})
    output = given.output or OUTPUT.get(given.size, OTHER_OUTPUT)
    report.write(results, output)
    print()
    for row in report.goal_rows(judge(results)):
        print(f"{row[0]:<58} {row[1]:<16} {row[2]}; middle {row[3]}, worst {row[4]}")
    print(f"\nwritten to {output}/results.md and results.json")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", type=Size, metavar="smoke|quick|full", default=Size.QUICK)
    parser.add_argument(
        "--only", type=re.compile, default=re.compile(""), help="regex that selects cases by name"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, help="guests: Linux guests, by default in a full run"
    )
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="length of each measurement")
    parser.add_argument("--anywhere", action="store_true", help="do not pin threads to CPUs")
    parser.add_argument(
        "--precedence", action="store_true", help="take precedence over other processes (niceness)"
    )
    parser.add_argument(
        "--against",
        type=_checkout,
        metavar="CHECKOUT",
        help="run the cases only, on our devices and on those of another checkout, which is set up",
    )
    parser.add_argument("--output", type=Path, help="folder of results.md and results.json")
    given = parser.parse_args()
    given.parts = given.parts or (PARTS if given.size is Size.FULL else QUICK_PARTS)
    return given


def _checkout(path: str) -> Path:
    checkout = Path(path)
    if not all_targets.porthole_of(checkout).exists():
        raise argparse.ArgumentTypeError(f"{path} is not set up; run make setup there")
    return checkout


def _settings(given: argparse.Namespace, stack: contextlib.ExitStack) -> Settings:
    seconds, warmup_s, rounds = SECONDS[given.size]
    cpus = sorted(os.sched_getaffinity(0))
    half = len(cpus) // 2
    pinned = half and not given.anywhere
    run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="ph-bench-"))
    tmpfs = stack.enter_context(tempfile.TemporaryDirectory(prefix="ph-bench-", dir="/dev/shm"))
    return Settings(
        seconds=given.seconds or seconds,
        warmup_s=warmup_s,
        rounds=given.rounds or rounds,
        run_dir=Path(run_dir),
        shared={Medium.TMPFS: Path(tmpfs), Medium.DISK: DISK_DIR.absolute()},
        driver_cpus=tuple(cpus[:half]) if pinned else (),
        device_cpus=tuple(cpus[half:]) if pinned else (),
    )


def _cases(given: argparse.Namespace, settings: Settings, runner: Runner) -> Iterator[CaseResult]:
    cases = [case for case in matrix(given.size) if given.only.search(case.name)]
    for medium in {case.medium for case in cases}:
        trees.make_tree(settings.shared[medium], WORKING_SET_BYTES)
    for case in cases:
        targets = _targets(case)
        result = runner.run(case, targets, C if C in targets else targets[0])
        print("\n" + "\n".join(report.case_lines(result)), flush=True)
        yield result


def _against(given: argparse.Namespace, settings: Settings, runner: Runner) -> None:
    """Measure our devices and those of another checkout in the same rounds."""
    both = [target for pair in all_targets.before(given.against) for target in pair]
    cases = [
        case
        for case in matrix(given.size)
        if given.only.search(case.name) and case.kind in (Kind.SMALL, Kind.LARGE)
    ]
    for medium in {case.medium for case in cases}:
        trees.make_tree(settings.shared[medium], WORKING_SET_BYTES)
    results = []
    for case in cases:
        results.append(runner.run(case, both, both[0]))
        for line in against.rows(against.pairs(results[-1:])):
            print("  ".join(line), flush=True)
    pairs = against.pairs(results)
    output = given.output or OTHER_OUTPUT
    output.mkdir(parents=True, exist_ok=True)
    lines = [*against.summary(pairs), "", *table(against.HEAD, against.rows(pairs))]
    (output / "against.md").write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(against.summary(pairs)) + f"\n\nwritten to {output}/against.md")


def _targets(case: Case) -> list[Target]:
    here = all_targets
    native = here.has_native()
    ours = [*([here.NATIVE] if native else []), here.PYTHON]
    if case.kind in (Kind.UNCACHED, Kind.MEMORY):
        ours += [*([here.NATIVE_WINDOWS] if native else []), here.PYTHON_WINDOWS]
        return [*ours, *([here.NATIVE_WHOLE] if native else []), here.PYTHON_WHOLE]
    return [*ours, *virtiofsds(case.files)]


def _scale(given: argparse.Namespace, settings: Settings) -> Iterator[ScaleRow]:
    for native in [*([True] if all_targets.has_native() else []), False]:
        for row in scale.measure(settings, DEVICES[given.size], native=native):
            print("\n" + report.scale_line(row), flush=True)
            yield row


def _pools(given: argparse.Namespace, settings: Settings) -> Iterator[PoolRow]:
    for row in pools.measure(settings, GUEST_DEVICES[given.size]):
        print("\n" + report.pool_line(row), flush=True)
        yield row


def _walks(given: argparse.Namespace, settings: Settings) -> Iterator[WalkRow]:
    for row in walk.measure(settings, WALKED[given.size]):
        print("\n" + report.walk_line(row), flush=True)
        yield row


def _net(given: argparse.Namespace) -> Iterator[NetCaseResult]:
    if os.geteuid() or (missing := net_loads.missing()):
        lack = "right to make network namespaces (root)" if os.geteuid() else missing
        print(f"no network is measured: there is no {lack}")
        return
    for peer in net_peers.PEERS:
        if peer.missing:
            print(f"{peer.name} is not measured: there is no {peer.missing}")
    cases = [case for case in net_cases.matrix(given.size) if given.only.search(case.name)]
    peers = [peer for peer in net_peers.PEERS if not peer.missing]
    rounds = given.rounds or NET_ROUNDS[given.size]
    seconds = net_loads.whole_seconds(given.seconds or NET_S)
    for result in net_rounds.measure(cases, peers, seconds, rounds):
        print("\n" + "\n".join(net_report.case_lines(result)), flush=True)
        yield result


def _net_profiles(results: Results) -> Iterator[NetProfile]:
    """Sample the worst case of each goal of networks that was missed, on both that it compares."""
    cases = {result.case.name: result.case for result in results.net}
    known = {peer.name: peer for peer in net_peers.PEERS}
    missed = [miss for goal in net_goals(results.net) for miss in goal.misses()[:1]]
    pairs = [(miss.what, name) for miss in missed for name in (miss.program, miss.baseline)]
    for what, name in dict.fromkeys(pairs):
        print(f"profile: {what}, {name}", flush=True)
        yield net_profiles.record(cases[what], known[name], PROFILE_S)


def _has_guests(given: argparse.Namespace) -> bool:
    if "guests" in given.parts and (missing := boots.missing()):
        print(f"no Linux guest is measured: there is no {missing}")
        return False
    return "guests" in given.parts


def _boots(settings: Settings, accelerator: Accelerator) -> Iterator[BootRow]:
    for row in boots.measure(settings.rounds, accelerator):
        print(report.boot_line(row), flush=True)
        yield row


def _guest_files(settings: Settings, accelerator: Accelerator) -> Iterator[GuestFilesRow]:
    for row in guest_files.measure(settings, accelerator):
        print(report.guest_files_line(row), flush=True)
        yield row


def _profiles(results: Results, runner: Runner) -> Iterator[Profile]:
    """Profile the worst case of each goal that was missed, on our device and on virtiofsd."""
    by_name = {result.case.name: result.case for result in results.cases}
    known = {target.name: target for target in (all_targets.NATIVE, all_targets.PYTHON)}
    done = set()
    for goal in judge(results):
        for miss in goal.misses()[:1]:
            case = by_name.get(miss.what)
            if case is None or miss.program not in known:
                continue
            for target in (known[miss.program], *virtiofsds(case.files)):
                if (case.name, target.name) not in done:
                    done.add((case.name, target.name))
                    python = target is all_targets.PYTHON
                    yield profiles.record(runner, case, target, python=python)


if __name__ == "__main__":
    main()
