"""`python -m bench`: run the matrix, print ratios, write JSON.

Owns the command line and the order of a run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from bench import machine, trees
from bench import targets as all_targets
from bench.cases import WORKING_SET_BYTES, Case, Kind, Medium, Size, matrix
from bench.ratios import paired, spread
from bench.rounds import AGAIN, Result, Runner, Settings
from bench.targets import C, Target, virtiofsds

DISK_DIR: Final = Path("build/bench/shared")
SECONDS: Final = {Size.SMOKE: (0.1, 0.02, 1), Size.QUICK: (0.5, 0.1, 5), Size.FULL: (1.0, 0.2, 11)}
"""Seconds, warm-up and rounds of each measurement."""


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--size", type=Size, metavar="smoke|quick|full", default=Size.QUICK)
    parser.add_argument("--only", type=re.compile, default=re.compile(""), help="cases, by a regex")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--anywhere", action="store_true", help="do not pin threads to CPUs")
    parser.add_argument("--precedence", action="store_true", help="run before others (niceness)")
    given = parser.parse_args()
    seconds, warmup_s, rounds = SECONDS[given.size]
    cpus = sorted(os.sched_getaffinity(0))
    half = len(cpus) // 2
    pinned = half and not given.anywhere
    with (
        machine.precedence() if given.precedence else contextlib.nullcontext(),
        tempfile.TemporaryDirectory(prefix="ph-bench-") as run_dir,
        tempfile.TemporaryDirectory(prefix="ph-bench-", dir="/dev/shm") as tmpfs,
    ):
        settings = Settings(
            seconds=given.seconds or seconds,
            warmup_s=warmup_s,
            rounds=given.rounds or rounds,
            run_dir=Path(run_dir),
            shared={Medium.TMPFS: Path(tmpfs), Medium.DISK: DISK_DIR.absolute()},
            driver_cpus=tuple(cpus[:half]) if pinned else (),
            device_cpus=tuple(cpus[half:]) if pinned else (),
        )
        cases = [case for case in matrix(given.size) if given.only.search(case.name)]
        for medium in {case.medium for case in cases}:
            trees.make_tree(settings.shared[medium], WORKING_SET_BYTES)
        runner = Runner(settings)
        for case in cases:
            targets = _targets(case)
            _print(runner.run(case, targets, C if C in targets else targets[0]))


def _targets(case: Case) -> list[Target]:
    here = all_targets
    ours = [here.NATIVE] if here.has_native() else []
    ours.append(here.PYTHON)
    if case.kind is Kind.UNCACHED:
        return [*ours, *([here.NATIVE_WINDOWS] if here.has_native() else []), here.PYTHON_WINDOWS]
    return [*ours, *virtiofsds()]


def _print(result: Result) -> None:
    rates = result.rates()
    print(f"\n{result.case.name}")
    baselines = [target.name for target in virtiofsds()]
    for name in rates[0]:
        rate = spread([each[name] for each in rates])
        against = [name.removesuffix(AGAIN)] if name.endswith(AGAIN) else baselines
        ratios = paired(rates, name, against)
        ratio = f"  ratio {spread(ratios)}" if ratios else ""
        p50 = spread([each[name].ns.p50 / 1000 for each in result.rounds]).median
        print(f"  {name:<22} {rate.median:>12,.0f}/s  p50 {p50:>9.1f} us{ratio}", flush=True)


if __name__ == "__main__":
    main()
