"""The shares of a device: what is refused, and how many there may be."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.aggregate import shares
from services.devicehost.devices.fs.aggregate.shares import MAX_CHILDREN
from services.handshake.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.devicehost.devices.fs.aggregate.conftest import Rig


@pytest.mark.parametrize(
    ("name", "length"),
    [("", 0), (".", 1), ("..", 2), ("a\0b", 3), ("é" * 128, 256), ("a/b", 3), ("n" * 256, 256)],
)
def test_a_name_that_no_share_can_have_is_refused(rig: Rig, name: str, length: int) -> None:
    named = re.escape(f"share name {name!r} has {length} bytes; it needs 1 to 255 bytes")
    with pytest.raises(InvalidArgumentError, match=named) as failure:
        rig.add(name, rig.directory("shared"))
    assert failure.value.reason == "CHILD_NAME"
    assert failure.value.metadata == {"child": name, "bound": "255"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("queues", 2),
        ("swiotlb", SwiotlbPool(Gpa(1 << 30), 64 << 20)),
        ("aperture", SwiotlbPool(Gpa(1 << 30), 8 << 20)),
        ("rings", "inside"),
        ("writeback", True),
        ("submounts", False),
    ],
)
def test_an_option_of_a_whole_device_is_refused(rig: Rig, option: str, value: object) -> None:
    shared = rig.directory("shared")
    with pytest.raises(InvalidArgumentError, match=f"share 'new': {option} counts") as failure:
        rig.add("new", shared, **{option: value})
    assert failure.value.reason == "CHILD_OPTION"
    assert failure.value.metadata == {"option": option}


def test_a_name_is_added_once_and_removed_once(rig: Rig) -> None:
    shared = rig.add("one")
    with pytest.raises(AlreadyExistsError, match="'shares' has a share 'one' already") as exists:
        rig.add("one", shared)
    assert exists.value.reason == "CHILD_EXISTS"
    assert exists.value.metadata == {"child": "one"}
    rig.aggregate.remove("one")
    with pytest.raises(NotFoundError, match="'shares' has no share 'one'") as unknown:
        rig.aggregate.remove("one")
    assert unknown.value.reason == "CHILD_UNKNOWN"
    assert unknown.value.metadata == {"child": "one"}


@pytest.mark.parametrize("name", ["...", "n" * 255, "é" * 127 + "e", " "])
def test_a_name_of_any_directory_entry_is_one_of_a_share(rig: Rig, name: str) -> None:
    rig.add(name, rig.directory("shared"))
    assert [child.name for child in rig.aggregate.children()] == [name]


def test_the_number_of_shares_is_bounded(rig: Rig) -> None:
    shared = rig.directory("shared")
    for n in range(MAX_CHILDREN):
        rig.add(str(n), shared)
    assert limit_reached(rig, shared) == (MAX_CHILDREN, MAX_CHILDREN)
    rig.aggregate.remove("0")
    rig.add("more", shared)


def test_a_slot_is_never_used_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MAX_SLOT", 3)
    shared = rig.directory("shared")
    for n in range(3):
        rig.add(str(n), shared)
        assert [child.slot for child in rig.aggregate.children()] == [n + 1]
        rig.aggregate.remove(str(n))
    assert limit_reached(rig, shared) == (0, 3)


def limit_reached(rig: Rig, shared: Path) -> tuple[int, int]:
    """Have one more share refused; returns how many there are and have been."""
    with pytest.raises(ResourceExhaustedError) as failure:
        rig.add("more", shared)
    assert failure.value.reason == "CHILD_LIMIT"
    assert failure.value.metadata == {"child": "more", "bound": str(MAX_CHILDREN)}
    said = re.match(r"device 'shares' has (\d+) shares and has had (\d+);", failure.value.message)
    assert said is not None
    return int(said[1]), int(said[2])
