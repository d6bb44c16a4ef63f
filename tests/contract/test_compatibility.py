"""Peers of different ages over the wire: a field that one of them does not know is kept.

The classes of the other age are built at run time, from the descriptors of the .proto files with
fields added or taken away; so the wire is what really differs, and nothing is pretended.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from porthole.devicehost.v1 import device_host_pb2
from porthole.guest.v1 import guest_init_pb2
from porthole.guest.v1.guest_init_pb2_grpc import InitChannelStub
from porthole.handshake.v1 import device_pb2, guest_capabilities_pb2, port_pb2, rate_limit_pb2
from porthole.machine.v1 import machine_pb2
from porthole.vmowner.v1 import vm_owner_pb2
from porthole.vmowner.v1.vm_owner_pb2_grpc import VmOwnerStub

from services.handshake.errors import FailedPreconditionError
from services.handshake.pool import Gpa, SwiotlbPool
from services.rpc.channel import connect
from services.rpc.server import Servicer, start_server
from services.rpc.version import service_version
from services.session import apply_guest_capabilities
from services.vm_owner.convert import report_from_proto
from services.vm_owner.reports import Report
from tests.support.guest_process import TRACEPARENT, VM_ID
from tests.support.small_owner import SmallOwner, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path

    from google.protobuf.message import Message

GUEST_INIT = "porthole.guest.v1.GuestInit"
INIT_CHANNEL = "porthole.guest.v1.InitChannel"
VM_OWNER = "porthole.vmowner.v1.VmOwner"
CAPABILITIES = "porthole.handshake.v1.GuestCapabilities"
THIRD_PARTIES = range(50_000, 100_000)
POOL = SwiotlbPool(Gpa(0x3C000000), 64 << 20)


class Age:
    """The messages of another version, by full name."""

    def __init__(self, change: Callable[[descriptor_pb2.FileDescriptorProto], None]) -> None:
        self._pool = descriptor_pool.DescriptorPool()
        for module in (
            guest_capabilities_pb2,
            guest_init_pb2,
            device_pb2,
            port_pb2,
            rate_limit_pb2,
            vm_owner_pb2,
        ):
            file = descriptor_pb2.FileDescriptorProto()
            module.DESCRIPTOR.CopyToProto(file)
            change(file)
            self._pool.Add(file)

    def __call__(self, name: str, **fields: Any) -> Any:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))(**fields)

    def parse(self, name: str, raw: bytes) -> Any:
        message = self(name)
        message.ParseFromString(raw)
        return message


def _capabilities(
    file: descriptor_pb2.FileDescriptorProto,
) -> descriptor_pb2.DescriptorProto | None:
    return next((item for item in file.message_type if item.name == "GuestCapabilities"), None)


def _grow(file: descriptor_pb2.FileDescriptorProto) -> None:
    """A kernel publishes two more values: a scalar and one in the pool itself."""
    capabilities = _capabilities(file)
    if capabilities is None:
        return
    optional = FieldDescriptorProto.LABEL_OPTIONAL
    capabilities.field.add(
        name="iommu_mode",
        number=THIRD_PARTIES[0],
        type=FieldDescriptorProto.TYPE_STRING,
        label=optional,
    )
    [pool] = [item for item in file.message_type if item.name == "SwiotlbPool"]
    pool.field.add(name="areas", number=77, type=FieldDescriptorProto.TYPE_UINT32, label=optional)


def _shrink(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Capabilities from before kernel release and seccomp were reported."""
    capabilities = _capabilities(file)
    if capabilities is not None:
        del capabilities.field[1:]
        del capabilities.oneof_decl[:]


@pytest.fixture(scope="module")
def newer() -> Age:
    return Age(_grow)


@pytest.fixture(scope="module")
def older() -> Age:
    return Age(_shrink)


def new_capabilities(newer: Age) -> Any:
    return newer(
        CAPABILITIES,
        swiotlb_pool={"base": POOL.base, "size_bytes": POOL.size_bytes, "areas": 4},
        kernel_release="7.1.0-1",
        seccomp_user_notification=True,
        iommu_mode="strict",
    )


