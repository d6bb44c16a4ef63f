"""Shares that are directories of the VM's aggregate device."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.errors import (
    FailedPreconditionError,
    NotFoundError,
    PortholeError,
    UnavailableError,
)
from services.vm_owner import warnings
from services.vm_owner.aggregates import TAGS
from services.vm_owner.shares import ShareSpec
from services.vm_owner.states import VmState
from tests.support.owner_peers import TOKEN, Rig

if TYPE_CHECKING:
    from pathlib import Path

    from services.handshake.events import Event


def spec(directory: Path, options: str = "", *, elevated: bool = False) -> ShareSpec:
    return ShareSpec(str(directory), "", options, elevated, aggregate=True)


async def test_all_shares_are_on_one_device_with_one_token(
    rig: Rig, trace: list[Event], tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec(shares=(spec(tmp_path),)))
    vm_id = vm.vm_id
    other, existed = await rig.owner.add_share(vm_id, spec(tmp_path, "ro;uid=5"))
    assert not existed
    [device] = rig.device_host.devices.values()
    assert device.tag == TAGS[False]
    assert device.options == f"{TAGS[False]};queues=4;{TOKEN};vm_id={vm_id}"
    assert list(device.children) == list(vm.shares.by_id)
    assert [s.device.instance_id for s in vm.shares.by_id.values()] == [device.instance_id] * 2
    child = rig.device_host.children[other.share_id]
    assert child.options == f"{other.share_id};ro;uid=5;vm_id={vm_id}", "a share has no token"
    assert child.shared_dir == str(tmp_path)
    assert [event.name for event in trace].count(events.DEVICE_ADDED) == 1
    assert rig.script.calls().count("AttachDevice") == 1


async def test_the_elevated_user_has_an_aggregate_of_his_own(rig: Rig, tmp_path: Path) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec())).vm_id
    one, _ = await rig.owner.add_share(vm_id, spec(tmp_path))
    two, existed = await rig.owner.add_share(vm_id, spec(tmp_path, elevated=True))
    assert not existed
    assert (one.device.spec.tag, two.device.spec.tag) == (TAGS[False], TAGS[True])


async def test_an_equal_share_is_the_existing_one_wherever_it_is(rig: Rig, tmp_path: Path) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec())).vm_id
    share, _ = await rig.owner.add_share(vm_id, spec(tmp_path, "ro;uid=5"))
    for equal in (
        spec(tmp_path, "uid=5;ro;ro"),
        replace(spec(tmp_path, "uid=5;ro"), host_path=f"{tmp_path}/"),
    ):
        assert await rig.owner.add_share(vm_id, equal) == (share, True)
    for different in (spec(tmp_path, "ro"), spec(tmp_path, "ro;uid=5", elevated=True)):
        added, existed = await rig.owner.add_share(vm_id, different)
        assert not existed
        assert added.share_id != share.share_id


async def test_a_removed_share_leaves_the_device_and_the_others(rig: Rig, tmp_path: Path) -> None:
    vm = await rig.owner.create(rig.vm_spec(shares=(spec(tmp_path), spec(tmp_path, "ro"))))
    vm_id = vm.vm_id
    one, two = list(vm.shares.by_id)
    await rig.owner.remove_share(vm_id, one)
    [device] = rig.device_host.devices.values()
    assert list(device.children) == [two]
    assert list(vm.shares.by_id) == [two]
    with pytest.raises(NotFoundError):
        await rig.owner.remove_share(vm_id, one)
    again, existed = await rig.owner.add_share(vm_id, spec(tmp_path))
    assert (existed, list(device.children)) == (False, [two, again.share_id])
    await rig.owner.remove_device(vm_id, device.instance_id)
    assert vm.shares.by_id == {}


async def test_a_share_that_cannot_be_taken_out_is_still_there(rig: Rig, tmp_path: Path) -> None:
    vm = await rig.owner.create(rig.vm_spec(shares=(spec(tmp_path),)))
    [share_id] = vm.shares.by_id
    rig.script.failures["RemoveChild"] = UnavailableError("PEER_UNAVAILABLE", "gone")
    with pytest.raises(UnavailableError):
        await rig.owner.remove_share(vm.vm_id, share_id)
    assert list(vm.shares.by_id) == [share_id]
    del rig.script.failures["RemoveChild"]
    await rig.owner.remove_share(vm.vm_id, share_id)
    assert vm.shares.by_id == {}


async def test_nothing_is_left_of_a_share_whose_answer_is_lost(rig: Rig, tmp_path: Path) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    rig.script.failures["AddChild"] = UnavailableError("PEER_UNAVAILABLE", "gone")
    with pytest.raises(UnavailableError):
        await rig.owner.add_share(vm.vm_id, spec(tmp_path))
    assert vm.shares.by_id == {}
    [device] = rig.device_host.devices.values()
    assert list(device.children) == []


async def test_a_share_that_was_added_while_its_vm_began_to_end_is_no_success(
    rig: Rig, tmp_path: Path
) -> None:
    vm = await rig.owner.create(rig.vm_spec(shares=(spec(tmp_path),)))
    rig.script.gates["AddChild"] = asyncio.Event()
    adding = asyncio.create_task(rig.owner.add_share(vm.vm_id, spec(tmp_path, "ro")))
    await rig.script.reached.wait()
    with vm.record.watch() as stream:
        ending = asyncio.create_task(rig.owner.terminate(vm.vm_id))
        async for event in stream:
            if event is VmState.SHUTTING_DOWN:
                break
    rig.script.gates["AddChild"].set()
    with pytest.raises(FailedPreconditionError, match="SHUTTING_DOWN"):
        await adding
    await ending
    assert rig.script.calls().count("RemoveChild") == 1


async def test_a_device_that_its_host_has_lost_is_made_again_with_its_shares(
    rig: Rig, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    vm = await rig.owner.create(rig.vm_spec(shares=(spec(tmp_path), spec(gone))))
    kept, lost = list(vm.shares.by_id)
    rig.device_host.devices.clear()
    new, _ = await rig.owner.add_share(vm.vm_id, spec(tmp_path, "ro"))
    [device] = rig.device_host.devices.values()
    assert list(device.children) == [kept, lost, new.share_id]
    assert {share.device.instance_id for share in vm.shares.by_id.values()} == {device.instance_id}

    rig.device_host.devices.clear()
    rig.script.failures["AddChild"] = NotFoundError("SHARED_DIR_MISSING", "it is gone")
    with pytest.raises(NotFoundError):
        await rig.owner.add_share(vm.vm_id, spec(tmp_path, "uid=5"))
    assert vm.shares.by_id == {}
    assert [warning.id for warning in vm.record.warnings] == [warnings.SHARE_FAILED] * 3


async def test_a_share_that_its_device_has_lost_is_added_again(rig: Rig, tmp_path: Path) -> None:
    vm = await rig.owner.create(rig.vm_spec(shares=(spec(tmp_path),)))
    [device] = rig.device_host.devices.values()
    del device.children[:]
    share, existed = await rig.owner.add_share(vm.vm_id, spec(tmp_path))
    assert (existed, list(device.children), list(vm.shares.by_id)) == (
        False,
        [share.share_id],
        [share.share_id],
    )


async def test_a_share_of_the_aggregate_has_no_tag(rig: Rig, tmp_path: Path) -> None:
    vm_id = (await rig.owner.create(rig.vm_spec())).vm_id
    with pytest.raises(PortholeError) as refused:
        await rig.owner.add_share(vm_id, ShareSpec(str(tmp_path), "tag", aggregate=True))
    assert refused.value.reason == "AGGREGATE_TAG"
    with pytest.raises(PortholeError) as refused:
        await rig.owner.add_share(vm_id, spec(tmp_path, "uid=1;" * 1000))
    assert refused.value.reason == "OPTIONS_TOO_LONG"
    assert rig.device_host.devices == {}
