"""A client without our stubs and .proto files, which uses reflection."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from porthole.vmowner.v1 import vm_owner_pb2

from services.cli.launcher import Services
from services.handshake import events
from services.handshake.trace.otlp import parse_otlp_lines

if TYPE_CHECKING:
    from tests.support.house import House

DOCUMENT = Path(__file__).parents[2] / "docs" / "grpc-client.md"
CALL_S = 60.0
WSLC = 2


class Reflected:
    """One service, of which only the name is known."""

    def __init__(self, channel: grpc.Channel, name: str) -> None:
        self._channel = channel
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        self.service = pool.FindServiceByName(name)

    def call(self, name: str, **fields: Any) -> Any:
        method = self.service.methods_by_name[name]
        invoke: Any = self._channel.unary_unary(
            f"/{self.service.full_name}/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return invoke(GetMessageClass(method.input_type)(**fields), timeout=CALL_S)


def play(owner_address: str) -> None:
    with grpc.insecure_channel(owner_address) as channel:
        names = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "porthole.vmowner.v1.VmOwner" in names
        owner = Reflected(channel, "porthole.vmowner.v1.VmOwner")
        assert "v1" in owner.call("GetVersion").version.api_versions
        vm = owner.call("CreateVm", kind=WSLC, ram_bytes=2 << 30).vm
        assert vm.guest_init_address

        with grpc.insecure_channel(vm.guest_init_address) as guest_channel:
            grpc.channel_ready_future(guest_channel).result(timeout=CALL_S)
            init = Reflected(guest_channel, "porthole.guest.v1.GuestInit")
            published = init.call("GetGuestCapabilities").capabilities
        pool = published.swiotlb_pool
        assert pool.size_bytes == 64 << 20

        # Each side has its own message classes; the capabilities arrive as the guest sent them.
        said = {"swiotlb_pool": {"base": pool.base, "size_bytes": pool.size_bytes}}
        answer = owner.call("ApplyGuestCapabilities", vm_id=vm.vm_id, capabilities=said)
        assert not answer.already_applied
        assert answer.swiotlb_option == f"swiotlb=0x{pool.base:x},{pool.size_bytes}"
        again = owner.call("ApplyGuestCapabilities", vm_id=vm.vm_id, capabilities=said)
        assert again.already_applied
        assert owner.call("GetVm", vm_id=vm.vm_id).vm.swiotlb_option == answer.swiotlb_option

        said["swiotlb_pool"]["size_bytes"] -= 4096
        with pytest.raises(grpc.RpcError) as refused:
            owner.call("ApplyGuestCapabilities", vm_id=vm.vm_id, capabilities=said)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        owner.call("TerminateVm", vm_id=vm.vm_id)


async def test_a_client_from_reflection_creates_a_vm_and_applies(run_dir: Path) -> None:
    async with Services(run_dir, {}, print) as services:
        await asyncio.to_thread(play, services.owner_address)


def play_over_one_address(owner_address: str, shared: Path) -> str:
    """Do the WSLC handshake at once, as a client that knows nothing but the owner's address."""
    with grpc.insecure_channel(owner_address) as channel:
        owner = Reflected(channel, "porthole.vmowner.v1.VmOwner")
        vm_id: str = owner.call("CreateVm", kind=WSLC).vm.vm_id
        published = owner.call("GetGuestCapabilities", vm_id=vm_id).capabilities
        assert published.swiotlb_pool.size_bytes == 64 << 20
        owner.call("ApplyGuestCapabilities", vm_id=vm_id, capabilities=published)
        owner.call("AddShare", vm_id=vm_id, share={"host_path": str(shared), "tag": "data"})
        owner.call("TerminateVm", vm_id=vm_id)
    return vm_id


async def verdict_of(trace: Path) -> dict[str, Any]:
    command = (sys.executable, "-m", "services.cli.main", "handshake", "verify", "--json")
    process = await asyncio.create_subprocess_exec(
        *(*command, str(trace)), stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await asyncio.wait_for(process.communicate(), CALL_S)
    assert process.returncode == 0, printed
    (vm,) = json.loads(printed)["vms"]
    return dict(vm)


async def test_a_client_without_a_trace_does_a_valid_handshake_over_one_address(
    run_dir: Path,
) -> None:
    trace, shared = run_dir / "trace.jsonl", run_dir / "shared"
    shared.mkdir()
    async with Services(run_dir, {"PORTHOLE_TRACE_FILE": str(trace)}, print) as services:
        vm_id = await asyncio.to_thread(play_over_one_address, services.owner_address, shared)
    verdict = await verdict_of(trace)
    assert (verdict["vm_id"], verdict["valid"], verdict["devices"]) == (vm_id, True, 1)
    assert verdict["token"].startswith("swiotlb=0x")
    readers = [
        (event.name, event.numbers)
        for event in parse_otlp_lines(trace.read_text(), trace.name).events
        if event.name == events.WSLC_READ
    ]
    assert len(readers) == 2  # guest init, and the owner that forwards
    assert len(set(readers)) == 1


async def test_the_documented_client_works_as_it_is_printed(house: House) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, house.services.owner_address),
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await asyncio.wait_for(process.communicate(), 3 * CALL_S)
    assert process.returncode == 0
    (vm,) = (await house.stub.ListVms(vm_owner_pb2.ListVmsRequest())).vms
    assert house.broken_rules() == []
    assert vm.HasField("latched_pool")
    assert printed.decode().strip() == vm.swiotlb_option
