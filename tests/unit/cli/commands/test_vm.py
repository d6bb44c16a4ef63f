"""`porthole vm create`: which machine is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from services.cli.commands.vm import _qemu
from services.cli.requests import QemuRequest


def test_an_address_is_no_linux_guest() -> None:
    assert _qemu("unix:/run/m.sock", "6.1.0", "", QemuRequest(), None) is None
    assert _qemu("", "", "", QemuRequest(), publishes_pool=False) is None


def test_a_linux_guest_has_files_that_the_owner_finds_too() -> None:
    assert _qemu("qemu", "", "", QemuRequest(), None) == QemuRequest()
    asked = _qemu("qemu", "vmlinux", "/i", QemuRequest(cpus=2, isolation="strict"), None)
    assert asked == QemuRequest(str(Path.cwd() / "vmlinux"), "/i", 2, "strict")


@pytest.mark.parametrize(
    ("machine", "initramfs", "rest", "publishes"),
    [
        ("", "/i", QemuRequest(), None),
        ("", "", QemuRequest(cpus=2), None),
        ("", "", QemuRequest(isolation="strict"), None),
        ("qemu", "", QemuRequest(), True),
    ],
)
def test_what_the_machine_does_not_have_is_refused(
    machine: str, initramfs: str, rest: QemuRequest, publishes: bool | None
) -> None:
    with pytest.raises(typer.BadParameter):
        _qemu(machine, "", initramfs, rest, publishes)
