"""The kernel's part of the handshake: command line, place of the pool, published files."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from services.handshake.pool import Gpa, SwiotlbPool, check_pool
from services.simguest.kernel import (
    IMAGE_END,
    Kernel,
    ordinary_ranges,
    parse_command_line,
    publish_pool,
    reserve_pool,
    wanted_pool_bytes,
    withdraw_pool,
)
from services.simguest.memory.ram import HIGH_RAM_BASE, LOW_RAM_LIMIT, RamRegion

if TYPE_CHECKING:
    from pathlib import Path

NEW = Kernel("6.18.26.3-microsoft-standard-WSL2", publishes_pool=True)
OLD = Kernel("6.6.87.2-microsoft-standard-WSL2", publishes_pool=False)
MIB = 1 << 20


def low(size: int) -> RamRegion:
    return RamRegion(0, size, 0, 0x7000_0000_0000)


def test_the_last_of_several_parameters_wins() -> None:
    parsed = parse_command_line("quiet a=1 swiotlb=force a=2=3 b=")
    assert parsed == {"quiet": "", "a": "2=3", "swiotlb": "force", "b": ""}


@pytest.mark.parametrize(
    ("command_line", "wanted"),
    [
        ("", 0),
        ("swiotlb=force", 0),
        ("swiotlb=force hv_pci_swiotlb=67108864", 64 * MIB),
        ("hv_pci_swiotlb=1", 2 * MIB),
        ("hv_pci_swiotlb=2097153", 4 * MIB),
        ("hv_pci_swiotlb=64M", 64 * MIB),
        ("hv_pci_swiotlb=0x400000", 4 * MIB),
        ("hv_pci_swiotlb=4096k", 4 * MIB),
        ("hv_pci_swiotlb=0", 0),
        ("hv_pci_swiotlb=2M hv_pci_swiotlb=8M", 8 * MIB),
    ],
)
def test_the_size_is_rounded_up_to_2_mib(command_line: str, wanted: int) -> None:
    assert wanted_pool_bytes(command_line) == wanted


@pytest.mark.parametrize("value", ["", "many", "-1", "64MB", "0x", "1.5M", "٣"])
def test_a_value_that_does_not_parse_is_a_kernel_warning(
    value: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert wanted_pool_bytes(f"hv_pci_swiotlb={value}") == 0
    assert f"hv_pci_swiotlb={value} does not parse" in caplog.text


@pytest.mark.parametrize("ram_bytes", [256 * MIB, 1088 * MIB, LOW_RAM_LIMIT, 1000 * MIB + 4096])
def test_the_pool_that_a_kernel_chooses_passes_the_owners_checks(ram_bytes: int) -> None:
    pool = reserve_pool(NEW, "hv_pci_swiotlb=64M", low(ram_bytes))
    assert pool is not None
    assert pool.size_bytes == 64 * MIB
    assert pool.base >= IMAGE_END
    check_pool(pool, ram_bytes)


def test_too_little_ram_is_a_kernel_warning_and_no_pool(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert reserve_pool(NEW, "hv_pci_swiotlb=64M", low(64 * MIB)) is None
    assert "cannot allocate a pool of 67108864 bytes: 50331648 bytes below 4 GiB" in caplog.text


def test_an_old_kernel_ignores_the_parameter(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert reserve_pool(OLD, "hv_pci_swiotlb=garbage", low(256 * MIB)) is None
    assert caplog.text == ""


def test_ordinary_pages_leave_out_image_and_pool() -> None:
    regions = (low(LOW_RAM_LIMIT), RamRegion(HIGH_RAM_BASE, 4096, LOW_RAM_LIMIT, 1))
    assert ordinary_ranges(regions, None) == [
        (IMAGE_END, LOW_RAM_LIMIT),
        (HIGH_RAM_BASE, HIGH_RAM_BASE + 4096),
    ]
    top = SwiotlbPool(Gpa(LOW_RAM_LIMIT - 2 * MIB), 2 * MIB)
    assert ordinary_ranges(regions[:1], top) == [(IMAGE_END, LOW_RAM_LIMIT - 2 * MIB)]
    middle = SwiotlbPool(Gpa(64 * MIB), 2 * MIB)
    assert ordinary_ranges(regions[:1], middle) == [
        (IMAGE_END, 64 * MIB),
        (66 * MIB, LOW_RAM_LIMIT),
    ]


def test_files_are_published_as_the_kernel_writes_them(tmp_path: Path) -> None:
    directory = publish_pool(SwiotlbPool(Gpa(0x3C000000), 64 * MIB), tmp_path)
    assert directory == tmp_path / "sys/bus/vmbus/drivers/hv_pci"
    assert (directory / "swiotlb_base").read_bytes() == b"0x3c000000\n"
    assert (directory / "swiotlb_size").read_bytes() == b"67108864\n"
    assert publish_pool(None, tmp_path) == directory
    assert list(directory.iterdir()) == []


def test_a_pool_is_withdrawn_and_nothing_is_made_for_that(tmp_path: Path) -> None:
    directory = publish_pool(SwiotlbPool(Gpa(0x3C000000), 64 * MIB), tmp_path / "vm")
    withdraw_pool(tmp_path / "vm")
    assert list(directory.iterdir()) == []
    withdraw_pool(tmp_path / "gone")
    assert not (tmp_path / "gone").exists()
