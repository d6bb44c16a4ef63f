"""The QEMU machine over a stand-in for QEMU: boots, ends of every kind, devices."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from services.vm_owner.machines import AttachSpec, BootSpec, GuestInitEnd, Placement
from services.vm_owner.machines.qemu.architecture import ARM64, X86_64
from services.vm_owner.machines.qemu.image import GuestImage
from services.vm_owner.machines.qemu.installation import Accelerator
from services.vm_owner.machines.qemu.machine import QemuMachine, QemuSettings
from tests.support import fake_qemu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.vm_owner.machines.qemu.architecture import Architecture
    from services.vm_owner.machines.qemu.control import Adapter

SPEC = BootSpec(
    vm_id="01234567-89ab-cdef-0123-456789abcdef",
    ram_bytes=1 << 30,
    kernel_command_line="",
    init_channel_address="",
    kernel_release="",
    publishes_pool=True,
)
SHARE = AttachSpec("a", events.FS, "data", "/run/a.sock")
ADAPTER = AttachSpec(
    "b",
    events.NET,
    "eth0",
    "/run/b.sock",
    client_address="192.0.2.2/24",
    gateway_address="192.0.2.1",
    mac_address="52:54:00:00:00:01",
)
SLEEPS = (sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)")


@dataclass
class FakeControl:
    journal: list[str] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    speaks: bool = True
    refuses: bool = False
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def make_ready(self, wait_s: float) -> None:
        if not self.speaks:
            await asyncio.sleep(600)
        if self.refuses:
            raise FailedPreconditionError("GUEST_REQUEST_REFUSED", "there is no tmpfs")
        self.ready.set()

    def note(self, call: str, what: str) -> None:
        self.journal.append(f"{call} {what}".strip())
        if call in self.failing:
            raise FailedPreconditionError("GUEST_REQUEST_REFUSED", f"{call} refused")

    async def mount(self, tag: str, target: str, wait_s: float) -> None:
        self.note("mount", f"{tag} {target}")

    async def unmount(self, target: str, deadline_s: float) -> None:
        self.note("unmount", target)

    async def configure_adapter(self, adapter: Adapter, wait_s: float) -> None:
        self.note(
            "configure", f"{adapter.mac_address} {adapter.name} {' '.join(adapter.addresses)}"
        )

    async def power_off(self, deadline_s: float) -> None:
        self.note("power off", "")

    async def close(self) -> None:
        self.note("close", "")


@dataclass
class Rig:
    machine: QemuMachine
    control: FakeControl
    ends: asyncio.Queue[str]

    @property
    def qemu_pid(self) -> int:
        assert self.machine._guest._qemu is not None
        return self.machine._guest._qemu.pid

    @property
    def init_pid(self) -> int:
        assert self.machine._guest._init is not None
        return self.machine._guest._init.pid


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def fake_binary(run_dir: Path) -> str:
    path = run_dir / "qemu"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {fake_qemu.__file__} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@asynccontextmanager
async def rig(
    run_dir: Path,
    *,
    init_command: tuple[str, ...] = SLEEPS,
    speaks: bool = True,
    boot_deadline_s: float = 20.0,
    accelerator: Accelerator | None = Accelerator.TCG,
    architecture: Architecture = X86_64,
) -> AsyncIterator[Rig]:
    control = FakeControl(speaks=speaks)

    async def dial(address: str, wait_s: float) -> FakeControl:
        return control

    settings = QemuSettings(
        binary=fake_binary(run_dir),
        accelerator=accelerator,
        boot_deadline_s=boot_deadline_s,
        environment={},
        dial=dial,
        init_command=init_command,
    )
    for name in ("kernel", "initramfs"):
        (run_dir / name).touch()
    image = GuestImage(run_dir / "kernel", (run_dir / "initramfs",), architecture)
    ends: asyncio.Queue[str] = asyncio.Queue()
    machine = QemuMachine(run_dir / "vm", lambda: image, 1, settings)
    try:
        await machine.start(ends.put_nowait)
        yield Rig(machine, control, ends)
    finally:
        await machine.stop()
        await machine.ended()


async def test_a_guest_boots_and_is_stopped_in_order(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        address = await up.machine.boot(SPEC)
        assert address == f"unix:{run_dir}/vm/guest-init.sock"
        assert os.getpgid(up.qemu_pid) == up.qemu_pid
        pids = up.qemu_pid, up.init_pid
    assert up.control.journal == ["power off", "close"]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert up.ends.empty()
    assert (run_dir / "vm/console.log").read_text() == fake_qemu.CONSOLE


async def test_a_qemu_that_does_not_quit_is_killed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "stubborn")
    monkeypatch.setattr("services.vm_owner.machines.qemu.running.QUIT_DEADLINE_S", 0.2)
    monkeypatch.setattr("services.vm_owner.machines.qemu.running.POWER_OFF_DEADLINE_S", 0.2)
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        pid = up.qemu_pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_qemu_that_refuses_is_quoted(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "refuses")
    async with rig(run_dir) as up:
        with pytest.raises(UnavailableError, match="Cannot allocate memory") as failed:
            await up.machine.boot(SPEC)
        assert failed.value.reason == "GUEST_ENDED"


@pytest.mark.parametrize("wanted", [None, Accelerator.KVM])
async def test_a_guest_is_emulated_where_kvm_fails_unless_kvm_was_asked_for(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, wanted: Accelerator | None
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "no-kvm")
    monkeypatch.setattr(
        "services.vm_owner.machines.qemu.machine.choose_accelerator", lambda *_: Accelerator.KVM
    )
    async with rig(run_dir, accelerator=wanted) as up:
        if wanted is None:
            await up.machine.boot(SPEC)
            await up.machine.attach_device(SHARE)
        else:
            with pytest.raises(UnavailableError, match="failed to set MSR"):
                await up.machine.boot(SPEC)


@pytest.mark.parametrize("wanted", [None, Accelerator.KVM])
async def test_a_guest_is_emulated_where_kvm_runs_nothing_unless_kvm_was_asked_for(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, wanted: Accelerator | None
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "stuck-kvm")
    monkeypatch.setattr("services.vm_owner.machines.qemu.machine.KVM_WORDS_S", 1.0)
    monkeypatch.setattr(
        "services.vm_owner.machines.qemu.machine.choose_accelerator", lambda *_: Accelerator.KVM
    )
    async with rig(run_dir, accelerator=wanted) as up:
        await up.machine.boot(SPEC)
        words = words_of(up.qemu_pid)
    assert words[words.index("-accel") + 1] == ("kvm" if wanted else "tcg")


async def test_a_guest_whose_init_says_nothing_is_given_up_with_its_console(run_dir: Path) -> None:
    async with rig(run_dir, speaks=False, boot_deadline_s=2.0) as up:
        with pytest.raises(DeadlineExceededError, match="waiting for nothing") as failed:
            await up.machine.boot(SPEC)
        assert failed.value.reason == "GUEST_BOOT_DEADLINE"


async def test_a_guest_that_reports_by_itself_may_be_silent_and_speak_late(run_dir: Path) -> None:
    async with rig(run_dir, speaks=False, boot_deadline_s=1.0) as up:
        await up.machine.boot(replace(SPEC, init_channel_address="unix:/run/init.sock"))
        assert "waiting for nothing" in up.machine.last_words()
        await up.machine.attach_device(SHARE)
        await up.machine.attach_device(ADAPTER)
        await up.machine.detach_device("a")
        # Each attempt has a connection of its own, which it closes.
        assert set(up.control.journal) == {"close"}
        up.control.speaks = True
        async with asyncio.timeout(20):
            await up.control.ready.wait()
        await asyncio.sleep(0)
        up.control.journal.clear()
        await up.machine.attach_device(SHARE)
    assert up.control.journal == ["mount data /mnt/data", "power off", "close"]


async def test_an_init_that_speaks_late_and_refuses_is_left_alone(run_dir: Path) -> None:
    async with rig(run_dir, speaks=False, boot_deadline_s=1.0) as up:
        await up.machine.boot(replace(SPEC, init_channel_address="unix:/run/init.sock"))
        up.control.refuses = up.control.speaks = True
        assert up.machine._meeting is not None
        await asyncio.wait_for(asyncio.shield(up.machine._meeting), 20)
        await up.machine.attach_device(SHARE)
        assert set(up.control.journal) == {"close"}


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("guest-panic", "kernel panicked.*No working init found"),
        ("guest-reset", "the guest reset"),
        ("guest-shutdown", "the guest powered off"),
    ],
)
async def test_a_guest_that_ends_at_boot_says_how(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, reason: str, words: str
) -> None:
    monkeypatch.setenv("FAKE_QEMU", f"end={reason}")
    async with rig(run_dir, speaks=False) as up:
        with pytest.raises(UnavailableError, match=words):
            await up.machine.boot(SPEC)


async def test_a_killed_qemu_ends_the_machine_once_with_its_cause(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        os.kill(up.qemu_pid, signal.SIGKILL)
        assert "QEMU ended with signal SIGKILL" in await asyncio.wait_for(up.ends.get(), 10)
        with pytest.raises(UnavailableError) as refused:
            await up.machine.attach_device(SHARE)
        assert refused.value.reason == "GUEST_ENDED"
        await up.machine.release_device("a")
    assert up.ends.empty()


async def test_a_killed_guest_init_is_reported_as_its_end(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        os.kill(up.init_pid, signal.SIGKILL)
        report = await asyncio.wait_for(anext(aiter(up.machine.watch())), 10)
        assert isinstance(report, GuestInitEnd)
        assert "signal SIGKILL" in report.cause


async def test_a_share_is_mounted_and_unmounted_before_it_is_unplugged(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        await up.machine.attach_device(SHARE)
        await up.machine.release_device("a")
        await up.machine.detach_device("a")
        assert up.control.journal == ["mount data /mnt/data", "unmount /mnt/data"]


async def test_with_strict_isolation_each_device_has_the_pool_of_its_port(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        spec = replace(SPEC, divided_pool_bytes=8 << 20)
        await up.machine.boot(spec)
        line = words_of(up.qemu_pid)
        assert sum(word.startswith("memory-backend-memfd") for word in line) == 2
        first, second = (up.machine.reserve(name).aperture for name in ("a", "b"))
        assert first is not None
        assert second is not None
        assert first.end == second.base
        with pytest.raises(ResourceExhaustedError, match="all 2 ports") as full:
            up.machine.reserve("c")
        assert full.value.reason == "GUEST_PORTS_EXHAUSTED"
        await up.machine.attach_device(SHARE)
        up.machine.give_back("b")
        assert up.machine.reserve("c").aperture == second
        await up.machine.detach_device("a")
        assert up.machine.reserve("d").aperture == first


async def test_with_shared_memory_no_device_has_a_pool_of_its_own(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        assert up.machine.reserve("a") == Placement()


async def test_a_pool_that_cannot_be_divided_starts_nothing(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        with pytest.raises(InvalidArgumentError) as refused:
            await up.machine.boot(replace(SPEC, divided_pool_bytes=0))
        assert refused.value.reason == "ISOLATION_POOL"
        assert up.machine._guest._qemu is None


async def test_an_adapter_is_configured(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        await up.machine.attach_device(ADAPTER)
        await up.machine.attach_device(replace(ADAPTER, instance_id="c", mac_address=""))
        assert up.control.journal[0] == "configure 52:54:00:00:00:01 eth0 192.0.2.2/24"
        assert up.control.journal[1].startswith("configure 52:54:")


@pytest.mark.parametrize("failing", ["mount", "unmount"])
async def test_a_guest_that_refuses_loses_the_device_all_the_same(
    run_dir: Path, failing: str
) -> None:
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        up.control.failing = {failing}
        with suppress(FailedPreconditionError):
            await up.machine.attach_device(SHARE)
        await up.machine.detach_device("a")
        assert "a" not in up.machine._hot_plug


async def test_a_guest_that_keeps_a_device_is_given_up_on(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QEMU", "keeps")
    async with rig(run_dir, architecture=replace(X86_64, unplug_deadline_s=0.1)) as up:
        await up.machine.boot(SPEC)
        await up.machine.attach_device(SHARE)
        await up.machine.release_device("a")  # a warning
        with pytest.raises(DeadlineExceededError) as kept:
            await up.machine.detach_device("a")
        assert kept.value.reason == "GUEST_KEEPS_DEVICE"


async def test_a_device_that_qemu_refuses_leaves_nothing(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        await up.machine.boot(SPEC)
        with pytest.raises(FailedPreconditionError, match="Duplicate device") as refused:
            await up.machine.attach_device(replace(SHARE, tag="refuse"))
        assert refused.value.reason == "QEMU_REFUSED"
        await up.machine.detach_device("a")
        assert "a" not in up.machine._hot_plug


async def test_where_ram_begins_is_known_before_boot(run_dir: Path) -> None:
    async with rig(run_dir) as up:
        assert up.machine.ram_base == 0
    async with rig(run_dir, architecture=ARM64) as up:
        assert up.machine.ram_base == 1 << 30
        with pytest.raises(FailedPreconditionError) as refused:
            await up.machine.boot(replace(SPEC, divided_pool_bytes=64 << 20))
        assert refused.value.reason == "ISOLATION_ARCHITECTURE"
