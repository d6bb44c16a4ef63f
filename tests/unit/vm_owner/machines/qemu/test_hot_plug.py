"""Devices plugged into QEMU: the commands, and what is left after a failure."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import DeadlineExceededError, FailedPreconditionError
from services.vm_owner.machines.qemu.hot_plug import FsDevice, HotPlug, NetDevice
from services.vm_owner.machines.qemu.ports import PORTS, Ports

if TYPE_CHECKING:
    from collections.abc import Mapping


class FakeQemu:
    """Notes commands, refuses some; its guest lets go of a device at once unless it keeps them."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, Mapping[str, object]]] = []
        self.refused: set[str] = set()
        self.keeps = False
        self.chardevs: list[dict[str, object]] = []
        self.plug = HotPlug(self, Ports())

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        self.commands.append((command, arguments or {}))
        if command in self.refused:
            raise FailedPreconditionError("QEMU_REFUSED", f"QEMU refused {command}: no")
        if command == "device_del" and not self.keeps:
            assert arguments is not None
            self.plug.on_deleted(str(arguments["id"]))
        return self.chardevs if command == "query-chardev" else {}

    def last_port(self) -> object:
        return [arguments["bus"] for name, arguments in self.commands if name == "device_add"][-1]

    def names(self) -> list[str]:
        return [name for name, _ in self.commands]


FS = FsDevice("data", 2)
NET = NetDevice("52:54:00:00:00:01", 0)


async def test_a_share_is_a_socket_and_a_device_on_a_port_that_bounces() -> None:
    qemu = FakeQemu()
    await qemu.plug.plug("a", "/run/a.sock", FS)
    assert qemu.commands == [
        (
            "chardev-add",
            {
                "id": "socket-a",
                "backend": {
                    "type": "socket",
                    "data": {
                        "addr": {"type": "unix", "data": {"path": "/run/a.sock"}},
                        "server": False,
                    },
                },
            },
        ),
        (
            "device_add",
            {
                "id": "device-a",
                "driver": "vhost-user-fs-pci",
                "bus": "port0",
                "iommu_platform": True,
                "chardev": "socket-a",
                "tag": "data",
                "queue-size": 1024,
                "num-request-queues": 2,
            },
        ),
    ]


async def test_an_adapter_has_a_back_end_between_and_all_go_in_reverse_order() -> None:
    qemu = FakeQemu()
    await qemu.plug.plug("a", "/run/a.sock", NET)
    assert qemu.commands[-1][1]["mac"] == "52:54:00:00:00:01"
    assert qemu.commands[-1][1]["vectors"] == 0
    assert "host_mtu" not in qemu.commands[-1][1]
    await qemu.plug.unplug("a", 1.0)
    assert qemu.names() == [
        *("chardev-add", "netdev_add", "device_add"),
        *("device_del", "netdev_del", "chardev-remove"),
    ]
    assert "a" not in qemu.plug


async def test_an_adapter_tells_the_guest_how_long_frames_may_be() -> None:
    qemu = FakeQemu()
    await qemu.plug.plug("a", "/run/a.sock", replace(NET, mtu=65520))
    assert qemu.commands[-1][1]["host_mtu"] == 65520


async def test_the_link_of_an_adapter_goes_and_comes_back() -> None:
    qemu = FakeQemu()
    await qemu.plug.plug("a", "/run/a.sock", NET)
    for is_up in (False, True):
        await qemu.plug.set_link("a", is_up)
        assert qemu.commands[-1] == ("set_link", {"name": "device-a", "up": is_up})


async def test_what_the_guest_does_not_have_has_no_link() -> None:
    qemu = FakeQemu()
    await qemu.plug.set_link("a", True)
    qemu.plug.reserve("a")
    await qemu.plug.set_link("a", True)
    assert qemu.commands == []


async def test_a_port_is_free_again_after_its_device() -> None:
    qemu = FakeQemu()
    for _ in range(PORTS + 1):
        await qemu.plug.plug("a", "/run/a.sock", FS)
        await qemu.plug.unplug("a", 1.0)
    assert {c[1]["bus"] for c in qemu.commands if c[0] == "device_add"} == {"port0"}


