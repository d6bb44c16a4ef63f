"""How a guest starts its init."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from services.handshake.errors import DeadlineExceededError, UnavailableError
from services.simguest import guest_init
from services.simguest.guest_init import GuestInitProcess, InitBoot


@pytest.mark.parametrize("owner", ["", "unix:/run/init.sock"])
def test_guest_init_reports_to_nobody_unless_it_is_to(owner: str) -> None:
    boot = InitBoot(Path("/pool"), Path("/cmdline"), "6.18", "unix:/init.sock", owner, ("--quiet",))
    expected = [
        *("--publish-dir=/pool", "--cmdline-file=/cmdline", "--kernel-release=6.18"),
        *("--listen=unix:/init.sock", "--quiet"),
    ]
    assert boot.flags() == [*expected, *([f"--owner={owner}"] if owner else [])]


async def test_guest_init_gets_no_variable_that_is_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "environment"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nenv > {written}\necho ready\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("PORTHOLE_OWNER", "127.0.0.1:1")
    monkeypatch.setenv("OTHER", "kept")
    boot = InitBoot(Path("/pool"), Path("/cmdline"), "6.18", "unix:/init.sock", "", ())
    process = await GuestInitProcess.start(boot)
    await asyncio.wait_for(process._watch, 20)
    await process.end()
    assert "OTHER=kept" in written.read_text().splitlines()
    assert "PORTHOLE_" not in written.read_text()


def boot_in(run_dir: Path) -> InitBoot:
    address = f"unix:{run_dir}/guest-init.sock"
    return InitBoot(run_dir, run_dir / "cmdline", "6.18.26.3", address, "", ())


def children() -> set[str]:
    path = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children")
    return set(path.read_text("ascii").split())


async def test_a_guest_init_that_is_started_serves(run_dir: Path) -> None:
    process = await GuestInitProcess.start(boot_in(run_dir))
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(run_dir / "guest-init.sock"))
    finally:
        await process.end()


async def test_one_that_ends_before_it_serves_is_noticed_at_once(run_dir: Path) -> None:
    before = children()
    (run_dir / "guest-init.sock").write_text("not a socket")
    with pytest.raises(UnavailableError, match=r"status 1 before it served at unix:") as ended:
        await GuestInitProcess.start(boot_in(run_dir))
    assert ended.value.reason == "GUEST_INIT_ENDED"
    assert children() == before


async def test_one_that_never_serves_is_ended(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = children()
    monkeypatch.setattr(guest_init, "READY_DEADLINE_S", 0.01)
    with pytest.raises(DeadlineExceededError, match=r"at unix:.* after 0\.01 s") as late:
        await GuestInitProcess.start(boot_in(run_dir))
    assert late.value.reason == "GUEST_INIT_NOT_READY"
    assert children() == before
