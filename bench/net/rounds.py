"""Runs the cases of networks in rounds, each of which begins with another network.

All networks that do not spend CPU time on waiting are up for the whole run, and one of them is used
at a time. Owns the order, and the
CPU time that is counted meanwhile. Must not know how figures are reported.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from bench.net import loads
from bench.net.namespaces import NetworkError
from bench.net.results import NetCaseResult, NetRound, NetRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from bench.net.cases import NetCase
    from bench.net.peers import Network, Peer


def measure(
    cases: Sequence[NetCase], peers: Sequence[Peer], seconds: float, rounds: int
) -> Iterator[NetCaseResult]:
    """Measure each case on every network.

    Args:
        cases: The cases.
        peers: Kinds of networks, all of which this machine has.
        seconds: Length of each measurement.
        rounds: Rounds of each case.

    Raises:
        NetworkError: A network does not start.
    """
    with contextlib.ExitStack() as stack:
        up = {peer: stack.enter_context(peer.run()) for peer in peers if not peer.alone}
        for case in cases:
            compared = [peer for peer in peers if case.load in peer.loads]
            found: dict[str, list[NetRound]] = {peer.name: [] for peer in compared}
            for number in range(rounds):
                turn = number % len(compared)
                for peer in compared[turn:] + compared[:turn]:
                    running = contextlib.nullcontext(up[peer]) if peer in up else peer.run()
                    with running as network:
                        found[peer.name].append(once(case, network, seconds))
            yield NetCaseResult(
                case=case, rows=[NetRow(name=name, rounds=found[name]) for name in found]
            )


def once(case: NetCase, network: Network, seconds: float) -> NetRound:
    """Measure a case on a network; a load that fails is a round without figures."""
    device, front_end = _cpu_s(network.device), _cpu_s(network.front_end)
    try:
        figures = loads.run(case, network.namespaces, seconds)
    except NetworkError as error:
        return NetRound(failure=str(error))
    device, front_end = _cpu_s(network.device) - device, _cpu_s(network.front_end) - front_end
    gigabits = figures.bits / 1e9

    def each(cpu_s: float) -> float:
        return round(cpu_s / gigabits, 5) if gigabits else 0.0

    return NetRound(
        rate=round(figures.rate, 4),
        p50_us=round(figures.p50_us, 2),
        p99_us=round(figures.p99_us, 2),
        loss=round(figures.loss, 4),
        retransmits=figures.retransmits,
        stalled_s=figures.stalled_s,
        device_cpu_s=each(device),
        front_end_cpu_s=each(front_end),
        ends_cpu_s=each(figures.ends_cpu_s),
    )


def _cpu_s(pids: Iterable[int]) -> float:
    """CPU time of processes (proc(5), utime and stime)."""
    ticks = 0
    for pid in pids:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")
