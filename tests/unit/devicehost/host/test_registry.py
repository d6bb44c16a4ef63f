from __future__ import annotations

import dataclasses
import os
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from services.devicehost.host import DeviceHost, DeviceState, FsBackend, HostedDevice, NetBackend
from services.devicehost.host.device import Identity
from services.devicehost.host.registry import REMEMBERED_DEVICES
from services.devicehost.memory import WindowQuota, confined
from services.devicehost.throttle import Throttle
from services.handshake import events
from services.handshake.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
)
from services.handshake.pool import Gpa, SwiotlbPool, format_aperture, format_token
from services.wire import vhost_user as wire
from services.wire.vhost_user import Request
from tests.support.descriptors import open_fds
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import GuestRam, GuestRing
from tests.unit.devicehost.host.conftest import MIB, OTHER_VM, POOL, TOKEN, VM, spec
from tests.unit.devicehost.vhost_user.conftest import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from services.devicehost.host import DeviceSpec
    from tests.unit.devicehost.host.conftest import Rig

OTHER_TOKEN = format_token(SwiotlbPool(Gpa(2 * MIB), 2 * MIB))


def test_a_device_is_listening_and_connectable_when_it_has_been_created(rig: Rig) -> None:
    info = rig.create()
    assert info.state is DeviceState.LISTENING
    assert info.pool == POOL
    assert info.socket_path == rig.run_dir / "dev" / "d1.sock"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(info.socket_path))
    assert rig.host.get_device(VM, "d1").options == info.options


def test_devices_are_listed_by_vm_in_order(rig: Rig) -> None:
    rig.create("b")
    rig.create("a")
    rig.create("c", vm_id=OTHER_VM)
    assert [d.instance_id for d in rig.host.list_devices(VM)] == ["b", "a"]
    assert [d.instance_id for d in rig.host.list_devices()] == ["b", "a", "c"]
    assert rig.host.list_devices("no such VM") == []


def test_removed_devices_are_remembered_for_a_while_but_not_without_bound(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(REMEMBERED_DEVICES + 1):
        rig.create(f"d{number}")
        rig.host.remove_device(VM, f"d{number}")
    remembered = rig.host.removed_devices(3600)
    assert [d.instance_id for d in remembered] == [f"d{n + 1}" for n in range(REMEMBERED_DEVICES)]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3601)
    assert rig.host.removed_devices(3600) == []


def test_removal_marks_tears_down_and_forgets(rig: Rig) -> None:
    info = rig.create()
    with RawFrontEnd(info.socket_path) as front:
        assert front.ask_u64(Request.GET_QUEUE_NUM) == 9
        rig.host.remove_device(VM, "d1")
        assert front.is_closed()
    assert not info.socket_path.exists()
    assert rig.devices[0].closed
    assert rig.changes == ["d1 connected", "d1 shutting_down"]
    with pytest.raises(NotFoundError) as caught:
        rig.host.get_device(VM, "d1")
    assert caught.value.reason == "DEVICE_UNKNOWN"


def test_removing_what_is_unknown_is_not_found(rig: Rig) -> None:
    rig.create("d1")
    for vm_id, instance_id in ((VM, "d2"), (OTHER_VM, "d1")):
        with pytest.raises(NotFoundError):
            rig.host.remove_device(vm_id, instance_id)
    assert len(rig.host.list_devices()) == 1


