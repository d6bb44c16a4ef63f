"""How a guest starts its init."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

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
    program.write_text(f"#!/bin/sh\nenv > {written}\n")
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
