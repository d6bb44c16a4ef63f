"""The search for QEMU: found, too old, something else, nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import FailedPreconditionError
from services.vm_owner.machines.qemu import image, installation
from services.vm_owner.machines.qemu.architecture import ARM64, X86_64, host_architecture
from services.vm_owner.machines.qemu.image import find_image
from services.vm_owner.machines.qemu.installation import (
    Accelerator,
    choose_accelerator,
    find_qemu,
)

if TYPE_CHECKING:
    from pathlib import Path


def program(directory: Path, says: str) -> str:
    path = directory / "qemu"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


async def test_the_version_is_what_it_says(tmp_path: Path) -> None:
    path = program(tmp_path, "QEMU emulator version 10.0.8 (Debian 1:10.0.8+ds-0)")
    found = await find_qemu(X86_64, path)
    assert (found.binary, found.version) == (path, (10, 0))


@pytest.mark.parametrize(
    ("says", "reason", "words"),
    [
        ("QEMU emulator version 6.1.0", "QEMU_TOO_OLD", r"6\.1; 7\.2"),
        ("busybox", "QEMU_NOT_FOUND", "does not answer as QEMU"),
    ],
)
async def test_another_program_is_refused(
    tmp_path: Path, says: str, reason: str, words: str
) -> None:
    with pytest.raises(FailedPreconditionError, match=words) as refused:
        await find_qemu(X86_64, program(tmp_path, says))
    assert refused.value.reason == reason


async def test_a_host_without_qemu_is_told_the_package() -> None:
    with pytest.raises(FailedPreconditionError, match="qemu-system-x86") as refused:
        await find_qemu(X86_64, "/nowhere/qemu")
    assert refused.value.reason == "QEMU_NOT_FOUND"


def test_without_rights_on_kvm_guests_are_emulated_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(installation, "_KVM", str(tmp_path / "kvm"))
    caplog.set_level("INFO")
    here = host_architecture()
    assert choose_accelerator(None, here) is Accelerator.TCG
    (tmp_path / "kvm").touch()  # no such device answers
    assert choose_accelerator(None, here) is Accelerator.TCG
    assert choose_accelerator(Accelerator.KVM, here) is Accelerator.KVM
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        "guests run by emulation (TCG), which is slower than KVM"
    ] * 2


def test_a_guest_of_another_architecture_is_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(installation, "_why_no_kvm", lambda: "")
    caplog.set_level("INFO")
    here = host_architecture()
    other = X86_64 if here is ARM64 else ARM64
    assert choose_accelerator(None, here) is Accelerator.KVM
    assert choose_accelerator(None, other) is Accelerator.TCG
    assert f"the guest is {other.name}, and this host {here.name}" in caplog.text


def test_an_arm64_kernel_has_an_initramfs_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "IMAGES", tmp_path)
    monkeypatch.setattr(image, "INITRAMFS", tmp_path / "x86_64/initramfs")
    monkeypatch.setattr(image, "host_architecture", lambda: X86_64)
    for name in ("x86_64", "arm64"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "initramfs").touch()
    kernel = tmp_path / "Image"
    kernel.write_bytes(bytes(56) + b"ARM\x64" + bytes(4))
    assert find_image(kernel, None) == image.GuestImage(
        kernel, (tmp_path / "arm64/initramfs",), ARM64
    )
    given = tmp_path / "x86_64/initramfs"
    assert find_image(kernel, given).initramfs == (given,)


@pytest.mark.parametrize(
    ("missing", "reason", "command"),
    [
        ("kernel", "GUEST_KERNEL_MISSING", "make kernel"),
        ("initramfs", "GUEST_IMAGE_MISSING", "make guest-image"),
    ],
)
def test_a_missing_file_is_explained(
    tmp_path: Path, missing: str, reason: str, command: str
) -> None:
    for name in {"kernel", "initramfs"} - {missing}:
        (tmp_path / name).touch()
    with pytest.raises(FailedPreconditionError, match=f"make it with `{command}`") as refused:
        find_image(tmp_path / "kernel", tmp_path / "initramfs")
    assert refused.value.reason == reason


def test_without_a_built_kernel_the_fetched_one_is_booted_with_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"KERNEL": "vmlinux", "INITRAMFS": "initramfs", "MODULES": "modules", "FETCHED": ""}
    for constant, name in names.items():
        monkeypatch.setattr(image, constant, tmp_path / name)
    with pytest.raises(FailedPreconditionError, match="make kernel"):
        find_image(None, None)
    fetched = tmp_path / "vmlinuz-6.1.0"
    for path in (fetched, tmp_path / "initramfs", tmp_path / "modules"):
        path.touch()
    archives = (tmp_path / "initramfs", tmp_path / "modules")
    assert find_image(None, None) == image.GuestImage(fetched, archives, X86_64)
    (tmp_path / "vmlinux").touch()
    assert find_image(None, None) == image.GuestImage(tmp_path / "vmlinux", archives[:1], X86_64)
