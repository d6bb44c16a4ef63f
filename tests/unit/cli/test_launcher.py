from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from services.cli import launcher
from services.cli.launcher import ServiceProgram, Services
from services.handshake.errors import FailedPreconditionError, UnavailableError

if TYPE_CHECKING:
    from pathlib import Path

# A program with the interface of a service: a ready line, and an end at SIGTERM.
SERVICE = """
import os, signal, sys
def end(*_):
    with open(os.environ["ENDED"], "a") as log:
        log.write("{name}\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("porthole {name} ready on unix:/nowhere", flush=True)
signal.pause()
"""

# A service whose ready line has two of its variables in place of addresses.
ENVIRONMENT = """
import os, signal
listen, owner = (os.environ.get(name) for name in ("PORTHOLE_LISTEN", "PORTHOLE_OWNER"))
print(f"porthole it ready on {listen}, {owner}", flush=True)
signal.pause()
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make two modules that behave like services, for `python -m`."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ENDED", str(tmp_path / "ended"))
    for name in ("first", "second"):
        (tmp_path / f"{name}.py").write_text(SERVICE.format(name=name))
    (tmp_path / "environment.py").write_text(ENVIRONMENT)
    (tmp_path / "broken.py").write_text("import sys; sys.exit('no such device')")
    return tmp_path


def use(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    order = tuple(ServiceProgram(module, module, f"{module}.sock") for module in modules)
    monkeypatch.setattr(launcher, "START_ORDER", order)


def ignore(_service: str, _line: str) -> None:
    """Drop a line of output."""


async def test_services_start_in_order_and_end_the_other_way_round(
    programs: Path, monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    use(monkeypatch, "first", "second")
    lines: list[str] = []
    async with Services(run_dir, {}, lambda name, _: lines.append(name)) as services:
        assert [item.process.returncode for item in services.running] == [None, None]
    assert lines == ["first", "second"]
    assert (programs / "ended").read_text().splitlines() == ["second", "first"]


async def test_a_service_that_cannot_start_is_named_and_the_others_end(
    programs: Path, monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    use(monkeypatch, "first", "broken")
    with pytest.raises(UnavailableError) as caught:
        await Services(run_dir, {}, ignore).__aenter__()
    assert caught.value.reason == "SERVICE_START_FAILED"
    assert "broken ended with status 1" in caught.value.message
    assert "no such device" in caught.value.message
    assert (programs / "ended").read_text().splitlines() == ["first"]


@pytest.mark.usefixtures("programs")
async def test_only_the_service_for_clients_is_to_listen_elsewhere(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    monkeypatch.setenv("PORTHOLE_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("PORTHOLE_OWNER", "127.0.0.1:2")
    order = (
        ServiceProgram("inner", "environment", "inner.sock"),
        ServiceProgram("outer", "environment", "outer.sock", for_clients=True),
    )
    monkeypatch.setattr(launcher, "START_ORDER", order)
    async with Services(run_dir, {}, ignore, ["127.0.0.1:3", f"unix:{run_dir}/outer.sock"]) as it:
        inner, outer = (item.addresses for item in it.running)
        assert it.addresses == outer
    assert inner == ("None", "None")
    assert outer == (f"unix:{run_dir}/outer.sock,127.0.0.1:3", "None")
    async with Services(run_dir, {}, ignore) as it:
        assert it.addresses == ("None", "None")


@pytest.mark.usefixtures("programs")
async def test_one_run_directory_has_one_set_of_services(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    use(monkeypatch, "first")
    async with Services(run_dir, {}, ignore):
        with pytest.raises(FailedPreconditionError) as caught:
            await Services(run_dir, {}, ignore).__aenter__()
        assert caught.value.reason == "RUN_DIR_IN_USE"
    async with Services(run_dir, {}, ignore) as again:
        assert len(again.running) == 1


@pytest.mark.usefixtures("programs")
async def test_a_service_that_ends_by_itself_is_noticed(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    use(monkeypatch, "first", "second")
    async with Services(run_dir, {}, ignore) as services:
        waiting = asyncio.create_task(services.first_to_end())
        services.running[1].process.kill()
        assert (await waiting).program.name == "second"


@pytest.mark.usefixtures("programs")
async def test_services_do_not_get_the_terminals_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, run_dir: Path
) -> None:
    use(monkeypatch, "first")
    async with Services(run_dir, {}, ignore) as services:
        assert os.getpgid(services.running[0].process.pid) != os.getpgid(0)