def test_an_instance_id_exists_once_on_the_host(rig: Rig) -> None:
    rig.create("d1")
    for vm_id in (VM, OTHER_VM):
        with pytest.raises(AlreadyExistsError) as caught:
            rig.create("d1", vm_id=vm_id)
        assert caught.value.reason == "DEVICE_EXISTS"
    assert len(rig.devices) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instance_id": ""}, "INSTANCE_ID_SYNTAX"),
        ({"instance_id": "../../etc/passwd"}, "INSTANCE_ID_SYNTAX"),
        ({"instance_id": "x" * 65}, "INSTANCE_ID_SYNTAX"),
        ({"vm_id": "not a uuid"}, "VM_ID_SYNTAX"),
        ({"vm_id": OTHER_VM}, "VM_ID_MISMATCH"),
        ({"tag": "another"}, "TAG_MISMATCH"),
        ({"options": f"share;colour=red;vm_id={VM}"}, "OPTION_UNKNOWN"),
        ({"options": f"share;swiotlb=0x0,1;vm_id={VM}"}, "SWIOTLB_TOKEN_SYNTAX"),
        ({"options": f"share;swiotlb=0x1001,4096;vm_id={VM}"}, "SWIOTLB_BASE_UNALIGNED"),
        ({"options": ""}, "OPTION_SYNTAX"),
        ({"options": f"share;rings=outside;vm_id={VM}"}, "OPTION_VALUE"),
        ({"options": f"share;rings=inside;vm_id={VM}"}, "RINGS_WITHOUT_POOL"),
        ({"options": f"share;aperture=0x1000,4096;vm_id={VM}"}, "APERTURE_WITHOUT_POOL"),
        ({"options": f"share;{TOKEN};aperture=0x1000,4096;vm_id={VM}"}, "APERTURE_OUTSIDE_POOL"),
        ({"backend": None}, "BACKEND_MISSING"),
        ({"backend": NetBackend("tap0"), "options": f"share;ro;vm_id={VM}"}, "OPTION_UNKNOWN"),
    ],
)
def test_what_cannot_be_a_device_is_refused_and_nothing_is_left(
    rig: Rig, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        rig.host.create_device(replace(spec(), **changes), rig.events.append)
    assert caught.value.reason == reason
    assert rig.host.list_devices() == []
    assert rig.devices == []
    assert not list((rig.run_dir / "dev").glob("*"))


@pytest.mark.parametrize("case", ["relative", "missing", "file"])
def test_a_directory_that_cannot_be_shared_is_refused_and_nothing_is_left(
    run_dir: Path, tmp_path: Path, case: str
) -> None:
    host = DeviceHost(run_dir, lambda info, detail: None)
    (tmp_path / "file").write_text("no directory")
    shared = "relative/dir" if case == "relative" else str(tmp_path / case)
    fds = open_fds()
    with pytest.raises(PortholeError) as caught:
        host.create_device(replace(spec(), backend=FsBackend(shared)), lambda event: None)
    assert caught.value.kind in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert shared in caught.value.message
    assert host.list_devices() == []
    assert not list((run_dir / "dev").glob("*"))
    assert open_fds() == fds


def test_a_socket_path_that_is_too_long_is_refused_and_the_device_closed(rig: Rig) -> None:
    deep = DeviceHost(rig.run_dir / ("x" * 100), lambda info, detail: None, rig._make)
    with pytest.raises(InvalidArgumentError) as caught:
        deep.create_device(spec(), rig.events.append)
    assert caught.value.reason == "SOCKET_PATH"
    assert rig.devices[-1].closed
    assert deep.list_devices() == []


def test_new_devices_must_have_the_token_of_their_vm(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, TOKEN)
    rig.create("d1", token=TOKEN)
    for token in ("", OTHER_TOKEN):
        with pytest.raises(FailedPreconditionError) as caught:
            rig.create("d2", token=token)
        assert caught.value.reason == "SWIOTLB_TOKEN_MISMATCH"
        assert TOKEN in caught.value.message
    rig.create("d2", vm_id=OTHER_VM, token=OTHER_TOKEN)


def test_the_pool_of_a_vm_is_set_once(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, TOKEN)
    rig.host.set_swiotlb(VM, TOKEN)
    with pytest.raises(FailedPreconditionError) as caught:
        rig.host.set_swiotlb(VM, OTHER_TOKEN)
    assert caught.value.reason == "SWIOTLB_CONFLICT"
    rig.create("d1", token=TOKEN)
    rig.host.remove_device(VM, "d1")
    with pytest.raises(FailedPreconditionError):
        rig.create("d1", token=OTHER_TOKEN)


@pytest.mark.parametrize("token", ["", "0x1000,4096", "swiotlb=1,2", TOKEN + " "])
def test_a_token_that_does_not_parse_is_refused(rig: Rig, token: str) -> None:
    with pytest.raises(InvalidArgumentError):
        rig.host.set_swiotlb(VM, token)


def test_a_forgotten_vm_leaves_no_device_and_no_pool(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, TOKEN)
    info = rig.create("d1", token=TOKEN)
    other = rig.create("d2", vm_id=OTHER_VM)
    rig.host.forget_vm(VM)
    assert not info.socket_path.exists()
    assert [device.instance_id for device in rig.host.list_devices()] == ["d2"]
    assert other.socket_path.exists()
    rig.host.set_swiotlb(VM, OTHER_TOKEN)


def test_a_vm_without_devices_is_forgotten_with_its_pool_and_forgetting_it_again_is_harmless(
    rig: Rig,
) -> None:
    rig.host.set_swiotlb(VM, TOKEN)
    for _ in range(2):
        rig.host.forget_vm(VM)
    rig.host.set_swiotlb(VM, OTHER_TOKEN)


def test_a_device_that_is_removed_before_it_is_made_is_never_made(run_dir: Path) -> None:
    path = run_dir / "d1.sock"
    entry = HostedDevice(
        Identity(VM, "d1", "virtio-fs", "share", "share", path),
        confined(POOL, WindowQuota()),
        is_known=lambda: True,
        emit=lambda event: None,
        on_change=lambda info, detail: None,
        on_exhausted=lambda info, exhaustion: None,
    )
    assert entry.mark_shutting_down()
    with pytest.raises(FailedPreconditionError) as caught:
        entry.start(lambda access, meter: pytest.fail("it was made"))
    assert caught.value.reason == "HOST_SHUTTING_DOWN"
    assert not path.exists()


def test_a_host_that_closes_while_a_device_is_made_forgets_it_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = HostedDevice.start

    def start_late(entry: HostedDevice, *arguments: Any) -> None:
        rig.host.close()
        start(entry, *arguments)

    monkeypatch.setattr(HostedDevice, "start", start_late)
    rig.host.set_swiotlb(VM, TOKEN)  # the VM outlives its devices
    with pytest.raises(FailedPreconditionError) as caught:
        rig.create("d1")
    assert caught.value.reason == "HOST_SHUTTING_DOWN"
    assert [each.instance_id for each in rig.host.removed_devices(60.0)] == ["d1"]


def test_close_refuses_new_devices_and_tears_all_down(rig: Rig) -> None:
    infos = [rig.create("d1"), rig.create("d2", vm_id=OTHER_VM)]
    rig.host.close()
    assert [info.socket_path.exists() for info in infos] == [False, False]
    assert all(device.closed for device in rig.devices)
    assert rig.changes == ["d1 shutting_down", "d2 shutting_down"]
    assert rig.host.list_devices() == []
    with pytest.raises(FailedPreconditionError) as caught:
        rig.create("d3")
    assert caught.value.reason == "HOST_SHUTTING_DOWN"


def test_a_device_that_is_being_created_while_the_host_closes_leaves_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    making, may_go_on = threading.Event(), threading.Event()
    make = rig.host._make

    def slow(*args: Any) -> Any:
        making.set()
        may_go_on.wait(10)
        return make(*args)

    monkeypatch.setattr(rig.host, "_make", slow)
    creating = threading.Thread(target=rig.create)
    creating.start()
    assert making.wait(10)
    closing = threading.Thread(target=rig.host.close)
    closing.start()
    rig.wait_for("d1 shutting_down")
    may_go_on.set()
    creating.join(10)
    closing.join(10)
    assert rig.devices[0].closed
    assert not (rig.run_dir / "dev" / "d1.sock").exists()
    assert rig.host.list_devices() == []


def test_events_are_emitted_once_with_the_pool_and_in_order(rig: Rig) -> None:
    info = rig.create()
    ram = GuestRam(32 * MIB)
    for _ in range(2):
        with RawFrontEnd(info.socket_path) as front, RingEvents() as fds:
            front.negotiate()
            assert front.attach(ram) == 0
            ring = GuestRing(ram, POOL.base, 16)
            ram.write(ring.desc, bytes(ring.end - ring.desc))
            front.start(1, ring, fds)
            ring.chain(0, readable=[(POOL.base + MIB, 8)])
            ring.offer(0)
            os.eventfd_write(fds.kick, 1)
            rig.wait_for("FirstRequestCompleted")
    assert [event.name for event in rig.events] == ["ApertureCreated", "FirstRequestCompleted"]
    assert rig.events[0].attributes["porthole.pool.base"] == POOL.base
    assert rig.events[0].attributes["porthole.device.id"] == "d1"
    ram.close()


def test_a_device_without_a_token_emits_that_it_has_windows(rig: Rig) -> None:
    info = rig.create(token="")
    ram = GuestRam(32 * MIB)
    with RawFrontEnd(info.socket_path) as front:
        front.negotiate()
        assert front.attach(ram) == 0
    assert [event.name for event in rig.events] == ["WindowsEnabled"]
    assert rig.host.window_quotas() == {VM: (0, 512)}
    ram.close()


def test_a_refused_address_marks_this_device_only(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = rig.create("bad"), rig.create("good")
    ram = GuestRam(32 * MIB)
    with (
        RawFrontEnd(bad.socket_path) as front,
        RawFrontEnd(good.socket_path) as other,
        RingEvents() as fds,
    ):
        front.negotiate()
        other.negotiate()
        assert front.attach(ram) == 0
        assert other.attach(ram) == 0
        ring = GuestRing(ram, POOL.base, 16)
        front.start(1, ring, fds)
        ring.chain(0, readable=[(0xDEAD000, 8)])
        ring.offer(0)
        os.eventfd_write(fds.kick, 1)
        rig.wait_for("bad needs_reset")
        assert rig.host.get_device(VM, "bad").state is DeviceState.NEEDS_RESET
        assert rig.host.get_device(VM, "bad").counters.translations_refused == 1
        assert rig.host.get_device(VM, "good").state is DeviceState.ATTACHED
        assert "0xdead000" in caplog.text
        assert "device bad" in caplog.text
        assert front.command(Request.RESET_DEVICE) == 0
        assert rig.host.get_device(VM, "bad").state is DeviceState.ATTACHED
    ram.close()


def test_failures_that_a_guest_repeats_are_logged_once_a_second(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = 100.0
    rig.create()
    device = rig.host._vms[VM].devices["d1"]
    device._throttle = Throttle(clock=lambda: now_s)
    device.connected()
    device.attached()
    for _ in range(1000):
        device.failed(InvalidArgumentError("ADDRESS_OUT_OF_BOUNDS", "an address"))
        device.was_reset()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    now_s += 1
    device.failed(InvalidArgumentError("ADDRESS_OUT_OF_BOUNDS", "an address"))
    assert len(caplog.records) == 2
    assert "999 more like it not logged" in caplog.text


def test_what_a_device_holds_of_guest_memory_is_shown_and_logged_when_it_is_given_up(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = f"share;rings=anywhere;{TOKEN};vm_id={VM}"
    free = rig.host.create_device(replace(spec("free"), options=options), rig.events.append)
    options = f"share;rings=inside;{TOKEN};vm_id={VM}"
    bound = rig.host.create_device(replace(spec("bound"), options=options), rig.events.append)
    ram = GuestRam(32 * MIB)
    for info, held in ((free, 1), (bound, 0)):
        with RawFrontEnd(info.socket_path) as front, RingEvents() as events:
            front.negotiate()
            assert front.attach(ram) == 0
            assert rig.host.get_device(VM, info.instance_id).guest_descriptors == held
            ring = GuestRing(ram, POOL.base, 16)
            front.start(1, ring, events)
            ring.chain(0, writable=[(POOL.base + MIB, 16)])
            ring.offer(0)
            os.eventfd_write(events.kick, 1)
            assert eventually(
                lambda: rig.host.get_device(VM, info.instance_id).guest_descriptors == 0  # noqa: B023
            )
    ram.close()
    said = [record.message for record in caplog.records if "descriptors of guest" in record.message]
    assert [line.partition(": ")[2] for line in said] == [
        f"descriptors of guest memory: 1 closed, since {why}; 0 held [0 more like it not logged]"
        for why in ("the guest makes requests", "rings are inside the pool")
    ]
    assert f"device bound (virtio-fs 'share' of VM {VM})" in said[1]


def test_a_device_with_a_part_of_the_pool_says_so_and_needs_the_vms_token(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, TOKEN)
    part = SwiotlbPool(Gpa(POOL.base + MIB), MIB)
    own = format_aperture(part)
    info = rig.host.create_device(
        replace(spec(), options=f"share;{TOKEN};{own};vm_id={VM}"), rig.events.append
    )
    assert info.pool == part
    other = replace(spec("d2"), options=f"share;{OTHER_TOKEN};{own};vm_id={VM}")
    with pytest.raises((FailedPreconditionError, InvalidArgumentError)):
        rig.host.create_device(other, rig.events.append)


def test_what_is_given_up_again_and_again_is_logged_once_a_second(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    now_s = 100.0
    device = hosted(rig, spec(rig.create().instance_id))
    device._descriptor_throttle = Throttle(clock=lambda: now_s)
    for _ in range(1000):
        device.descriptors_closed(2, "of a test")
    now_s += 1
    device.descriptors_closed(2, "of a test")
    assert len(caplog.records) == 2
    assert "descriptors of guest memory: 2 closed, since of a test; 0 held" in caplog.text
    assert "999 more like it not logged" in caplog.text


def test_eight_doorbells_and_the_high_priority_queue(rig: Rig) -> None:
    info = rig.create()
    with RawFrontEnd(info.socket_path) as front, RingEvents() as fds:
        front.negotiate()
        outcomes = [
            front.command(Request.SET_VRING_KICK, wire.U64.pack(queue), [fds.kick])
            for queue in range(9)
        ]
        assert outcomes == [0] * 9


def hosted(rig: Rig, device: DeviceSpec) -> HostedDevice:
    return rig.host._vms[device.vm_id].devices[device.instance_id]


def test_a_ninth_data_queue_gets_no_doorbell_until_another_gives_its_own_up(rig: Rig) -> None:
    rig.create()
    device = hosted(rig, spec())
    for queue in range(1, 9):
        device.register_doorbell(queue)
    device.register_doorbell(8)
    with pytest.raises(PermissionDeniedError) as caught:
        device.register_doorbell(9)
    assert caught.value.reason == "DOORBELL_LIMIT"
    device.unregister_doorbell(3)
    device.register_doorbell(9)


def test_eight_pairs_of_an_adapter_and_its_control_queue_have_doorbells(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.create()
    device = hosted(rig, spec())
    adapter = dataclasses.replace(device.identity, device_class=events.NET)
    monkeypatch.setattr(device, "identity", adapter)
    for queue in range(17):
        device.register_doorbell(queue)
    with pytest.raises(PermissionDeniedError) as caught:
        device.register_doorbell(-1)
    assert caught.value.reason == "DOORBELL_LIMIT"
    device.unregister_doorbell(5)
    with pytest.raises(PermissionDeniedError):
        device.register_doorbell(-1)
    device.unregister_doorbell(4)
    device.register_doorbell(-1)


def test_a_device_that_is_shutting_down_or_unknown_gets_no_doorbell(rig: Rig) -> None:
    rig.create()
    device = hosted(rig, spec())
    device.mark_shutting_down()
    with pytest.raises(PermissionDeniedError) as caught:
        device.register_doorbell(1)
    assert caught.value.reason == "DEVICE_SHUTTING_DOWN"
    device.tear_down()
    rig.host._forget(device)
    with pytest.raises(PermissionDeniedError) as caught:
        device.register_doorbell(1)
    assert caught.value.reason == "DEVICE_UNKNOWN"
