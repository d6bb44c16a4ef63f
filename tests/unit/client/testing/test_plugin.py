"""The plugin as pytest finds it: by its entry point, in a project of somebody else."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from services.handshake import events
from tests.support.handshake_traces import VM, change, record, wsl2
from tests.support.trace_formats import otlp_document

if TYPE_CHECKING:
    from pathlib import Path

TEST = """
import os, urllib.request
import pytest

def send(porthole_traces, name):
    with open(name, "rb") as file:
        body = file.read()
    url = porthole_traces.http_endpoint + "/v1/traces"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()

def test_valid(porthole_traces):
    send(porthole_traces, "valid.json")
    porthole_traces.assert_valid()

def test_broken(porthole_traces):
    send(porthole_traces, "broken.json")
    porthole_traces.assert_valid(settle_s=0)

def test_missing(porthole_traces):
    porthole_traces.assert_valid(wait_s=0)

def test_without_the_fixture():
    pass
"""
OTHER = VM[::-1]


def run(folder: Path, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return result.stdout + result.stderr


def test_the_fixture_is_there_by_itself(tmp_path: Path) -> None:
    broken = change(wsl2(), events.APERTURE_CREATED, {events.POOL_BASE: 0x1000})
    (tmp_path / "valid.json").write_text(otlp_document(record(wsl2())))
    (tmp_path / "broken.json").write_text(
        otlp_document(record(broken, "e" * 32)).replace(VM, OTHER)
    )
    (tmp_path / "test_it.py").write_text(TEST)
    command = f"'{sys.executable}' -m services.cli.main"
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nporthole_command = {command}\n")
    said = run(tmp_path, "-rA")
    assert "2 failed, 2 passed" in said
    assert "PASSED test_it.py::test_valid" in said
    assert "PASSED test_it.py::test_without_the_fixture" in said
    assert "E       AssertionError: 1 VM, and its handshake is not valid:" in said
    assert f"{OTHER}: APERTURE_MISMATCH: " in said
    assert "no VM has booted, or no service sends spans to 127.0.0.1:" in said
    # Of the plugin, a failure shows its message and no code.
    assert "traces.py" not in said.replace("_traces.py", "")


def test_what_the_fixture_needs_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(porthole_traces):\n    pass\n")
    (tmp_path / "conftest.py").write_text(
        "import sys\nsys.modules['opentelemetry.proto.collector.trace.v1'] = None\n"
    )
    assert "pip install 'porthole-client[pytest]'" in run(tmp_path)
