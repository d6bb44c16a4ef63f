from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from typer.testing import CliRunner

from services.cli.exit_codes import OK, UNREACHABLE
from services.cli.main import app

if TYPE_CHECKING:
    from pathlib import Path


RUNNER = CliRunner()


def test_health_of_nobody_is_unreachable(run_dir: Path) -> None:
    result = RUNNER.invoke(app, ["--wait", "0.1", "health", f"unix:{run_dir}/no.sock"])
    assert result.exit_code == UNREACHABLE
    assert len(result.stderr.splitlines()) == 1


def test_health_waits_for_a_service_that_is_not_up_yet(run_dir: Path) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = HealthServicer()
    servicer.set("", HealthCheckResponse.SERVING)
    add_HealthServicer_to_server(servicer, server)

    def start() -> None:
        server.add_insecure_port(f"unix:{run_dir}/late.sock")  # listens at once
        server.start()

    starts = threading.Timer(0.5, start)
    starts.start()
    try:
        result = RUNNER.invoke(app, ["--wait", "30", "health", f"unix:{run_dir}/late.sock"])
    finally:
        starts.join()
        server.stop(None).wait()
    assert (result.exit_code, result.stdout) == (OK, "SERVING\n"), result.stderr
