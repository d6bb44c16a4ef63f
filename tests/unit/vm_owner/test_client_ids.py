"""A request whose answer was lost is repeated: the first one's result, and never a second thing."""

from __future__ import annotations

import asyncio
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    UnavailableError,
)
from services.vm_owner.assembly import MachineSpec, VmSpec
from services.vm_owner.guest_devices import DeviceSpec
from services.vm_owner.record import VmKind
from services.vm_owner.shares import ShareKey, ShareSpec
from services.vm_owner.states import VmState

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.owner_peers import Rig

VM_ID = "0d9f3f0e-5d5c-4a53-8f52-0c1f8c2c7d11"


async def test_a_vm_is_created_once_by_its_id(rig: Rig) -> None:
    spec = rig.vm_spec(vm_id=VM_ID)
    vm = await rig.owner.create(spec)
    assert vm.vm_id == VM_ID
    assert await rig.owner.create(spec) is vm
    assert rig.owner.all() == [vm]
    assert rig.script.calls().count("Boot") == 1


async def test_a_call_that_is_repeated_while_the_first_one_runs(rig: Rig) -> None:
    rig.script.gates["Boot"] = asyncio.Event()
    spec = rig.vm_spec(vm_id=VM_ID)
    creating = [asyncio.create_task(rig.owner.create(spec)) for _ in range(3)]
    await rig.script.reached.wait()
    with pytest.raises(AlreadyExistsError, match="ram_bytes"):
        await rig.owner.create(replace(spec, ram_bytes=1 << 30))
    rig.script.gates["Boot"].set()
    first, second, third = await asyncio.gather(*creating)
    assert first is second is third
    assert rig.script.calls().count("Boot") == 1


async def test_a_caller_with_an_id_who_goes_away_finds_the_vm_later(rig: Rig) -> None:
    rig.script.gates["Boot"] = asyncio.Event()
    spec = rig.vm_spec(vm_id=VM_ID)
    creating = asyncio.create_task(rig.owner.create(spec))
    await rig.script.reached.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    rig.script.gates["Boot"].set()
    vm = await rig.owner.create(spec)
    assert vm.record.state is VmState.RUNNING
    assert rig.script.calls().count("Boot") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", VmKind.WSLC),
        ("ram_bytes", 1 << 30),
        ("wslconfig", "[wsl2]\n"),
        ("wslconfig_name", "other"),
        ("machine", MachineSpec(kernel_release="6.1.0-1")),
        ("shares", (ShareSpec("/"),)),
    ],
)
async def test_an_id_belongs_to_one_request(rig: Rig, field: str, value: Any) -> None:
    spec = rig.vm_spec(vm_id=VM_ID)
    await rig.owner.create(spec)
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.create(replace(spec, **{field: value}))
    assert (refused.value.reason, refused.value.metadata) == ("VM_EXISTS", {"fields": field})


async def test_the_id_of_a_vm_that_could_not_be_created_is_free(rig: Rig) -> None:
    spec = rig.vm_spec(vm_id=VM_ID)
    rig.script.failures["Boot"] = UnavailableError("MACHINE_GONE", "no answer")
    with pytest.raises(UnavailableError):
        await rig.owner.create(spec)
    rig.script.failures.clear()
    assert (await rig.owner.create(replace(spec, ram_bytes=1 << 30))).vm_id == VM_ID


async def test_a_vm_that_has_ended_is_not_created_again(rig: Rig) -> None:
    spec = rig.vm_spec(vm_id=VM_ID)
    vm = await rig.owner.create(spec)
    await rig.owner.terminate(VM_ID)
    assert await rig.owner.create(spec) is vm
    assert vm.record.state is VmState.TERMINATED


