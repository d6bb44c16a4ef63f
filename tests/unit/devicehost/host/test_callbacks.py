"""A callback, or a function that counts what is in use, may call the registry: its lock is free."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from services.devicehost.accounting import Bound
from services.devicehost.host import DeviceHost, DeviceInfo
from services.handshake.errors import NotFoundError
from tests.support.front_end import RawFrontEnd
from tests.support.guest_ring import GuestRam
from tests.unit.devicehost.host.conftest import MIB, OTHER_VM, VM, NullDevice, spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from services.handshake.events import Event

DEADLINE_S = 10.0


class Caller:
    """A host, and a thread that calls it from within every callback."""

    def __init__(self, run_dir: Path) -> None:
        self.called: list[str] = []
        self.host = DeviceHost(
            run_dir, self._on_change, lambda *_: NullDevice(), on_exhausted=self._on_exhausted
        )

    def create(self, instance_id: str = "d1", vm_id: str = VM) -> DeviceInfo:
        return self.host.create_device(spec(instance_id, vm_id=vm_id), self._emit)

    def _on_change(self, info: DeviceInfo, detail: str) -> None:
        self._call(str(info.state))

    def _on_exhausted(self, info: DeviceInfo, exhaustion: object) -> None:
        self._call("exhausted")

    def _emit(self, event: Event) -> None:
        self._call(event.name)

    def _call(self, what: str) -> None:
        within(lambda: [d.state for d in self.host.list_devices()])
        self.called.append(what)


def within(call: Callable[[], object]) -> None:
    """Call on a thread of its own; fails when that waits for a lock that is held here."""
    done = threading.Event()

    def run() -> None:
        call()
        done.set()

    threading.Thread(target=run, daemon=True).start()
    assert done.wait(DEADLINE_S), "a lock is held while others are called"


@pytest.fixture
def caller(run_dir: Path) -> Iterator[Caller]:
    caller = Caller(run_dir)
    yield caller
    caller.host.close()


def test_a_removal_reports_the_new_state_with_the_lock_free(caller: Caller) -> None:
    caller.create()
    caller.host.remove_device(VM, "d1")
    assert caller.called == ["shutting_down"]


def test_the_ends_of_a_vm_and_of_the_host_report_with_the_lock_free(caller: Caller) -> None:
    caller.create("d1")
    caller.create("d2")
    caller.create("d3", OTHER_VM)
    caller.host.forget_vm(VM)
    assert caller.called == ["shutting_down"] * 2
    caller.host.close()
    assert caller.called == ["shutting_down"] * 3


def test_an_attached_front_end_and_an_exhaustion_are_reported_with_the_lock_free(
    caller: Caller,
) -> None:
    info = caller.create()
    ram = GuestRam(32 * MIB)
    with RawFrontEnd(info.socket_path) as front:
        front.negotiate()
        assert front.attach(ram) == 0
        bounds = caller.host._vms[VM].devices["d1"].meter.bounds
        bounds.add(Bound("things", 1, lambda: 1))
        bounds.hit("things")
    assert caller.called[:4] == ["connected", "attached", "ApertureCreated", "exhausted"]
    ram.close()


def test_use_is_counted_with_the_lock_free(caller: Caller) -> None:
    caller.create()
    asked = []

    def used() -> int:
        within(caller.host.window_quotas)
        asked.append(1)
        return 0

    caller.host._vms[VM].devices["d1"].meter.bounds.add(Bound("things", 1, used))
    caller.host.get_device(VM, "d1")
    caller.host.list_devices()
    assert len(asked) == 2
    caller.host.remove_device(VM, "d1")
    assert len(caller.host.removed_devices(60)) == 1


def test_of_several_calls_that_remove_a_device_one_does(caller: Caller) -> None:
    caller.create()
    start, outcomes = threading.Barrier(4), []

    def remove() -> None:
        start.wait(DEADLINE_S)
        try:
            caller.host.remove_device(VM, "d1")
            outcomes.append("removed")
        except NotFoundError as error:
            outcomes.append(error.reason)

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert sorted(outcomes) == ["DEVICE_UNKNOWN"] * 3 + ["removed"]
    assert caller.called == ["shutting_down"]


class SlowDevice(NullDevice):
    """Takes its time to close."""

    def __init__(self) -> None:
        super().__init__()
        self.closing, self.may_close = threading.Event(), threading.Event()

    def close(self) -> None:
        self.closing.set()
        assert self.may_close.wait(DEADLINE_S)
        super().close()


@pytest.mark.parametrize("end", ["remove_device", "forget_vm", "close"])
def test_no_call_reports_the_end_of_a_device_that_another_call_is_still_removing(
    run_dir: Path, end: str
) -> None:
    device = SlowDevice()
    host = DeviceHost(run_dir, lambda *_: None, lambda *_: device)
    host.create_device(spec(), lambda _: None)
    first = threading.Thread(target=host.remove_device, args=(VM, "d1"))
    first.start()
    assert device.closing.wait(DEADLINE_S)
    seen: list[bool] = []

    def again() -> None:
        if end == "remove_device":
            with pytest.raises(NotFoundError):
                host.remove_device(VM, "d1")
        elif end == "forget_vm":
            host.forget_vm(VM)
        else:
            host.close()
        seen.append(device.closed)

    second = threading.Thread(target=again)
    second.start()
    second.join(0.2)
    assert seen == []
    device.may_close.set()
    for thread in (first, second):
        thread.join(DEADLINE_S)
    assert seen == [True]
    host.close()
