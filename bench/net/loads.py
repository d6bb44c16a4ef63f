"""The programs that talk through a network: iperf3, ping, and net_load (bench/front_end/load).

Owns their command lines and what they print. Must not know what is between the two ends.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.net.cases import Direction, Load, NetCase
from bench.net.namespaces import SERVER, Namespaces, NetworkError
from bench.ratios import percentile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NET_LOAD: Final = Path("build/bench/net_load")
PORT: Final = 5201
INTERVAL_S: Final = 0.1
"""How often iperf3 looks at what has arrived."""
STALLED: Final = 0.1
"""Share of the best interval up to which a TCP stream has stalled."""
PING_EVERY_S: Final = 0.002
DEADLINE_S: Final = 20.0
"""Time that a load may take longer than it was told to."""
LEAST_S: Final = 1
"""iperf3 counts in whole seconds, and takes 0 for no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one load found.

    Attributes:
        rate: In the unit of the load; of datagrams those that arrived.
        bits: All that arrived, of loads that go one way.
        p50_us: Median time of one operation; 0 for loads that go one way.
        p99_us: 99th percentile of that time.
        loss: Share of the datagrams or echoes that did not arrive, 0 to 1.
        retransmits: TCP segments that were sent again.
        stalled_s: Time in which a TCP stream, once begun, hardly moved.
        ends_cpu_s: CPU time of both ends, of loads that go one way.
    """

    rate: float
    bits: float = 0.0
    p50_us: float = 0.0
    p99_us: float = 0.0
    loss: float = 0.0
    retransmits: int = 0
    stalled_s: float = 0.0
    ends_cpu_s: float = 0.0


def missing() -> str:
    """Return the program that the loads need and this machine lacks; empty: none."""
    for program in ("ip", "iperf3", "ping", "sysctl"):
        if shutil.which(program) is None:
            return program
    return ""


def whole_seconds(seconds: float) -> int:
    """Return the length nearest to `seconds` that every load can have."""
    return max(LEAST_S, round(seconds))


def run(case: NetCase, namespaces: Namespaces, seconds: float) -> Figures:
    """Run a load once.

    Raises:
        NetworkError: A program failed, or did not come to an end.
    """
    if case.load in (Load.TCP, Load.UDP):
        reading = read_tcp if case.load is Load.TCP else read_udp
        return reading(_iperf3(case, namespaces, whole_seconds(seconds)))
    if case.load is Load.PING:
        count = max(1, int(seconds / PING_EVERY_S))
        options = ("-n", "-i", str(PING_EVERY_S), "-c", str(count), "-s", str(case.bytes))
        return read_ping(_finish(namespaces.in_guest("ping", *options, SERVER), seconds), count)
    program = str(NET_LOAD.absolute())
    place = (SERVER, str(PORT))
    with _serving(namespaces.in_host(program, "serve", *place), "listening"):
        times = (f"{seconds}", f"{seconds / 10}", str(case.streams))
        client = namespaces.in_guest(program, case.load.name.lower(), *place, *times)
        return read_net_load(_finish(client, seconds))


def read_tcp(text: str) -> Figures:
    """Read what iperf3 prints of TCP."""
    found = _parse(text)
    end = found["end"]
    arrived = end["sum_received"]
    return Figures(
        rate=arrived["bits_per_second"] / 1e9,
        bits=8.0 * arrived["bytes"],
        retransmits=end["sum_sent"].get("retransmits", 0),
        stalled_s=stalled_s([each["sum"]["bytes"] for each in found["intervals"]]),
        ends_cpu_s=_ends_cpu_s(end, arrived["seconds"]),
    )


def read_udp(text: str) -> Figures:
    """Read what iperf3 prints of UDP."""
    end = _parse(text)["end"]
    total = end["sum"]
    sent, lost = total["packets"], total["lost_packets"]
    share = (sent - lost) / sent if sent else 0.0
    return Figures(
        rate=(sent - lost) / total["seconds"],
        bits=8.0 * total["bytes"] * share,
        loss=1 - share,
        ends_cpu_s=_ends_cpu_s(end, total["seconds"]),
    )


def read_ping(text: str, count: int) -> Figures:
    """Read what ping prints of `count` echoes.

    Raises:
        NetworkError: None came back.
    """
    times = [1000 * float(ms) for ms in re.findall(r"time=([\d.]+) ms", text)]
    if not times:
        raise NetworkError("no echo came back")
    return Figures(
        rate=1e6 * len(times) / sum(times),
        p50_us=percentile(times, 50),
        p99_us=percentile(times, 99),
        loss=max(0.0, 1 - len(times) / count),
    )


def read_net_load(text: str) -> Figures:
    """Read what net_load prints.

    Raises:
        NetworkError: Nothing was answered in time.
    """
    found = json.loads(text)
    if not found["ops"]:
        raise NetworkError("no request was answered in the measured time")
    return Figures(
        rate=found["ops"] / found["seconds"],
        p50_us=found["p50_ns"] / 1000,
        p99_us=found["p99_ns"] / 1000,
    )


def stalled_s(intervals: Sequence[int]) -> float:
    """Return the time in which hardly anything moved, from the bytes of each INTERVAL_S.

    The first interval is that of the beginning, and the last one may be shorter. The best one is
    what the others are compared with: of a stream that stalls for most of its time, the median is
    that of a stall.
    """
    best = max(intervals, default=0)
    return round(sum(INTERVAL_S for each in intervals[1:-1] if each <= STALLED * best), 3)


def _ends_cpu_s(end: dict[str, Any], seconds: float) -> float:
    percents = end["cpu_utilization_percent"]
    return float(percents["host_total"] + percents["remote_total"]) / 100 * seconds


def _iperf3(case: NetCase, namespaces: Namespaces, seconds: int) -> str:
    # Bound to its address: datagrams are answered from there, whatever way they came.
    place = ("--port", str(PORT), "--forceflush")
    serve = namespaces.in_host("iperf3", "--server", "--one-off", "-4", "--bind", SERVER, *place)
    words = ["iperf3", "--client", SERVER, *place, "--json", "--length", str(case.bytes)]
    words += ["--time", str(seconds), "--interval", str(INTERVAL_S)]
    if case.streams > 1:
        words += ["--parallel", str(case.streams)]
    if case.load is Load.UDP:
        words += ["--udp", "--bitrate", "0"]
    if case.direction is Direction.DOWN:
        words.append("--reverse")
    with _serving(serve, "Server listening"):
        return _finish(namespaces.in_guest(*words), seconds)


def _parse(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    if "error" in found or not found.get("end"):
        raise NetworkError(f"iperf3: {found.get('error', 'no figures')}")
    return found


@contextlib.contextmanager
def _serving(command: Sequence[str], sign: str) -> Iterator[None]:
    """Run a server for as long as this lasts; it accepts connections when it has printed `sign`."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = ""
    try:
        for line in process.stdout or ():
            said += line
            if sign in line:
                break
        else:
            raise NetworkError(f"{command[-1]} does not serve: {said.strip()}")
        yield
    finally:
        process.kill()
        process.communicate()


def _finish(command: Sequence[str], seconds: float) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds + DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        raise NetworkError(f"no end of {' '.join(command[4:])}") from None
    if done.returncode and not done.stdout.strip():
        raise NetworkError(f"{' '.join(command[4:])}: {done.stderr.strip()}")
    return done.stdout
