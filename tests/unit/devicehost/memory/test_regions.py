from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from services.devicehost.memory import Region, RegionTable, mapping
from services.devicehost.memory.loss import Loss
from services.devicehost.memory.mapping import Mapping, OwnRisk, guard_against_loss
from services.devicehost.memory.regions import MAX_SLOTS
from services.handshake.errors import InvalidArgumentError
from tests.support.guest_ring import USER_BASE, GuestRam

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 4096


def region(ram: GuestRam, **changes: int) -> Region:
    fields = {
        "gpa": 0,
        "size_bytes": 4 * PAGE,
        "user_addr": USER_BASE,
        "file_offset": 0,
        "fd": os.dup(ram.fd),
    } | changes
    return Region(**fields)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"size_bytes": 0}, "REGION_BOUNDS"),
        ({"size_bytes": 100}, "REGION_UNALIGNED"),
        ({"gpa": 100}, "REGION_UNALIGNED"),
        ({"gpa": 2**64 - PAGE}, "REGION_BOUNDS"),
        ({"user_addr": 2**64 - PAGE}, "REGION_BOUNDS"),
        ({"file_offset": 2**63 - PAGE}, "REGION_BOUNDS"),
        ({"file_offset": 20 << 20}, "REGION_FILE_TOO_SHORT"),
        ({"size_bytes": 1 << 40}, "REGION_FILE_TOO_SHORT"),
    ],
)
def test_a_region_that_cannot_be_is_refused_and_its_descriptor_closed(
    ram: GuestRam, changes: dict[str, int], reason: str
) -> None:
    table = RegionTable()
    bad = region(ram, **changes)
    fd = bad.fd
    assert fd is not None
    with pytest.raises(InvalidArgumentError) as caught:
        table.add(bad)
    assert caught.value.reason == reason
    assert not is_open(fd)
    assert len(table) == 0


@pytest.mark.parametrize("changes", [{"user_addr": USER_BASE + (1 << 30)}, {"gpa": 1 << 30}])
def test_overlap_in_either_address_space_is_refused(ram: GuestRam, changes: dict[str, int]) -> None:
    table = RegionTable()
    table.add(region(ram))
    with pytest.raises(InvalidArgumentError) as caught:
        table.add(region(ram, **changes))
    assert caught.value.reason == "REGION_OVERLAP"
    table.close()


def test_the_table_has_a_bounded_number_of_slots(ram: GuestRam) -> None:
    table = RegionTable()
    step = 4 * PAGE
    for place in range(MAX_SLOTS):
        table.add(region(ram, gpa=place * step, user_addr=USER_BASE + place * step))
    with pytest.raises(InvalidArgumentError) as caught:
        table.add(region(ram, gpa=1 << 30, user_addr=USER_BASE + (1 << 30)))
    assert caught.value.reason == "REGION_LIMIT"
    table.close()


def test_a_refused_table_leaves_the_old_one_and_leaks_nothing(ram: GuestRam) -> None:
    table = RegionTable()
    table.add(region(ram))
    good, bad = region(ram), region(ram, size_bytes=0)
    fds = [good.fd, bad.fd]
    with pytest.raises(InvalidArgumentError):
        table.replace([good, bad])
    assert [fd for fd in fds if fd is not None and is_open(fd)] == []
    assert [r.gpa for r in table] == [0]
    (kept,) = table
    assert kept.fd is not None
    assert is_open(kept.fd)
    table.close()


def test_removal_closes_the_descriptor_and_needs_the_same_place(ram: GuestRam) -> None:
    table = RegionTable()
    entry = region(ram)
    fd = entry.fd
    assert fd is not None
    table.add(entry)
    with pytest.raises(InvalidArgumentError, match="no region of"):
        table.remove(0, 4 * PAGE, USER_BASE + 1)
    table.remove(0, 4 * PAGE, USER_BASE)
    assert len(table) == 0
    assert not is_open(fd)


def test_addresses_are_found_only_wholly_inside_one_region(ram: GuestRam) -> None:
    table = RegionTable()
    table.add(region(ram))
    table.add(region(ram, gpa=4 * PAGE, user_addr=USER_BASE + (1 << 30), file_offset=4 * PAGE))
    assert table.find(0, 4 * PAGE) is not None
    assert table.find(4 * PAGE - 1, 2) is None
    assert table.find(8 * PAGE - 1, 1) is not None
    assert table.find(8 * PAGE, 1) is None
    assert table.user_to_gpa(USER_BASE + (1 << 30) + 5, 10) == 4 * PAGE + 5
    assert table.user_to_gpa(USER_BASE + 4 * PAGE, 1) is None
    table.close()


def test_an_unsealed_memfd_is_sealed_against_shrinking() -> None:
    fd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, PAGE)
        guard_against_loss(fd, PAGE)
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def test_memory_that_could_shrink_is_refused(tmp_path: Path) -> None:
    """Truncating it later would kill the process that serves every VM."""
    shrinkable = tmp_path / "ram"
    shrinkable.write_bytes(bytes(PAGE))
    for fd in (os.memfd_create("unsealable", 0), os.open(shrinkable, os.O_RDWR)):
        try:
            os.truncate(fd, PAGE)
            with pytest.raises(InvalidArgumentError, match="memfd with sealing allowed") as caught:
                guard_against_loss(fd, PAGE)
        finally:
            os.close(fd)
        assert caught.value.reason == "REGION_NOT_SEALED"


def test_memory_that_its_owner_has_sealed_for_good_is_taken() -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        guard_against_loss(fd, PAGE)
    finally:
        os.close(fd)


