"""The guest's kernel of `make kernel`: the pool that it makes, publishes and has devices use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.linux_guest import own_kernel
from tests.support.qemu_guest import booted

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.qemu_guest import QemuGuest

pytestmark = pytest.mark.guest_kernel

MIB = 1 << 20
BASE = "/sys/bus/virtio/swiotlb_base"
SIZE = "/sys/bus/virtio/swiotlb_size"


@dataclass(frozen=True)
class LoggedPool:
    base: int
    size_bytes: int
    areas: int


def boot(
    run_dir: Path, *arguments: str, pool: str, cpus: int = 1
) -> AbstractContextManager[QemuGuest]:
    return booted(run_dir, *arguments, kernel=own_kernel(), kernel_arguments=pool, cpus=cpus)


def logged(guest: QemuGuest) -> LoggedPool:
    """Return the pool in the kernel's log."""
    found = re.search(
        r"virtio_swiotlb: pool \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\], (\d+) bytes, (\d+) areas",
        guest.run("dmesg"),
    )
    assert found
    base, last = (int(text, 16) for text in found.groups()[:2])
    assert last - base + 1 == int(found[3])
    return LoggedPool(base, int(found[3]), int(found[4]))


def swiotlb(guest: QemuGuest, name: str) -> int:
    """Return a number that swiotlb shows of the pool, in debugfs."""
    return int(guest.run(f"cat /sys/kernel/debug/swiotlb/virtio/{name}"))


def warnings(guest: QemuGuest) -> list[str]:
    lines = guest.run("dmesg -r").splitlines()
    return [line for line in lines if re.match(r"<[0-4]>.*swiotlb", line)]


@pytest.mark.parametrize(
    ("asked", "size_mib", "cpus", "areas"),
    [
        ("1", 2, 2, 2),
        ("64M", 64, 2, 2),
        ("65M", 66, 2, 2),
        ("2M", 2, 9, 8),
        ("6M", 6, 9, 8),
        ("64M", 64, 9, 16),
    ],
)
def test_the_pool_is_what_the_kernel_logs_and_publishes(
    run_dir: Path, asked: str, size_mib: int, cpus: int, areas: int
) -> None:
    with boot(run_dir, pool=f"hv_pci_swiotlb={asked}", cpus=cpus) as guest:
        pool = logged(guest)
        assert guest.run(f"cat {BASE} {SIZE}") == f"{pool.base:#x}\n{pool.size_bytes}\n"
        assert (pool.size_bytes, pool.areas) == (size_mib * MIB, areas)
        assert pool.base % (2 * MIB) == 0
        assert pool.base + pool.size_bytes <= 1 << 32
        guest.run("mount -t debugfs none /sys/kernel/debug")
        assert swiotlb(guest, "io_tlb_nslabs") == pool.size_bytes // 2048
        assert warnings(guest) == []
        guest.power_off()


def test_without_the_parameter_there_is_nothing(run_dir: Path) -> None:
    with boot(run_dir, pool="") as guest:
        assert guest.attempt(f"ls {BASE} {SIZE}")[0] != 0
        assert "virtio_swiotlb" not in guest.run("dmesg")
        guest.power_off()


@pytest.mark.parametrize(
    ("asked", "warning"),
    [
        ("1G", "no pool of 1073741824 bytes: there are not as many contiguous bytes below 4 GiB"),
        ("5G", "no pool of 5368709120 bytes: there are not as many bytes below 4 GiB"),
        ("64X", "hv_pci_swiotlb=64X is not a size"),
        ("", "hv_pci_swiotlb= is not a size"),
        ("nothing", "hv_pci_swiotlb=nothing is not a size"),
    ],
)
def test_what_cannot_be_is_a_warning_and_no_pool(run_dir: Path, asked: str, warning: str) -> None:
    with boot(run_dir, pool=f"hv_pci_swiotlb={asked}") as guest:
        assert guest.attempt(f"ls {BASE} {SIZE}")[0] != 0
        (said,) = warnings(guest)
        assert warning in said
        guest.power_off()
