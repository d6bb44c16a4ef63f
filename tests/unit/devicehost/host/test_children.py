"""Shares of aggregate devices, as the registry adds and removes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.devicehost.host import AggregateBackend, ChildSpec, DeviceHost, DeviceSpec, FsBackend
from services.handshake.errors import PortholeError
from tests.support.descriptors import open_fds
from tests.unit.devicehost.host.conftest import OTHER_VM, TOKEN, VM

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def host(run_dir: Path) -> Iterator[DeviceHost]:
    host = DeviceHost(run_dir, lambda info, detail: None)
    yield host
    host.close()


def create(host: DeviceHost, tag: str, backend: FsBackend | AggregateBackend, more: str) -> None:
    options = f"{tag};{more}{TOKEN};vm_id={VM}"
    host.create_device(DeviceSpec(VM, tag, tag, options, backend), lambda event: None)


def child(name: str, directory: Path | str, options: str = "", vm_id: str = VM) -> ChildSpec:
    return ChildSpec(name, f"{name};{options}vm_id={vm_id}", str(directory))


def test_shares_are_added_listed_and_removed(host: DeviceHost, tmp_path: Path) -> None:
    create(host, "shares", AggregateBackend(), "queues=4;")
    before = open_fds()
    host.add_child(VM, "shares", child("one", tmp_path, "ro;"))
    host.add_child(VM, "shares", child("two", tmp_path))
    assert host.get_device(VM, "shares").children == ("one", "two")
    host.remove_child(VM, "shares", "one")
    assert host.get_device(VM, "shares").children == ("two",)
    host.remove_child(VM, "shares", "two")
    assert open_fds() == before
    host.add_child(VM, "shares", child("one", tmp_path))
    host.remove_device(VM, "shares")
    [removed] = host.removed_devices(60)
    assert removed.children == ()
    with pytest.raises(PortholeError) as gone:
        host.add_child(VM, "shares", child("one", tmp_path))
    assert gone.value.reason == "DEVICE_UNKNOWN"


def test_a_share_that_cannot_be_added_fails_alone(host: DeviceHost, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    create(host, "shares", AggregateBackend(), "")
    create(host, "plain", FsBackend(str(tmp_path)), "")
    host.add_child(VM, "shares", child("fine", tmp_path))
    before = open_fds()
    for device, wrong, reason in (
        ("shares", child("new", tmp_path / "missing"), "SHARED_DIR_MISSING"),
        ("shares", child("new", tmp_path / "file"), "SHARED_DIR_NOT_A_DIRECTORY"),
        ("shares", child("new", "relative"), "SHARED_DIR_RELATIVE"),
        ("shares", child("new", "/proc", "metadata;"), "METADATA_UNSUPPORTED"),
        ("shares", child("fine", tmp_path), "CHILD_EXISTS"),
        ("shares", child("new", tmp_path, "queues=2;"), "CHILD_OPTION"),
        ("shares", child("new", tmp_path, "rings=inside;"), "CHILD_OPTION"),
        ("shares", child("new", tmp_path, f"{TOKEN};"), "CHILD_OPTION"),
        ("shares", child("new", tmp_path, "colour=red;"), "OPTION_UNKNOWN"),
        ("shares", child("new", tmp_path, vm_id=OTHER_VM), "VM_ID_MISMATCH"),
        ("shares", ChildSpec("new", f"old;vm_id={VM}", str(tmp_path)), "TAG_MISMATCH"),
        ("plain", child("new", tmp_path), "NO_AGGREGATE"),
        ("unknown", child("new", tmp_path), "DEVICE_UNKNOWN"),
    ):
        with pytest.raises(PortholeError) as refused:
            host.add_child(VM, device, wrong)
        assert refused.value.reason == reason
    assert open_fds() == before
    assert host.get_device(VM, "shares").children == ("fine",)
    for device, name, reason in (
        ("shares", "new", "CHILD_UNKNOWN"),
        ("plain", "new", "NO_AGGREGATE"),
        ("unknown", "new", "DEVICE_UNKNOWN"),
    ):
        with pytest.raises(PortholeError) as refused:
            host.remove_child(VM, device, name)
        assert refused.value.reason == reason


def test_an_aggregate_takes_no_options_of_a_share(host: DeviceHost) -> None:
    with pytest.raises(PortholeError) as refused:
        create(host, "shares", AggregateBackend(), "ro;")
    assert refused.value.reason == "AGGREGATE_OPTION"
    assert host.list_devices() == []