def test_a_mapping_must_start_on_a_page_of_the_file(ram: GuestRam) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Mapping(ram.fd, 100, PAGE, Loss())
    assert caught.value.reason == "MAPPING_UNALIGNED"


def test_what_the_kernel_refuses_to_map_is_a_clear_error() -> None:
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(InvalidArgumentError) as caught:
            Mapping(read_end, 0, PAGE, Loss())
        assert caught.value.reason == "MAPPING_FAILED"
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_region_that_is_not_there_is_named(ram: GuestRam) -> None:
    table = RegionTable()
    with pytest.raises(InvalidArgumentError, match="guest address 0x5000 and user") as caught:
        table.remove(5 * PAGE, PAGE, USER_BASE)
    assert (caught.value.reason, caught.value.metadata) == (
        "REGION_UNKNOWN",
        {"gpa": str(5 * PAGE)},
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_regions_may_touch(ram: GuestRam, order: tuple[int, int]) -> None:
    table = RegionTable()
    size = 4 * PAGE
    for place in order:
        table.add(region(ram, gpa=place * size, user_addr=USER_BASE + place * size))
    last = USER_BASE + 2 * size - 8
    assert table.user_to_gpa(last, 8) == 2 * size - 8
    assert table.user_to_gpa(last, 9) is None
    assert table.user_to_gpa(USER_BASE + size - 8, 16) is None, "no region holds both ends"
    table.close()


def test_at_own_risk_memory_may_shrink_and_the_first_such_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = OwnRisk()
    path = tmp_path / "memory"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file:
        for _ in range(2):
            guard(file.fileno(), PAGE)
        with pytest.raises(InvalidArgumentError) as caught:
            guard(file.fileno(), PAGE + 1)
    assert caught.value.reason == "REGION_FILE_TOO_SHORT"
    (record,) = caplog.records
    assert "cannot be sealed" in record.getMessage()
    assert "this device ends" in record.getMessage()


def test_at_own_risk_sealed_memory_is_taken_without_a_word(
    ram: GuestRam, caplog: pytest.LogCaptureFixture
) -> None:
    OwnRisk()(ram.fd, PAGE)
    with pytest.raises(InvalidArgumentError) as caught:
        OwnRisk()(ram.fd, 1 << 40)
    assert caught.value.reason == "REGION_FILE_TOO_SHORT"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("changes", "shown", "facts"),
    [
        ({"gpa": 100}, "0x4000 bytes at guest address 0x64 is not made of whole pages", {}),
        ({"size_bytes": 0}, "0x0 bytes at guest address 0x0 is empty or", {"gpa": "0"}),
        (
            {},
            "0x4000 bytes at guest address 0x0 overlaps the one at guest address 0x0",
            {"gpa": "0"},
        ),
        (
            {"gpa": 16 * PAGE, "user_addr": 0, "file_offset": 16 << 20},
            "ends at offset 0x1004000 of its file, which has 0x1000000 bytes only",
            {"needed": str((16 << 20) + 4 * PAGE), "size": str(16 << 20)},
        ),
    ],
)
def test_a_refused_region_is_named(
    changes: dict[str, int], shown: str, facts: dict[str, str]
) -> None:
    ram = GuestRam(16 << 20)
    table = RegionTable()
    table.add(region(ram))
    with pytest.raises(InvalidArgumentError, match=shown) as caught:
        table.add(region(ram, **changes))
    assert caught.value.metadata == facts
    table.close()
    assert len(table) == 0
    ram.close()


def test_a_region_too_many_is_named_with_the_bound(ram: GuestRam) -> None:
    table = RegionTable()
    for place in range(MAX_SLOTS):
        table.add(region(ram, gpa=place * 4 * PAGE, user_addr=USER_BASE + place * 4 * PAGE))
    with pytest.raises(InvalidArgumentError, match="0x40000000: the table has 32 slots") as caught:
        table.add(region(ram, gpa=1 << 30, user_addr=0))
    assert caught.value.metadata == {"bound": "32"}
    table.close()


def test_a_region_may_end_with_the_address_space(ram: GuestRam) -> None:
    table = RegionTable()
    table.add(region(ram, gpa=2**64 - 4 * PAGE))
    table.add(region(ram, gpa=0, user_addr=2**64 - 4 * PAGE))
    assert len(table) == 2
    with pytest.raises(InvalidArgumentError) as caught:
        table.add(region(ram, gpa=1 << 30, user_addr=0, file_offset=2**63 - 4 * PAGE))
    assert caught.value.reason == "REGION_FILE_TOO_SHORT", (
        "offsets may go so far, the file does not"
    )
    table.close()


def test_what_cannot_be_mapped_is_named(ram: GuestRam) -> None:
    with pytest.raises(InvalidArgumentError, match="offset 0x64 of its file") as caught:
        Mapping(ram.fd, 100, PAGE, Loss())
    assert caught.value.metadata == {"offset": "100"}
    read_end, write_end = os.pipe()
    shown = "cannot map 0x1000 bytes of guest memory at file offset 0x2000: Permission denied"
    with pytest.raises(InvalidArgumentError, match=shown) as caught:
        Mapping(read_end, 2 * PAGE, PAGE, Loss())
    assert caught.value.metadata == {"offset": str(2 * PAGE), "length": str(PAGE)}
    os.close(read_end)
    os.close(write_end)


def test_a_mapping_is_unmapped_once_however_often_it_is_closed(
    ram: GuestRam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have given its place to another mapping by the second time."""
    unmapped: list[int] = []
    monkeypatch.setattr(mapping._libc, "munmap", lambda address, length: unmapped.append(address))
    mapped = Mapping(ram.fd, 0, PAGE, Loss())
    for _ in range(2):
        mapped.close()
    assert unmapped == [mapped.address]