@asynccontextmanager
async def answering(
    service: str, run_dir: Path, socket: str, answers: dict[str, Callable[[bytes], bytes]]
) -> AsyncIterator[str]:
    """A service whose messages are bytes, so that a test can make it of any age."""

    def unary(answer: Callable[[bytes], bytes]) -> Any:
        async def handle(request: bytes, _: object) -> bytes:
            return answer(request)

        return grpc.unary_unary_rpc_method_handler(handle)

    handlers = {name: unary(answer) for name, answer in answers.items()}
    generic = grpc.method_handlers_generic_handler(service, handlers)

    def add(_: object, server: Any) -> None:
        server.add_generic_rpc_handlers((generic,))

    address = f"unix:{run_dir}/{socket}"
    handle = await start_server([address], [Servicer(add, None, service)])
    yield address
    await handle.stop(0)


def version_of(service: str) -> Callable[[bytes], bytes]:
    # The answers of all services have the same shape: one ServiceVersion, field 1.
    answer = guest_init_pb2.GuestInitGetVersionResponse(version=service_version(service))
    return lambda _: answer.SerializeToString()


async def pull_and_forward(run_dir: Path, capabilities: Message, age: Age) -> bytes:
    """Run today's session between an older or newer guest and an owner; return what it got."""
    response = age("porthole.guest.v1.GetGuestCapabilitiesResponse")
    response.capabilities.CopyFrom(capabilities)
    answers = {
        "GetVersion": version_of(GUEST_INIT),
        "GetGuestCapabilities": lambda _: cast("bytes", response.SerializeToString()),
    }
    async with answering(GUEST_INIT, run_dir, "guest-init.sock", answers) as guest_address:
        owner = SmallOwner(
            vm_owner_pb2.Vm(vm_id=VM_ID, guest_init_address=guest_address, traceparent=TRACEPARENT)
        )
        async with serving(owner, run_dir) as owner_address:
            await apply_guest_capabilities(owner_address, VM_ID)
    return owner.applied[0]


async def test_a_newer_guests_fields_pass_an_older_session_untouched(
    run_dir: Path, newer: Age
) -> None:
    sent = new_capabilities(newer)
    arrived = newer.parse(
        "porthole.vmowner.v1.ApplyGuestCapabilitiesRequest",
        await pull_and_forward(run_dir, sent, newer),
    )
    assert arrived.vm_id == VM_ID
    assert arrived.capabilities == sent
    assert (arrived.capabilities.iommu_mode, arrived.capabilities.swiotlb_pool.areas) == (
        "strict",
        4,
    )


async def test_today_reads_what_it_knows_of_a_newer_guest(run_dir: Path, newer: Age) -> None:
    raw = await pull_and_forward(run_dir, new_capabilities(newer), newer)
    request = vm_owner_pb2.ApplyGuestCapabilitiesRequest.FromString(raw)
    report = report_from_proto(request.capabilities)
    assert (report.base, report.size_bytes) == (POOL.base, POOL.size_bytes)
    assert (report.kernel_release, report.seccomp_user_notification) == (
        "7.1.0-1",
        True,
    )


async def test_an_owner_that_stores_and_shows_capabilities_keeps_what_it_does_not_know(
    run_dir: Path, newer: Age
) -> None:
    raw = await pull_and_forward(run_dir, new_capabilities(newer), newer)
    request = vm_owner_pb2.ApplyGuestCapabilitiesRequest.FromString(raw)
    shown = vm_owner_pb2.GetVmResponse()
    shown.vm.capabilities.CopyFrom(request.capabilities)
    seen = newer.parse("porthole.vmowner.v1.GetVmResponse", shown.SerializeToString())
    assert seen.vm.capabilities == new_capabilities(newer)


async def test_an_older_guests_capabilities_are_valid(run_dir: Path, older: Age) -> None:
    sent = older(CAPABILITIES, swiotlb_pool={"base": POOL.base, "size_bytes": POOL.size_bytes})
    raw = await pull_and_forward(run_dir, sent, older)
    request = vm_owner_pb2.ApplyGuestCapabilitiesRequest.FromString(raw)
    report = report_from_proto(request.capabilities)
    assert (report.base, report.size_bytes) == (POOL.base, POOL.size_bytes)
    assert (report.kernel_release, report.seccomp_user_notification) == ("", None)


