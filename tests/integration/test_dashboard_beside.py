"""A dashboard beside what it shows: `porthole up --dashboard` and `porthole demo --dashboard`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from services.cli.exit_codes import OK, UNREACHABLE, USAGE
from tests.support.command import CALL_S, PORTHOLE, Porthole
from tests.support.dashboard import DashboardApi

if TYPE_CHECKING:
    from pathlib import Path

SEEN = re.compile(r"seen at (http://\S+)/")


def verdicts(answer: Any) -> list[str]:
    return [row["verdict"] for row in answer["vms"]]


@pytest.fixture
def variables(tmp_path: Path) -> dict[str, str]:
    """A dashboard's settings, which no other has."""
    return {
        "PORTHOLE_DASHBOARD_LISTEN": "127.0.0.1:0",
        "PORTHOLE_DASHBOARD_DATABASE": str(tmp_path / "dashboard.sqlite"),
        "PORTHOLE_DASHBOARD_SETTLE_S": "1",
    }


@pytest.fixture
def porthole(run_dir: Path, variables: dict[str, str]) -> Porthole:
    command = Porthole(run_dir)
    command.environment |= variables
    return command


def test_what_is_done_with_the_services_is_seen_on_their_page(porthole: Porthole) -> None:
    process = porthole.up("--dashboard")
    assert process.stdout is not None
    said = ""
    while not (seen := SEEN.search(said)):
        line = process.stdout.readline()
        assert line, said
        said += line
    sent = re.search(r"export PORTHOLE_OTLP_ENDPOINT=(\S+)\n", said)
    assert sent, said
    porthole.environment["PORTHOLE_OTLP_ENDPOINT"] = sent[1]
    dashboard = DashboardApi(seen[1])
    try:
        vm_id = porthole.run("vm", "create", "--kind", "wslc").stdout.strip()
        porthole.run("session", "apply", vm_id)
        [row] = dashboard.wait_for(lambda answer: verdicts(answer) == ["valid"])["vms"]
        assert row["vm_id"] == vm_id
        # Commands send as well as services do.
        assert {"porthole-cli", "owner", "guest-init"} <= set(row["services"])
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=CALL_S)
    assert process.returncode == OK, errors
    assert "collector" not in errors, "it outlives all that send to it"
    # The ports of OTLP are left to whoever has them.
    [addresses] = re.findall(r"porthole dashboard ready on (.+)", errors)
    assert [each[:5] for each in addresses.split(", ")] == ["http:", "unix:", "unix:"]


def test_traces_that_go_elsewhere_are_not_seen_on_a_page(porthole: Porthole) -> None:
    porthole.environment["PORTHOLE_OTLP_ENDPOINT"] = "127.0.0.1:4317"
    for command in ("up", "demo"):
        errors = porthole.run(command, "--dashboard", code=USAGE).stderr
        assert "PORTHOLE_OTLP_ENDPOINT=127.0.0.1:4317" in errors
        assert "--dashboard" in errors


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_page_that_cannot_be_served_is_an_error_that_says_where(
    porthole: Porthole, tmp_path: Path, command: str
) -> None:
    flags = ["--out", str(tmp_path / "out")] if command == "demo" else []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        porthole.environment["PORTHOLE_DASHBOARD_LISTEN"] = address
        result = porthole.run(command, "--dashboard", *flags, code=UNREACHABLE)
    assert f"cannot listen on {address}" in result.stderr


def test_the_demonstration_is_seen_until_an_interrupt(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(70_000))
    process = subprocess.Popen(
        [*PORTHOLE, "demo", "--dashboard", "--tree", str(tree), "--out", str(out)],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "still seen" not in said and (line := process.stderr.readline()):
        said += line
    seen = SEEN.search(said)
    assert seen, said
    try:
        # The page is outside of the namespaces in which the VMs are.
        dashboard = DashboardApi(seen[1])
        dashboard.wait_for(lambda answer: verdicts(answer) == ["valid"] * 3)
    finally:
        process.send_signal(signal.SIGINT)
        result, errors = process.communicate(timeout=CALL_S)
    assert process.returncode == OK, errors
    assert "handshake: valid" in result
    assert sorted(path.name for path in out.iterdir()) == [
        ".porthole-demo",
        "report.json",
        "trace.jsonl",
    ]
    with pytest.raises(OSError, match="refused"):
        dashboard.get("/vms")
