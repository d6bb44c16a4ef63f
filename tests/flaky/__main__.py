"""Repeats the tests that meet a kernel, in rounds, under load and in random order.

At the end it lists the tests that failed, how often, and the seeds that repeat those rounds. Each
round leaves its log in build/flaky. The exit code is 1 when any test has failed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
from typing import TYPE_CHECKING, Final

from tests.flaky.load import load
from tests.flaky.rounds import Round, run_round

if TYPE_CHECKING:
    from collections.abc import Sequence

KERNEL: Final = (
    "kernel or root or fuse or tap or qemu or guest_kernel or libvirt or fio or stress_ng"
)
"""The markers of tests that meet a kernel (pyproject.toml)."""


def report(rounds: Sequence[Round]) -> str:
    """Return a line per test that failed: how often, and the seeds; the most frequent first."""
    seeds: dict[str, list[int]] = {}
    for each in rounds:
        for test in each.failed:
            seeds.setdefault(test, []).append(each.seed)
    lines = [
        f"{len(found)} of {len(rounds)}  {test}  seeds: {', '.join(map(str, found))}"
        for test, found in sorted(seeds.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return "\n".join(lines or [f"nothing failed in {len(rounds)} rounds"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 1 when a test has failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.flaky", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, help="seed of the first round; each next round adds 1")
    parser.add_argument(
        "--load", type=int, default=os.cpu_count(), help="processes that keep the machine busy"
    )
    parser.add_argument("--markers", default=KERNEL, help="the tests that run: pytest's -m")
    parser.add_argument(
        "--deadline", type=float, default=3600.0, help="seconds that one round gets", metavar="S"
    )
    parser.add_argument("pytest", nargs="*", help="paths; after --, any arguments for pytest")
    chosen = parser.parse_args(arguments)
    first = random.randrange(1 << 31) if chosen.seed is None else chosen.seed
    rounds: list[Round] = []
    # Both signals end the round that runs; the rounds before it are reported.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with load(chosen.load):
            for each in range(chosen.rounds):
                done = run_round(
                    first + each, ["-m", chosen.markers, *chosen.pytest], chosen.deadline
                )
                rounds.append(done)
                print(
                    f"round {each + 1} of {chosen.rounds}, seed {done.seed}: {done.ran} ran, "
                    f"{done.skipped} skipped, {len(done.failed)} failed, {done.seconds:.0f} s",
                    flush=True,
                )
    except KeyboardInterrupt:
        pass
    print(report(rounds))
    return 1 if any(each.failed for each in rounds) or not rounds else 0


if __name__ == "__main__":
    sys.exit(main())
