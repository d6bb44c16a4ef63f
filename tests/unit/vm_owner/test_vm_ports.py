"""The ports of a VM: mapped by eth0 on a user-mode network, and never left behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from porthole.handshake.v1 import port_pb2

from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from services.handshake.ports import PortKey, PortMapping, PortProtocol, PortState, normal
from services.vm_owner.networking import NetworkRequest
from services.vm_owner.states import VmState
from services.vm_owner.wslconfig import NetworkingMode as Mode
from tests.support.owner_peers import FREE_PORT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from services.handshake.events import Event
    from services.vm_owner.vm import Vm
    from tests.support.owner_peers import Rig

TCP = PortProtocol.TCP
WEB = PortKey(TCP, "127.0.0.1", 8080)
WANTED = PortMapping(WEB, 80)
MAPPED = PortMapping(WEB, 80, PortState.LISTENING)
FORWARDING = "[wsl2]\nlocalhostForwarding=true\n"


class Forwarding:
    """Localhost forwarding of which a test makes the changes.

    Attributes:
        map_port: Maps a port, as forwarding does.
        unmap_port: Ends a mapping, likewise.
        is_running: Whether it was started and not closed.
    """

    def __init__(
        self,
        record: object,
        dial: object,
        map_port: Callable[[PortMapping], Awaitable[PortMapping]],
        unmap_port: Callable[[PortMapping], Awaitable[None]],
    ) -> None:
        self.map_port = map_port
        self.unmap_port = unmap_port
        self.is_running = False

    def start(self) -> None:
        self.is_running = True

    async def close(self) -> None:
        self.is_running = False


@pytest.fixture
def forwardings(monkeypatch: pytest.MonkeyPatch) -> list[Forwarding]:
    """All forwardings that have been made."""
    made: list[Forwarding] = []

    def make(*parts: Any) -> Forwarding:
        made.append(Forwarding(*parts))
        return made[-1]

    monkeypatch.setattr("services.vm_owner.vm.LocalhostForwarding", make)
    return made


async def networked(rig: Rig, wslconfig: str = "") -> Vm:
    vm = await rig.owner.create(rig.vm_spec(wslconfig=wslconfig))
    await rig.owner.configure_networking(vm.vm_id, NetworkRequest(Mode.VIRTIO_PROXY))
    rig.script.journal.clear()
    return vm


def said(trace: list[Event]) -> list[tuple[object, ...]]:
    return [
        (event.name, *list(event.attributes.values())[1:])
        for event in trace
        if event.name in (events.PORT_MAPPED, events.PORT_UNMAPPED)
    ]


def at_device_host(rig: Rig) -> list[tuple[str, int, int]]:
    return [
        (each.key.listen_address, each.key.listen_port, each.guest_port)
        for ports in rig.device_host.ports.values()
        for each in ports
    ]


async def test_a_port_is_mapped_listed_and_unmapped(rig: Rig, trace: list[Event]) -> None:
    vm = await networked(rig)
    [eth0] = [device for device in vm.devices.all() if device.spec.tag == "eth0"]
    assert await rig.owner.map_port(vm.vm_id, WANTED) == MAPPED
    assert await rig.owner.list_ports(vm.vm_id) == [MAPPED]
    await rig.owner.unmap_port(vm.vm_id, WEB)
    assert await rig.owner.list_ports(vm.vm_id) == []
    asked = [(call, argument) for _, call, argument in rig.script.journal]
    assert asked == [
        (call, eth0.instance_id) for call in ("MapPort", "ListPorts", "UnmapPort", "ListPorts")
    ]
    port = ("tcp", "127.0.0.1", 8080, 80)
    assert said(trace) == [(events.PORT_MAPPED, *port), (events.PORT_UNMAPPED, *port)]


async def test_a_free_port_and_the_default_address_are_answered(rig: Rig) -> None:
    vm = await networked(rig)
    mapping = await rig.owner.map_port(vm.vm_id, PortMapping(PortKey(TCP, "", 0), 80))
    assert mapping.key == PortKey(TCP, "127.0.0.1", FREE_PORT)
    await rig.owner.unmap_port(vm.vm_id, PortKey(TCP, "", FREE_PORT))
    assert at_device_host(rig) == []


def test_a_key_is_written_as_the_device_host_writes_it() -> None:
    assert normal(PortKey(TCP, "", 1)) == PortKey(TCP, "127.0.0.1", 1)
    assert normal(PortKey(TCP, "0:0::1", 1)) == PortKey(TCP, "::1", 1)
    assert normal(PortKey(TCP, "moon", 1)) == PortKey(TCP, "moon", 1)


@pytest.mark.parametrize("mode", [None, Mode.NAT, Mode.NONE])
async def test_without_a_user_mode_network_there_are_no_ports(
    rig: Rig, trace: list[Event], mode: Mode | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await rig.owner.create(rig.vm_spec())
    if mode is not None:
        for name in ("create_tap", "delete_tap"):
            monkeypatch.setattr(f"services.vm_owner.taps.{name}", lambda *_: None)
        await rig.owner.configure_networking(vm.vm_id, NetworkRequest(mode))
    for call in (
        rig.owner.map_port(vm.vm_id, WANTED),
        rig.owner.unmap_port(vm.vm_id, WEB),
        rig.owner.list_ports(vm.vm_id),
    ):
        with pytest.raises(FailedPreconditionError, match="VirtioProxy") as refused:
            await call
        assert refused.value.reason == "NO_USER_NETWORK"
    assert said(trace) == []


async def test_a_vm_that_has_ended_has_no_ports(rig: Rig) -> None:
    vm = await networked(rig)
    await rig.owner.map_port(vm.vm_id, WANTED)
    await rig.owner.terminate(vm.vm_id)
    for call in (
        rig.owner.map_port(vm.vm_id, WANTED),
        rig.owner.unmap_port(vm.vm_id, WEB),
        rig.owner.list_ports(vm.vm_id),
    ):
        with pytest.raises(FailedPreconditionError) as refused:
            await call
        assert refused.value.reason == "VM_TERMINATED"
    with pytest.raises(NotFoundError):
        await rig.owner.list_ports("nope")


async def test_a_refusal_reaches_the_client_and_changes_nothing(
    rig: Rig, trace: list[Event]
) -> None:
    vm = await networked(rig)
    await rig.owner.map_port(vm.vm_id, WANTED)
    with pytest.raises(AlreadyExistsError) as refused:
        await rig.owner.map_port(vm.vm_id, PortMapping(WEB, 81))
    assert refused.value.reason == "PORT_EXISTS"
    with pytest.raises(NotFoundError) as unknown:
        await rig.owner.unmap_port(vm.vm_id, PortKey(TCP, "127.0.0.1", 9))
    assert unknown.value.reason == "PORT_UNKNOWN"
    assert at_device_host(rig) == [("127.0.0.1", 8080, 80)]
    assert [name for name, *_ in said(trace)] == [events.PORT_MAPPED]


@pytest.mark.parametrize("port", [8081, 0])
@pytest.mark.parametrize(
    "lost", [UnavailableError("PEER_UNAVAILABLE", "x"), DeadlineExceededError("LATE", "x")]
)
async def test_a_mapping_whose_answer_is_lost_is_undone_and_no_other(
    rig: Rig, trace: list[Event], port: int, lost: UnavailableError | DeadlineExceededError
) -> None:
    vm = await networked(rig)
    await rig.owner.map_port(vm.vm_id, WANTED)
    rig.script.lost["MapPort"] = lost
    with pytest.raises(type(lost)):
        await rig.owner.map_port(vm.vm_id, PortMapping(PortKey(TCP, "127.0.0.1", port), 81))
    assert at_device_host(rig) == [("127.0.0.1", 8080, 80)]
    assert [name for name, *_ in said(trace)] == [events.PORT_MAPPED]


async def test_an_unmapping_whose_answer_is_lost_may_be_repeated(
    rig: Rig, trace: list[Event]
) -> None:
    vm = await networked(rig)
    await rig.owner.map_port(vm.vm_id, WANTED)
    rig.script.lost["UnmapPort"] = UnavailableError("PEER_UNAVAILABLE", "x")
    with pytest.raises(UnavailableError):
        await rig.owner.unmap_port(vm.vm_id, WEB)
    rig.script.lost.clear()
    await rig.owner.unmap_port(vm.vm_id, WEB)
    assert [name for name, *_ in said(trace)] == [events.PORT_MAPPED, events.PORT_UNMAPPED]
    with pytest.raises(NotFoundError):
        await rig.owner.unmap_port(vm.vm_id, WEB)


async def test_a_port_that_is_mapped_while_its_vm_begins_to_end_is_unmapped(
    rig: Rig, trace: list[Event]
) -> None:
    vm = await networked(rig)
    gate = rig.script.gates["MapPort"] = asyncio.Event()
    mapping = asyncio.create_task(rig.owner.map_port(vm.vm_id, WANTED))
    await rig.script.reached.wait()
    with vm.record.watch() as stream:
        ending = asyncio.create_task(rig.owner.terminate(vm.vm_id))
        async for item in stream:
            if item is VmState.SHUTTING_DOWN:
                break
    gate.set()
    with pytest.raises(FailedPreconditionError) as refused:
        await mapping
    assert refused.value.reason == "VM_SHUTTING_DOWN"
    await ending
    assert (at_device_host(rig), said(trace)) == ([], [])


async def test_a_lost_mapping_is_listed_with_its_cause(rig: Rig) -> None:
    vm = await networked(rig)
    await rig.owner.map_port(vm.vm_id, WANTED)
    for ports in rig.device_host.ports.values():
        ports[0].state = port_pb2.PORT_STATE_LOST
        ports[0].reason, ports[0].detail = "PORT_IN_USE", "another has it"
    assert await rig.owner.list_ports(vm.vm_id) == [
        PortMapping(WEB, 80, PortState.LOST, "PORT_IN_USE", "another has it")
    ]


async def test_forwarding_ends_the_mapping_that_it_has_made(
    rig: Rig, forwardings: list[Forwarding], trace: list[Event]
) -> None:
    vm = await networked(rig, FORWARDING)
    [forwarding] = forwardings
    mapping = await forwarding.map_port(PortMapping(WEB, 8080))
    await forwarding.unmap_port(mapping)
    await forwarding.unmap_port(mapping)
    assert await rig.owner.list_ports(vm.vm_id) == []
    assert [name for name, *_ in said(trace)] == [events.PORT_MAPPED, events.PORT_UNMAPPED]


@pytest.mark.parametrize("guest_port", [8080, 9000])
async def test_forwarding_ends_no_mapping_that_was_made_by_hand(
    rig: Rig, forwardings: list[Forwarding], guest_port: int
) -> None:
    vm = await networked(rig, FORWARDING)
    [forwarding] = forwardings
    automatic = await forwarding.map_port(PortMapping(WEB, 8080))
    await rig.owner.unmap_port(vm.vm_id, WEB)
    by_hand = await rig.owner.map_port(vm.vm_id, PortMapping(WEB, guest_port))
    await forwarding.unmap_port(automatic)
    assert await rig.owner.list_ports(vm.vm_id) == [by_hand]


async def test_forwarding_begins_and_ends_with_networking_though_the_caller_has_gone(
    rig: Rig, forwardings: list[Forwarding]
) -> None:
    vm = await rig.owner.create(rig.vm_spec(wslconfig=FORWARDING))
    gate = rig.script.gates["CreateDevice"] = asyncio.Event()
    request = NetworkRequest(Mode.VIRTIO_PROXY)
    caller = asyncio.create_task(rig.owner.configure_networking(vm.vm_id, request))
    await rig.script.reached.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    gate.set()
    async with vm.lock:
        [forwarding] = forwardings
        assert forwarding.is_running
    await rig.owner.terminate(vm.vm_id)
    assert not forwarding.is_running
