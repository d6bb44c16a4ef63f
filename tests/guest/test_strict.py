"""The strict form of the kernel's parameter: pools where they are wanted, one for each device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.handshake.pool import Gpa, SwiotlbPool, format_token
from tests.support.linux_guest import own_kernel
from tests.support.linux_user import exercise
from tests.support.qemu_guest import RAM_NAME, booted
from tests.support.standalone import fs, running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.guest_kernel

MIB = 1 << 20
FIRST = SwiotlbPool(Gpa(0x8000000), 4 * MIB)
SECOND = SwiotlbPool(Gpa(0x8400000), 6 * MIB)
PORTS = tuple(
    text
    for number in range(3)
    for text in ("-device", f"pcie-root-port,id=port{number},chassis={number + 1},slot={number}")
)
"""Devices behind them are 0000:01:00.0, 0000:02:00.0 and 0000:03:00.0."""
FILES = "cat /sys/bus/virtio/swiotlb_base /sys/bus/virtio/swiotlb_size"


def placed(pool: SwiotlbPool, device: str = "") -> str:
    return f"{pool.size_bytes}@{pool.base:#x}" + (f"/{device}" if device else "")


def test_each_device_has_its_own_pool_with_its_rings_in_it(
    run_dir: Path, shared_tree: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pools = f"{placed(FIRST, '0000:01:00.0')},{placed(SECOND, '0000:02:00.0')}"
    inside = ("--rings=inside", f"--{format_token(FIRST)}")
    other_inside = ("--rings=inside", f"--{format_token(SECOND)}")
    at = [f"--socket-path={run_dir}/{number}.sock" for number in range(3)]
    with (
        booted(
            run_dir,
            *PORTS,
            kernel=own_kernel(),
            kernel_arguments=f"hv_pci_swiotlb={pools}",
        ) as guest,
        running(*fs(run_dir, shared_tree, at[0], *inside)) as first,
        running(*fs(run_dir, other, at[1], *other_inside)) as second,
        running(*fs(run_dir, other, at[2], "--memory=windows")) as third,
    ):
        assert guest.run(FILES) == f"{FIRST.base:#x}\n{10 * MIB}\n"
        guest.plug(first.socket_path, "first", port="port0")
        guest.plug(second.socket_path, "second", port="port1")
        guest.run("mkdir /first /second && mount -t virtiofs second /second")
        guest.run("mount -t virtiofs first /mnt && mount -t debugfs none /sys/kernel/debug")
        exercise(guest, shared_tree)
        guest.run("cp -a /mnt/tree /second/ && umount /second && mount -t virtiofs second /second")
        assert guest.run("cat /second/tree/large | sha256sum") == guest.run(
            "cat /mnt/tree/large | sha256sum"
        )
        assert first.mapped_bytes(RAM_NAME) == FIRST.size_bytes
        assert second.mapped_bytes(RAM_NAME) == SECOND.size_bytes
        for device in ("0000:01:00.0", "0000:02:00.0"):
            used = f"cat /sys/kernel/debug/swiotlb/virtio-{device}/io_tlb_used_hiwater"
            assert int(guest.run(used)) > 0

        # The third device has no pool: its driver does not get it.
        guest.plug(third.socket_path, "third", port="port2")
        assert guest.attempt("mount -t virtiofs third /first")[0] != 0
        refused = "refused: hv_pci_swiotlb= has no pool for 0000:03:00.0"
        assert guest.run(f"dmesg | grep -c '{refused}'") == "1\n"
        guest.run("umount /mnt && umount /second")
        guest.power_off()
        for device_process in (first, second):
            code, log = device_process.end()
            assert code == 0, log


def test_a_pool_without_a_device_is_that_of_all_others(run_dir: Path, shared_tree: Path) -> None:
    pools = f"{placed(FIRST, '0000:07:00.0')},{placed(SECOND)}"
    flags = ("--rings=inside", f"--{format_token(SECOND)}")
    with (
        booted(
            run_dir, *PORTS, kernel=own_kernel(), kernel_arguments=f"hv_pci_swiotlb={pools}"
        ) as guest,
        running(*fs(run_dir, shared_tree, *flags)) as device,
    ):
        guest.plug(device.socket_path, "data")
        guest.run("mount -t virtiofs data /mnt && ls /mnt/tree")
        guest.run("umount /mnt")
        guest.power_off()
        code, log = device.end()
        assert code == 0, log


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        ("4M@", "lacks a base"),
        ("4M@0x8000000/", "has a device whose name is empty or too long"),
        ("4M@0x8000000x", "is not <size>@<base>[/<device>],..."),
        ("4M@0x8000000,", "is not <size>@<base>[/<device>],..."),
        ("3M@0x8000000", "has a size or base that is no multiple of 2 MiB"),
        ("4M@0x8000000,4M@0x9000000", "has pools that do not follow each other"),
        ("4M@0x100000000", "is not below 4 GiB"),
        ("4M@0xffe00000", "is not below 4 GiB"),
        ("16M@0", "is where the kernel has something already"),
        ("4M@0x40000000", "it is not all memory"),
    ],
)
def test_what_cannot_be_placed_is_a_warning_and_every_device_is_refused(
    run_dir: Path, shared_tree: Path, asked: str, warning: str
) -> None:
    with (
        booted(
            run_dir, *PORTS, kernel=own_kernel(), kernel_arguments=f"hv_pci_swiotlb={asked}"
        ) as guest,
        running(*fs(run_dir, shared_tree, "--memory=windows")) as device,
    ):
        assert guest.attempt(FILES)[0] != 0
        said = [line for line in guest.run("dmesg").splitlines() if "virtio_swiotlb: " in line]
        assert len(said) == 1
        assert warning in said[0]
        guest.plug(device.socket_path, "data")
        assert guest.attempt("mount -t virtiofs data /mnt")[0] != 0
        assert "has no pool for 0000:01:00.0" in guest.run("dmesg")
        guest.power_off()
