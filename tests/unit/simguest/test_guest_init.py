"""How a guest starts its init."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.simguest.guest_init import InitBoot


@pytest.mark.parametrize("owner", ["", "unix:/run/init.sock"])
def test_guest_init_reports_to_nobody_unless_it_is_to(owner: str) -> None:
    boot = InitBoot(Path("/pool"), Path("/cmdline"), "6.18", "unix:/init.sock", owner, ("--quiet",))
    expected = [
        *("--publish-dir=/pool", "--cmdline-file=/cmdline", "--kernel-release=6.18"),
        *("--listen=unix:/init.sock", "--quiet"),
    ]
    assert boot.flags() == [*expected, *([f"--owner={owner}"] if owner else [])]
