"""The shares of a device: what is refused, and how many there may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.aggregate import shares
from services.devicehost.devices.fs.aggregate.shares import MAX_CHILDREN
from services.handshake.errors import PortholeError
from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    from tests.unit.devicehost.devices.fs.aggregate.conftest import Rig


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("", {}, "CHILD_NAME"),
        (".", {}, "CHILD_NAME"),
        ("..", {}, "CHILD_NAME"),
        ("a\0b", {}, "CHILD_NAME"),
        ("é" * 128, {}, "CHILD_NAME"),
        ("a/b", {}, "CHILD_NAME"),
        ("n" * 256, {}, "CHILD_NAME"),
        ("one", {}, "CHILD_EXISTS"),
        ("new", {"queues": 2}, "CHILD_OPTION"),
        ("new", {"swiotlb": SwiotlbPool(Gpa(1 << 30), 64 << 20)}, "CHILD_OPTION"),
        ("new", {"writeback": True}, "CHILD_OPTION"),
    ],
)
def test_what_no_share_can_be_is_refused(
    rig: Rig, name: str, options: dict[str, object], reason: str
) -> None:
    shared = rig.add("one")
    with pytest.raises(PortholeError) as failure:
        rig.add(name, shared, **options)
    assert failure.value.reason == reason
    with pytest.raises(PortholeError) as failure:
        rig.aggregate.remove("unknown")
    assert failure.value.reason == "CHILD_UNKNOWN"


@pytest.mark.parametrize("name", ["...", "n" * 255, "é" * 127 + "e", " "])
def test_a_name_of_any_directory_entry_is_one_of_a_share(rig: Rig, name: str) -> None:
    rig.add(name, rig.directory("shared"))
    assert [child.name for child in rig.aggregate.children()] == [name]


def test_the_number_of_shares_is_bounded(rig: Rig) -> None:
    shared = rig.directory("shared")
    for n in range(MAX_CHILDREN):
        rig.add(str(n), shared)
    with pytest.raises(PortholeError) as failure:
        rig.add("more", shared)
    assert failure.value.reason == "CHILD_LIMIT"
    rig.aggregate.remove("0")
    rig.add("more", shared)


def test_a_slot_is_never_used_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "MAX_SLOT", 3)
    shared = rig.directory("shared")
    for n in range(3):
        rig.add(str(n), shared)
        assert [child.slot for child in rig.aggregate.children()] == [n + 1]
        rig.aggregate.remove(str(n))
    with pytest.raises(PortholeError) as failure:
        rig.add("more", shared)
    assert failure.value.reason == "CHILD_LIMIT"
