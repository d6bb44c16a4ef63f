"""`porthole vm create`: which machine is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from services.cli.commands.vm import _qemu
from services.cli.requests import QemuRequest


def test_an_address_is_no_linux_guest() -> None:
    assert _qemu("unix:/run/m.sock", "6.1.0", "", 0, None) is None
    assert _qemu("", "", "", 0, publishes_pool=False) is None


def test_a_linux_guest_has_files_that_the_owner_finds_too() -> None:
    assert _qemu("qemu", "", "", 0, None) == QemuRequest()
    asked = _qemu("qemu", "vmlinux", "/i", 2, None)
    assert asked == QemuRequest(str(Path.cwd() / "vmlinux"), "/i", 2)


@pytest.mark.parametrize(
    ("machine", "initramfs", "cpus", "publishes"),
    [("", "/i", 0, None), ("", "", 2, None), ("qemu", "", 0, True)],
)
def test_what_the_machine_does_not_have_is_refused(
    machine: str, initramfs: str, cpus: int, publishes: bool | None
) -> None:
    with pytest.raises(typer.BadParameter):
        _qemu(machine, "", initramfs, cpus, publishes)
