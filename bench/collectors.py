"""`python -m bench.collectors`: what a bad collector costs whoever creates and ends a VM.

Owns the collectors that are compared, and the measurement. Each round has one VM of every house:
services without a collector, and with one that is dead (connections are refused), silent (they are
taken, and nothing is said), mute (every export is taken, and none is answered) or slow (answers
come after SLOW_S). All houses take a step one after the other, in an order that turns, before the
next step. A figure is divided by that of the house without a collector in the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from bench.machine import describe
from bench.ratios import Spread, paired, spread
from services.cli.launcher import Services

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

SLOW_S: Final = 3.0
"""Seconds after which a slow collector answers."""

LIFE_S: Final = 2.0
"""How long VMs live at least; an export has been tried by then."""

LIMIT: Final = 1.1
"""The most that a collector may cost: this many times what it takes without one."""

NONE: Final = "none"
STEPS: Final = ("vm create", "vm terminate")
"""The commands that are measured, from the start of the process to its end."""

_CLI: Final = (sys.executable, "-m", "services.cli.main")
_LARGEST_S: Final = 60.0


class _Answering:
    """A collector that answers after a time.

    Args:
        after: Awaited before each answer.
    """

    def __init__(self, after: Callable[[], Awaitable[object]]) -> None:
        self._after = after

    async def Export(self, request: Any, _: object) -> Any:  # noqa: N802 - gRPC's name
        """Take spans, metrics or logs, and forget them."""
        await self._after()
        if isinstance(request, trace_service_pb2.ExportTraceServiceRequest):
            return trace_service_pb2.ExportTraceServiceResponse()
        if isinstance(request, logs_service_pb2.ExportLogsServiceRequest):
            return logs_service_pb2.ExportLogsServiceResponse()
        return metrics_service_pb2.ExportMetricsServiceResponse()


@contextlib.asynccontextmanager
async def _answering(after: Callable[[], Awaitable[object]]) -> AsyncIterator[str]:
    server = grpc.aio.server()
    for add in (
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server,
        metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server,
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server,
    ):
        cast("Any", add)(_Answering(after), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def _dead() -> AsyncIterator[str]:
    with socket.socket() as taken:  # nobody else gets the port, and nobody listens there
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@contextlib.asynccontextmanager
async def _silent() -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@contextlib.asynccontextmanager
async def _none() -> AsyncIterator[str]:
    yield ""


async def _never() -> None:
    await asyncio.Event().wait()


COLLECTORS: Final[Mapping[str, Callable[[], contextlib.AbstractAsyncContextManager[str]]]] = {
    NONE: _none,
    "dead": _dead,
    "silent": _silent,
    "mute": lambda: _answering(_never),
    "slow": lambda: _answering(lambda: asyncio.sleep(SLOW_S)),
}


@dataclass(frozen=True, slots=True)
class House:
    """Services that run, the environment of a command that calls them, and what VMs share."""

    environment: Mapping[str, str]
    shared: Path

    async def time(self, *arguments: str) -> tuple[float, str]:
        """Run a command; return how long it took in seconds, and its output.

        Raises:
            OSError: It failed.
        """
        began_s = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *_CLI,
            *arguments,
            env=dict(self.environment),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), _LARGEST_S)
        took_s = time.monotonic() - began_s
        if process.returncode:
            raise OSError(f"{' '.join(arguments)} failed: {errors.decode()}")
        return took_s, output.decode()

    async def create(self) -> tuple[float, str]:
        """Create a VM; return the seconds that it took, and its id."""
        took_s, output = await self.time("vm", "create", "--json")
        return took_s, str(json.loads(output)["vm_id"])

    async def share(self, vm_id: str) -> None:
        """Add a share, which the VM has until its end."""
        await self.time("share", "add", vm_id, str(self.shared))

    async def terminate(self, vm_id: str) -> float:
        """End a VM; return the seconds that it took."""
        took_s, _ = await self.time("vm", "terminate", vm_id)
        return took_s


@contextlib.asynccontextmanager
async def _house(name: str, run_dir: Path) -> AsyncIterator[House]:
    async with COLLECTORS[name]() as endpoint:
        environment = {**os.environ, "PORTHOLE_RUN_DIR": str(run_dir)}
        for inherited in [key for key in environment if key.startswith("OTEL_")]:
            del environment[inherited]
        environment["PORTHOLE_OTLP_ENDPOINT"] = endpoint
        shared = run_dir / "shared"
        shared.mkdir()
        log = (run_dir / "services.log").open("w")
        with log:

            def write(service: str, line: str) -> None:
                print(f"{service}: {line}", file=log, flush=True)

            async with Services(run_dir, environment, write):
                yield House(environment, shared)


async def measure(names: Sequence[str], rounds: int) -> list[dict[str, dict[str, float]]]:
    """Measure in rounds.

    Args:
        names: Keys of COLLECTORS, NONE among them.
        rounds: Number of rounds; one more comes before, which does not count.

    Returns:
        The seconds of each step by name, for each round.
    """
    found = []
    async with contextlib.AsyncExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="ph-bench-"))
        houses = {}
        for name in names:
            run_dir = Path(directory) / name
            run_dir.mkdir(mode=0o700)
            houses[name] = await stack.enter_async_context(_house(name, run_dir))
        for number in range(rounds + 1):
            turn = number % len(names)
            order = [*names[turn:], *names[:turn]]
            created = {name: await houses[name].create() for name in order}
            for name, (_, vm_id) in created.items():
                await houses[name].share(vm_id)
            await asyncio.sleep(LIFE_S)
            times = {
                name: dict(zip(STEPS, (took_s, await houses[name].terminate(vm_id)), strict=True))
                for name, (took_s, vm_id) in created.items()
            }
            if number:
                found.append(times)
                print(f"round {number}: {_line(times)}", file=sys.stderr, flush=True)
    return found


def _line(times: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{name} {steps[STEPS[-1]]:.2f} s" for name, steps in sorted(times.items()))


def table(
    found: Sequence[Mapping[str, Mapping[str, float]]],
) -> list[tuple[str, str, Spread, Spread]]:
    """Return the rows of the report: step, collector, seconds, and ratio to none.

    Args:
        found: As of `measure`.
    """
    rows = []
    for step in STEPS:
        rounds = [{name: steps[step] for name, steps in times.items()} for times in found]
        for name in rounds[0]:
            ratios = paired(rounds, name, (NONE,))
            rows.append((step, name, spread([times[name] for times in rounds]), spread(ratios)))
    return rows


def main() -> None:
    """Measure, print a table, and exit with 1 when a median is over the limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.collectors", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--collectors", nargs="+", choices=sorted(COLLECTORS), default=None)
    given = parser.parse_args()
    names = list(dict.fromkeys([NONE, *(given.collectors or COLLECTORS)]))
    where = describe()
    rows = table(asyncio.run(measure(names, given.rounds)))
    print(f"{where.date}, {where.cpu}, {where.cpus} CPUs, load {where.load:.2f}, ", end="")
    print(f"{given.rounds} rounds; median (10th-90th percentile)\n")
    print("| command | collector | seconds | times none | |\n|---|---|---|---|---|")
    late = False
    for step, name, seconds, ratio in rows:
        over = ratio.median > LIMIT
        late = late or over
        print(f"| `{step}` | {name} | {seconds} | {ratio} | {'over the limit' if over else 'ok'} |")
    raise SystemExit(1 if late else 0)


if __name__ == "__main__":
    main()