async def test_empty_capabilities_are_valid(run_dir: Path, older: Age) -> None:
    raw = await pull_and_forward(run_dir, older(CAPABILITIES), older)
    request = vm_owner_pb2.ApplyGuestCapabilitiesRequest.FromString(raw)
    assert request.HasField("capabilities")
    assert report_from_proto(request.capabilities) == Report()


async def test_an_older_owner_accepts_the_report_of_todays_guest(run_dir: Path, older: Age) -> None:
    arrived: list[Any] = []

    def report(raw: bytes) -> bytes:
        arrived.append(older.parse("porthole.guest.v1.ReportGuestCapabilitiesRequest", raw))
        answer = older("porthole.guest.v1.ReportGuestCapabilitiesResponse", pool_latched=True)
        return cast("bytes", answer.SerializeToString())

    answers = {"GetVersion": version_of(INIT_CHANNEL), "ReportGuestCapabilities": report}
    request = guest_init_pb2.ReportGuestCapabilitiesRequest()
    request.capabilities.kernel_release = "6.18.26.3-1"
    request.capabilities.swiotlb_pool.base = POOL.base
    request.capabilities.swiotlb_pool.size_bytes = POOL.size_bytes
    async with answering(INIT_CHANNEL, run_dir, "init.sock", answers) as address:
        peer = await connect(address, InitChannelStub, INIT_CHANNEL)
        assert (await peer.stub.ReportGuestCapabilities(request)).pool_latched
        await peer.close()
    [report_seen] = arrived
    assert report_seen.capabilities.swiotlb_pool.base == POOL.base
    # The older owner keeps the fields that it does not know.
    kept = guest_capabilities_pb2.GuestCapabilities.FromString(
        report_seen.capabilities.SerializeToString()
    )
    assert kept == request.capabilities


async def test_a_newer_clients_field_does_not_disturb_todays_service(
    run_dir: Path, newer: Age
) -> None:
    request = newer("porthole.vmowner.v1.ApplyGuestCapabilitiesRequest", vm_id=VM_ID)
    request.capabilities.CopyFrom(new_capabilities(newer))
    owner = SmallOwner(None)
    async with serving(owner, run_dir) as address, grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"/{VM_OWNER}/ApplyGuestCapabilities")
        await call(request.SerializeToString())
    seen = vm_owner_pb2.ApplyGuestCapabilitiesRequest.FromString(owner.applied[0])
    assert seen.capabilities.swiotlb_pool.base == POOL.base


async def test_a_method_that_an_older_service_lacks_is_a_clear_error(run_dir: Path) -> None:
    answers = {"GetVersion": version_of(VM_OWNER)}
    async with answering(VM_OWNER, run_dir, "owner.sock", answers) as address:
        peer = await connect(address, VmOwnerStub, VM_OWNER)
        with pytest.raises(FailedPreconditionError) as caught:
            await peer.stub.ConfigureNetworking(vm_owner_pb2.ConfigureNetworkingRequest())
        await peer.close()
    assert caught.value.reason == "METHOD_UNIMPLEMENTED"


def _all_messages(
    messages: Iterable[descriptor_pb2.DescriptorProto],
) -> Iterator[descriptor_pb2.DescriptorProto]:
    for message in messages:
        yield message
        yield from _all_messages(message.nested_type)


@pytest.mark.parametrize(
    "module",
    [
        guest_capabilities_pb2,
        guest_init_pb2,
        device_pb2,
        vm_owner_pb2,
        device_host_pb2,
        machine_pb2,
    ],
)
def test_no_field_has_a_number_of_third_parties(module: Any) -> None:
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    assert file.message_type
    taken = {
        f"{message.name}.{field.name}"
        for message in _all_messages(file.message_type)
        for field in message.field
        if field.number in THIRD_PARTIES
    }
    assert taken == set()