@pytest.mark.parametrize(
    "vm_id", ["x", VM_ID.upper(), VM_ID.replace("-", ""), f"{{{VM_ID}}}", "../" + VM_ID]
)
async def test_the_id_of_a_vm_is_a_uuid_in_lower_case(rig: Rig, vm_id: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await rig.owner.create(rig.vm_spec(vm_id=vm_id))
    assert refused.value.reason == "VM_ID_SYNTAX"


def fs(path: Path, **changes: Any) -> DeviceSpec:
    return replace(DeviceSpec(events.FS, "data", "ro", str(path)), **changes)


async def test_a_device_is_added_once_by_its_id(rig: Rig, tmp_path: Path) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    adding = [rig.owner.add_device(vm.vm_id, fs(tmp_path), "mine") for _ in range(2)]
    first, second = await asyncio.gather(*adding)
    assert first is second
    assert list(rig.device_host.devices) == ["mine"]
    await rig.owner.remove_device(vm.vm_id, "mine")
    again = await rig.owner.add_device(vm.vm_id, fs(tmp_path, tag="new"), "mine")
    assert again is not first


@pytest.mark.parametrize(
    ("field", "value"),
    [("tag", "other"), ("extra_options", ""), ("backend", "/"), ("elevated", True)],
)
async def test_an_instance_id_belongs_to_one_request(
    rig: Rig, tmp_path: Path, field: str, value: Any
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    await rig.owner.add_device(vm.vm_id, fs(tmp_path), "mine")
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.add_device(vm.vm_id, fs(tmp_path, **{field: value}), "mine")
    assert (refused.value.reason, refused.value.metadata) == ("DEVICE_EXISTS", {"fields": field})


@pytest.mark.parametrize("instance_id", ["-x", "a/b", "a" * 65, "ä"])
async def test_the_syntax_of_an_instance_id(rig: Rig, tmp_path: Path, instance_id: str) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    with pytest.raises(InvalidArgumentError) as refused:
        await rig.owner.add_device(vm.vm_id, fs(tmp_path), instance_id)
    assert refused.value.reason == "INSTANCE_ID_SYNTAX"


ORDINARY = ShareSpec("/", "data")
AGGREGATE = ShareSpec("/", aggregate=True)


@pytest.mark.parametrize(
    ("first", "repeated", "field"),
    [
        (ORDINARY, ShareSpec("/", "other"), "tag"),
        (ShareSpec("/"), ShareSpec("/", "other"), "tag"),
        (ORDINARY, AGGREGATE, "aggregate"),
        (AGGREGATE, ORDINARY, "aggregate"),
        (AGGREGATE, ShareSpec("/"), "aggregate"),
    ],
)
async def test_a_share_that_is_asked_for_differently_is_refused(
    rig: Rig, first: ShareSpec, repeated: ShareSpec, field: str
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    share, _ = await rig.owner.add_share(vm.vm_id, first)
    with pytest.raises(AlreadyExistsError, match=field) as refused:
        await rig.owner.add_share(vm.vm_id, repeated)
    assert refused.value.reason == "SHARE_EXISTS"
    assert refused.value.metadata["field"] == field
    assert list(vm.shares.by_id.values()) == [share]
    spec = rig.vm_spec(shares=(first, repeated))
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.create(spec)
    assert refused.value.reason == "SHARE_EXISTS"


async def test_a_share_is_repeated_with_the_tag_that_it_got(rig: Rig) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    share, _ = await rig.owner.add_share(vm.vm_id, ShareSpec("/"))
    for tag in ("", share.device.spec.tag):
        assert await rig.owner.add_share(vm.vm_id, ShareSpec("/", tag)) == (share, True)


def test_no_field_of_a_request_is_forgotten_when_it_is_repeated() -> None:
    """A field that is added has to be compared, and to be added here."""
    compared: dict[Any, set[str]] = {
        vm_owner_pb2.CreateVmRequest: {field.name for field in fields(VmSpec)},
        vm_owner_pb2.AddGuestDeviceRequest: {field.name for field in fields(DeviceSpec)},
        vm_owner_pb2.ShareSpec: {*(field.name for field in fields(ShareKey)), "tag", "aggregate"},
    }
    under_other_names = {
        *("embedded", "external", "qemu"),  # VmSpec.machine
        *("directory", "tap", "options"),  # DeviceSpec.backend and .extra_options
        "host_path",  # ShareKey.canonical_path
    }
    ids = {"vm_id", "instance_id"}
    for message, names in compared.items():
        sent = {field.name for field in message.DESCRIPTOR.fields}
        assert sent - names - under_other_names - ids == set()