@pytest.mark.parametrize("refused", ["chardev-add", "netdev_add", "device_add"])
async def test_what_a_refusal_leaves_is_removed_by_unplugging(refused: str) -> None:
    qemu = FakeQemu()
    qemu.refused = {refused, "device_del", "qom-list"}
    with pytest.raises(FailedPreconditionError):
        await qemu.plug.plug("a", "/run/a.sock", NET)
    qemu.commands.clear()
    await qemu.plug.unplug("a", 1.0)
    left = {
        "chardev-add": [],
        "netdev_add": ["chardev-remove"],
        "device_add": ["device_del", "qom-list", "netdev_del", "chardev-remove"],
    }
    assert qemu.names() == left[refused]
    qemu.refused = set()
    await qemu.plug.plug("b", "/run/b.sock", FS)
    assert qemu.last_port() == "port0"


async def test_a_guest_that_keeps_a_device_keeps_its_port_until_it_lets_go() -> None:
    qemu = FakeQemu()
    qemu.keeps = True
    await qemu.plug.plug("a", "/run/a.sock", FS)
    with pytest.raises(DeadlineExceededError) as kept:
        await qemu.plug.unplug("a", 0.01)
    assert kept.value.reason == "GUEST_KEEPS_DEVICE"
    await qemu.plug.plug("b", "/run/b.sock", FS)
    assert qemu.last_port() == "port1"
    qemu.plug.on_deleted("device-a")
    await asyncio.sleep(0.01)
    assert qemu.names()[-1] == "chardev-remove"
    await qemu.plug.plug("c", "/run/c.sock", FS)
    assert qemu.last_port() == "port0"


class SlowQemu(FakeQemu):
    """Answers in the next turn of the loop."""

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> object:
        answer = await super().execute(command, arguments)
        await asyncio.sleep(0)
        return answer


async def test_a_guest_that_lets_go_while_it_is_waited_for_again() -> None:
    qemu = SlowQemu()
    await qemu.plug.plug("a", "/run/a.sock", NET)
    qemu.keeps = True
    with pytest.raises(DeadlineExceededError):
        await qemu.plug.unplug("a", 0.01)
    again = asyncio.create_task(qemu.plug.unplug("a", 10))
    await asyncio.sleep(0.01)
    qemu.plug.on_deleted("device-a")
    await again
    await asyncio.sleep(0.01)
    assert [qemu.names().count(name) for name in ("netdev_del", "chardev-remove")] == [1, 1]
    await qemu.plug.plug("b", "/run/b.sock", FS)
    assert qemu.last_port() == "port0"


async def test_a_reserved_port_is_the_one_that_its_device_gets() -> None:
    qemu = FakeQemu()
    assert [qemu.plug.reserve(name) for name in ("a", "b", "a")] == [0, 1, 0]
    await qemu.plug.plug("b", "/run/b.sock", FS)
    assert qemu.last_port() == "port1"
    qemu.plug.give_back("a")
    assert qemu.plug.reserve("c") == 0
    assert qemu.names() == ["chardev-add", "device_add"]


@pytest.mark.parametrize("refused", ["", "device_add"])
async def test_only_a_port_without_a_device_is_given_back(refused: str) -> None:
    qemu = FakeQemu()
    qemu.refused = {refused}
    with suppress(FailedPreconditionError):
        await qemu.plug.plug("a", "/run/a.sock", FS)
    qemu.plug.give_back("a")
    assert "a" in qemu.plug
    assert qemu.plug.reserve("b") == 1
    qemu.plug.give_back("unknown")


async def test_unplugging_what_was_only_reserved_frees_its_port() -> None:
    qemu = FakeQemu()
    qemu.plug.reserve("a")
    await qemu.plug.unplug("a", 1.0)
    assert qemu.commands == []
    assert qemu.plug.reserve("b") == 0


async def test_a_port_that_a_guest_keeps_is_not_reserved_for_another() -> None:
    qemu = FakeQemu()
    qemu.keeps = True
    await qemu.plug.plug("a", "/run/a.sock", FS)
    with pytest.raises(DeadlineExceededError):
        await qemu.plug.unplug("a", 0.01)
    qemu.plug.give_back("a")
    assert qemu.plug.reserve("b") == 1


async def test_a_socket_whose_other_end_is_gone_is_known() -> None:
    qemu = FakeQemu()
    await qemu.plug.plug("a", "/run/a.sock", FS)
    qemu.chardevs = [{"label": "socket-a", "filename": "unix:/run/a.sock"}]
    assert await qemu.plug.is_connected("a")
    qemu.chardevs = [{"label": "socket-a", "filename": "disconnected:unix:/run/a.sock"}]
    assert not await qemu.plug.is_connected("a")
    assert not await qemu.plug.is_connected("b")


async def test_a_device_that_was_never_plugged_in_needs_no_unplugging() -> None:
    qemu = FakeQemu()
    await qemu.plug.unplug("a", 1.0)
    assert qemu.commands == []
