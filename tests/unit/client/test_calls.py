"""Calls of both clients: errors, deadlines, repeats and ids, pages, and connecting."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from porthole.client import (
    AlreadyExistsError,
    AsyncVmOwner,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
    UnavailableError,
    UnimplementedError,
    VmOwner,
    errors,
)
from porthole.vmowner.v1 import vm_owner_pb2 as pb

from services.handshake import errors as theirs
from tests.unit.client.scripted_owner import SlowAnswer, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.client.conftest import Client
    from tests.unit.client.scripted_owner import ScriptedOwner

LOST = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("kind", theirs.PortholeError.__subclasses__())
def test_an_error_of_the_owner_has_class_reason_and_metadata(
    client: Client, owner: ScriptedOwner, kind: type[theirs.PortholeError]
) -> None:
    owner.script.append(kind("NO_SUCH_REASON_YET", "it is so", bound=4096))
    with pytest.raises(PortholeError) as caught:
        client.call("remove_share", pb.RemoveShareRequest())
    error = caught.value
    assert type(error).__name__ == kind.__name__
    assert error.code.name == kind.kind
    assert (error.reason, error.message) == ("NO_SUCH_REASON_YET", "it is so")
    assert error.metadata == {"bound": "4096"}
    assert str(error) == "it is so [NO_SUCH_REASON_YET]"


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (grpc.StatusCode.INTERNAL, InternalError, "PEER_FAILED"),
        (grpc.StatusCode.UNIMPLEMENTED, UnimplementedError, "METHOD_UNIMPLEMENTED"),
        (grpc.StatusCode.UNKNOWN, PortholeError, "PEER_FAILED"),
        (LOST, UnavailableError, "PEER_UNAVAILABLE"),
        (grpc.StatusCode.NOT_FOUND, NotFoundError, "PEER_FAILED"),
    ],
)
def test_a_status_that_no_service_of_porthole_set_names_the_peer(
    client: Client,
    owner: ScriptedOwner,
    address: str,
    code: grpc.StatusCode,
    kind: type[PortholeError],
    reason: str,
) -> None:
    owner.script.append(code)
    with pytest.raises(PortholeError) as caught:
        client.call("remove_share", pb.RemoveShareRequest())
    assert (type(caught.value), caught.value.reason) == (kind, reason)
    assert caught.value.message == f"{address}: said by nobody of Porthole"
    assert caught.value.metadata == {}


def test_each_status_has_a_class() -> None:
    with_class = {each.code for each in PortholeError.__subclasses__()}
    assert set(grpc.StatusCode) - with_class == {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}
    assert set(vars(errors)) >= {each.__name__ for each in theirs.PortholeError.__subclasses__()}


CREATE = pb.CreateVmRequest(kind=pb.VM_KIND_WSLC)
ADD = pb.AddGuestDeviceRequest(vm_id="vm", directory="/srv")


@pytest.mark.parametrize(
    ("name", "request_", "answer", "field"),
    [
        ("create_vm", CREATE, pb.CreateVmResponse(vm=pb.Vm(vm_id="a")), "vm_id"),
        ("add_guest_device", ADD, pb.AddGuestDeviceResponse(), "instance_id"),
    ],
)
def test_a_lost_answer_is_asked_for_again_with_the_same_id(
    client: Client, owner: ScriptedOwner, name: str, request_: Any, answer: Any, field: str
) -> None:
    before = request_.SerializeToString()
    owner.script.extend([LOST, theirs.UnavailableError("SERVICE_STOPPING", ""), answer])
    assert client.call(name, request_) == answer
    ids = [getattr(request, field) for request in owner.requests(type(request_))]
    assert len(ids) == 3
    assert len(set(ids)) == 1
    assert str(uuid.UUID(ids[0])) == ids[0]
    assert request_.SerializeToString() == before


def test_each_vm_gets_an_id_of_its_own_and_a_chosen_one_is_kept(
    client: Client, owner: ScriptedOwner
) -> None:
    owner.script.extend([pb.CreateVmResponse()] * 3)
    client.call("create_vm", CREATE)
    client.call("create_vm", CREATE)
    client.call("create_vm", pb.CreateVmRequest(vm_id="mine"))
    first, second, third = (each.vm_id for each in owner.requests(pb.CreateVmRequest))
    assert first != second
    assert third == "mine"


REPEATED = {
    "get_vm": ("vm", pb.GetVmResponse()),
    "get_guest_capabilities": ("vm", pb.GetGuestCapabilitiesResponse()),
    "apply_guest_capabilities": (
        pb.ApplyGuestCapabilitiesRequest(),
        pb.ApplyGuestCapabilitiesResponse(),
    ),
    "add_share": (pb.AddShareRequest(), pb.AddShareResponse()),
    "list_ports": ("vm", pb.ListPortsResponse()),
    "set_rate_limit": (pb.SetRateLimitRequest(), pb.SetRateLimitResponse()),
    "terminate_vm": ("vm", pb.TerminateVmResponse()),
}
ONCE = {
    "remove_share": pb.RemoveShareRequest(),
    "remove_guest_device": pb.RemoveGuestDeviceRequest(),
    "configure_networking": "vm",
    "map_port": pb.MapPortRequest(),
    "unmap_port": pb.UnmapPortRequest(),
}


@pytest.mark.parametrize("name", REPEATED)
def test_what_may_be_repeated_is(client: Client, owner: ScriptedOwner, name: str) -> None:
    argument, answer = REPEATED[name]
    owner.script.extend([LOST, LOST, answer])
    client.call(name, argument)
    assert len(owner.asked) == 3
    assert len({request.SerializeToString() for _, request in owner.asked}) == 1


@pytest.mark.parametrize("name", ONCE)
def test_what_is_not_safe_is_never_repeated(
    client: Client, owner: ScriptedOwner, name: str
) -> None:
    owner.script.append(LOST)
    with pytest.raises(UnavailableError):
        client.call(name, ONCE[name])
    assert len(owner.asked) == 1


@pytest.mark.parametrize(
    "error",
    [
        theirs.AlreadyExistsError("VM_EXISTS", "", field="ram_bytes"),
        theirs.DeadlineExceededError("GUEST_INIT_SILENT", ""),
        theirs.ResourceExhaustedError("SUBNETS_EXHAUSTED", ""),
        theirs.UnavailableError("VM_ENDED_EARLY", ""),
        theirs.UnavailableError("GUEST_INIT_ENDED", ""),
    ],
)
def test_another_refusal_is_not_repeated(
    client: Client, owner: ScriptedOwner, error: theirs.PortholeError
) -> None:
    owner.script.append(error)
    with pytest.raises(PortholeError) as caught:
        client.call("create_vm", CREATE)
    assert caught.value.reason == error.reason
    assert isinstance(caught.value, AlreadyExistsError) == (error.reason == "VM_EXISTS")
    assert len(owner.asked) == 1


def test_all_attempts_are_within_one_deadline(client: Client, owner: ScriptedOwner) -> None:
    owner.script.extend([LOST] * 100)
    with pytest.raises(UnavailableError) as caught:
        client.call("create_vm", CREATE, timeout_s=1.0)
    assert caught.value.reason == "PEER_UNAVAILABLE"
    assert 2 <= len(owner.asked) <= 12
    assert owner.deadlines_s == sorted(owner.deadlines_s, reverse=True)
    assert owner.deadlines_s[0] < 1.5


def test_calls_have_a_deadline_of_their_own(client: Client, owner: ScriptedOwner) -> None:
    owner.script.extend([pb.GetVmResponse(), pb.CreateVmResponse()])
    client.call("get_vm", "vm")
    client.call("create_vm", CREATE)
    read_s, create_s = owner.deadlines_s
    assert 5 < read_s < 11
    assert 50 < create_s < 61


def test_a_deadline_that_passes_is_an_error(client: Client, owner: ScriptedOwner) -> None:
    owner.script.append(SlowAnswer(0.8, pb.GetVmResponse()))
    with pytest.raises(DeadlineExceededError) as caught:
        client.call("get_vm", "vm", timeout_s=0.2)
    assert caught.value.reason == "PEER_DEADLINE_EXCEEDED"


def test_all_pages_are_one_list(client: Client, owner: ScriptedOwner) -> None:
    owner.script.extend(
        [
            pb.ListVmsResponse(vms=[pb.Vm(vm_id="a"), pb.Vm(vm_id="b")], next_page_token="b"),
            pb.ListVmsResponse(next_page_token="still"),  # a page may be empty
            LOST,
            pb.ListVmsResponse(vms=[pb.Vm(vm_id="c")]),
        ]
    )
    vms = client.take(99, "vms", pb.VM_VIEW_FULL, page_size=2)
    assert [vm.vm_id for vm in vms] == ["a", "b", "c"]
    asked = owner.requests(pb.ListVmsRequest)
    assert {(each.view, each.page_size) for each in asked} == {(pb.VM_VIEW_FULL, 2)}


def test_pages_are_read_as_they_are_needed(client: Client, owner: ScriptedOwner) -> None:
    owner.script.append(pb.ListVmsResponse(vms=[pb.Vm(vm_id="a")], next_page_token="a"))
    assert len(client.take(1, "vms")) == 1
    assert len(owner.asked) == 1


def test_an_owner_of_another_version_is_refused(address: str, owner: ScriptedOwner) -> None:
    owner.api_versions = ["v7"]
    with pytest.raises(FailedPreconditionError) as caught, VmOwner(address):
        pass
    assert caught.value.reason == "API_VERSION_MISMATCH"
    assert caught.value.metadata == {"ours": "v1", "theirs": "v7"}


def test_a_call_outlives_a_restart_of_the_owner(run_dir: Path, owner: ScriptedOwner) -> None:
    owner.script.append(pb.GetVmResponse(vm=pb.Vm(vm_id="vm")))
    with ExitStack() as client, ThreadPoolExecutor(1) as caller:
        with serving(owner, run_dir) as address:
            connected = client.enter_context(VmOwner(address))
        called = caller.submit(connected.get_vm, "vm")
        with pytest.raises(TimeoutError):
            called.result(timeout=0.3)
        with serving(owner, run_dir):
            assert called.result(timeout=10).vm_id == "vm"


def test_an_owner_that_does_not_come_up(run_dir: Path) -> None:
    with pytest.raises(UnavailableError) as caught, VmOwner(f"unix:{run_dir}/no", wait_s=0.3):
        pass
    assert caught.value.reason == "PEER_UNAVAILABLE"


async def test_an_owner_that_does_not_come_up_for_asyncio(run_dir: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        async with AsyncVmOwner(f"unix:{run_dir}/no", wait_s=0.3):
            pass
    assert caught.value.reason == "PEER_UNAVAILABLE"


@pytest.mark.parametrize("kind", [VmOwner, AsyncVmOwner])
def test_a_wrong_address_is_refused_at_once(kind: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        kind("owner.sock")
    assert caught.value.reason == "ADDRESS_SYNTAX"
