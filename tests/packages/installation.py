"""Installs the wheels into environments of their own, and uses what is installed.

The checkout must not be imported by mistake: tests run on a copy without the packages.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
CLIENT: Final = REPOSITORY / "clients" / "python"
SCRATCH: Final = REPOSITORY / "build" / "packages"
_BIN: Final = Path(sys.executable).parent
_TEST_TOOLS: Final = ("hypothesis", "pytest", "pytest-asyncio")
_TESTS: Final = ("tests/unit/client", "tests/unit/rpc", "tests/contract/test_compatibility.py")
_COPIED: Final = ("tests", "pyproject.toml")
_STEP_S: Final = 300.0
_IMPORT_ALL: Final = """
import importlib, pkgutil, porthole
names = [each.name for each in pkgutil.walk_packages(porthole.__path__, "porthole.")]
assert "porthole.vmowner.v1.vm_owner_pb2_grpc" in names, names
for name in names:
    if not name.startswith("porthole.testing."):
        importlib.import_module(name)
"""
_USE_PLUGIN: Final = """
import pytest
def test_it(porthole_traces):
    with pytest.raises(AssertionError, match="no VM has booted"):
        porthole_traces.assert_valid(wait_s=0)
"""


def build_wheels() -> list[Path]:
    """Build the wheels of the checkout: that of the client, and then that of the services."""
    target = SCRATCH / "wheel"
    shutil.rmtree(target, ignore_errors=True)
    flags = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
    sources = (CLIENT, REPOSITORY)
    _run(sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", target, *sources)
    [client] = target.glob("porthole_client-*.whl")
    [services] = target.glob("porthole-*.whl")
    return [client, services]


def install(wheels: list[Path], name: str, python: Path, lock: str) -> Path:
    """Make an environment with the wheels, a lock's versions, and what runs tests.

    Args:
        wheels: From `build_wheels`.
        name: The environment's folder below build/packages; it is emptied first.
        python: The interpreter.
        lock: A lock in the root of the checkout.

    Returns:
        The environment's folder of programs.
    """
    environment = SCRATCH / name
    _run(_BIN / "uv", "venv", "--quiet", "--clear", "--python", python, environment)
    pip = (_BIN / "uv", "pip", "install", "--quiet", "--python", environment / "bin" / "python")
    _run(*pip, "--require-hashes", "--requirement", REPOSITORY / lock)
    _run(*pip, "--no-deps", *wheels)
    _run(*pip, *_pinned(_TEST_TOOLS))
    return environment / "bin"


def use_client_alone(wheel: Path, python: Path) -> None:
    """Import every module of the client, beside nothing but the lowest versions that it allows.

    Then use its pytest plugin, beside nothing but the lowest versions that the extra allows.

    Args:
        wheel: That of the client.
        python: The interpreter.
    """
    environment = SCRATCH / "client"
    _run(_BIN / "uv", "venv", "--quiet", "--clear", "--python", python, environment)
    pip = (_BIN / "uv", "pip", "install", "--quiet", "--python", environment / "bin" / "python")
    # What a wheel needs is not direct, unless it is named as well.
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    lowest = (*pip, "--resolution", "lowest-direct", *project["dependencies"])
    _run(*lowest, wheel)
    installed = (environment / "bin" / "python", "-W", "error")
    _run(*installed, "-c", _IMPORT_ALL, cwd=SCRATCH)
    extra = project["optional-dependencies"]["pytest"]
    _run(*lowest, *extra, f"porthole-client[pytest] @ {wheel.as_uri()}")
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        (Path(scratch) / "pytest.ini").write_text("[pytest]\n")
        (Path(scratch) / "test_it.py").write_text(_USE_PLUGIN)
        _run(*installed, "-m", "pytest", "--quiet", cwd=Path(scratch))


def run_tests(programs: Path) -> None:
    """Run the tests of the wire with what is installed; warnings are errors, as they always are."""
    with tempfile.TemporaryDirectory(dir=SCRATCH) as scratch:
        for name in _COPIED:
            source = REPOSITORY / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, Path(scratch) / name)
        pytest = (programs / "python", "-m", "pytest", "--quiet", "-p", "no:cacheprovider")
        _run(*pytest, *_TESTS, cwd=Path(scratch))


def use_command(programs: Path) -> None:
    """Use the command as README says: up, a VM, and the verdict on its trace."""
    with tempfile.TemporaryDirectory(prefix="ph-", dir="/tmp") as scratch:
        trace = Path(scratch) / "trace.jsonl"
        porthole = (programs / "porthole", "--run-dir", scratch, "--trace-file", trace)
        _run(programs / "porthole", "--help", cwd=Path(scratch))
        with subprocess.Popen(
            [*map(str, porthole), "up"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as up:
            try:
                vm_id = _run(*porthole, "--wait", "60", "vm", "create", "--kind", "wsl2").strip()
                listed = json.loads(_run(*porthole, "vm", "list", "--json"))
                if vm_id not in json.dumps(listed):
                    raise SystemExit(f"{programs}: VM {vm_id} is not in the list: {listed}")
                _run(*porthole, "vm", "terminate", vm_id)
            finally:
                up.terminate()
                _, said = up.communicate(timeout=_STEP_S)
        if up.returncode:
            raise SystemExit(f"{programs}: porthole up ended with {up.returncode}: {said}")
        _run(programs / "porthole", "handshake", "verify", trace, cwd=Path(scratch))


def _run(*command: object, cwd: Path = REPOSITORY) -> str:
    """Run a command; return its output, or end this program with it when it fails."""
    result = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=_STEP_S,
        check=False,
    )
    if result.returncode or "Traceback" in result.stderr:
        text = f"{result.stdout}{result.stderr}"
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{text}")
    return result.stdout


def _pinned(names: tuple[str, ...]) -> list[str]:
    """Return the requirements of the development lock for some packages, without hashes."""
    lines = (REPOSITORY / "requirements-dev.lock").read_text().splitlines()
    pins = [line.split()[0] for line in lines if "==" in line and not line.startswith(" ")]
    return [pin for pin in pins if pin.split("==")[0] in names]


def lower_bounds(project: Path) -> dict[str, str]:
    """Return the lower bound of each direct dependency of a pyproject.toml, by name.

    A dependency that is pinned, as the services pin the client, has none.
    """
    dependencies = tomllib.loads(project.read_text())["project"]["dependencies"]
    return dict(each.split(">=") for each in dependencies if ">=" in each)
