"""The order in which the guest of `porthole run` is made and ended; a test plays the services."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import pytest

from services.cli.documents import StateEvent
from services.cli.guest_control import Ended
from services.cli.requests import GuestCommand, GuestMount
from services.cli.run import guest as module
from services.cli.run.guest import CommandRefusedError, GuestPlan, run
from services.cli.run.plan import RunShare
from services.cli.run.signals import Signals
from services.cli.views import WarningView
from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    PortholeError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LIMIT_S = 10
COMMAND = GuestCommand(("true",), {})
PLAN = GuestPlan("wsl2", 512 << 20, 2, "/vmlinux", (RunShare("/srv", "/work", True),), "", "strict")


class House:
    """Services, owner, guest and command in one; it notes what is asked, in order.

    Attributes:
        failing: What fails, by its name in `asked`.
        code: The exit code of the command; None: it does not end.
        ended: Whether a service ends by itself.
        warnings: The VM's warnings.
    """

    owner_address = "unix:/owner"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.failing: dict[str, PortholeError] = {}
        self.code: int | None = 7
        self.warnings: list[WarningView] = []
        self.ended = asyncio.Event()
        self.running = asyncio.Event()
        self.run_dir = Path()
        monkeypatch.setattr(module, "Services", self._services)
        monkeypatch.setattr("services.cli.clients.owner", self._connect)
        monkeypatch.setattr(module, "guest_control", self._connect)
        monkeypatch.setattr(module, "apply_guest_capabilities", self._apply)

    def _note(self, what: str) -> None:
        self.asked.append(what)
        if what in self.failing:
            raise self.failing[what]

    def _services(self, run_dir: Path, _: object, log: Callable[[str, str], None]) -> Self:
        self.run_dir = run_dir
        self.log = log
        return self

    async def __aenter__(self) -> Self:
        self._note("services")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._note("services end")

    @asynccontextmanager
    async def _connect(self, *_: object) -> AsyncIterator[Self]:
        yield self

    async def first_to_end(self) -> Any:
        await self.ended.wait()
        program = SimpleNamespace(name="device host", module="services.devicehost")
        process = SimpleNamespace(returncode=-9)
        return SimpleNamespace(program=program, process=process, last_line="oh")

    async def create_vm(self, request: Any) -> Any:
        self.request = request
        self._note("create")
        return await self.get_vm("id")

    async def _apply(self, *_: object) -> None:
        self._note("apply")

    async def add_share(self, vm_id: str, share: Any) -> None:
        self._note(f"share {share.host_path} as {share.tag}")

    async def configure_networking(self, vm_id: str, mode: str) -> None:
        self._note(f"networking {mode}")

    async def get_vm(self, vm_id: str) -> Any:
        return SimpleNamespace(vm_id="id", guest_init_address="x", warnings=self.warnings)

    async def watch_vm(self, vm_id: str) -> AsyncIterator[StateEvent]:
        yield StateEvent("running")
        self._note("terminated")
        yield StateEvent("terminated")

    async def mount(self, mount: GuestMount) -> None:
        self._note(f"mount {mount.fs_type} at {mount.target}")

    async def enter_root(self, path: str) -> None:
        self._note(f"enter {path}")

    async def power_off(self, deadline_s: float) -> None:
        self._note("power off")

    async def run(self, command: GuestCommand) -> Self:
        self._note("run")
        return self

    async def said(self) -> AsyncIterator[Ended]:
        self.running.set()
        if "said" in self.failing:
            raise self.failing["said"]
        if self.code is None:
            await asyncio.Event().wait()
        yield Ended(exit_code=self.code or 0)

    async def write(self, data: bytes) -> None: ...

    async def end_input(self) -> None: ...

    async def signal(self, number: int) -> None: ...

    def kill(self) -> None: ...


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> House:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return House(monkeypatch)


async def run_it(plan: GuestPlan = PLAN) -> int:
    with Signals(lambda: None).handled():
        return await asyncio.wait_for(
            run(plan, COMMAND, None, Signals(lambda: None), {"PORTHOLE_X": "1"}), LIMIT_S
        )


def left_in(directory: Path) -> list[Path]:
    return list(directory.iterdir())


BOOT = ["services", "create", "share / as root", "share /srv as share0"]
FURNISH = [
    "mount tmpfs at /overlay",
    "mount overlay at /newroot",
    "mount tmpfs at /newroot/run",
    "enter /newroot",
    "mount virtiofs at /work",
]
END = ["power off", "terminated", "services end"]


async def test_everything_is_made_and_ended_in_order(house: House, tmp_path: Path) -> None:
    assert await run_it() == 7
    assert house.asked == [*BOOT, *FURNISH, "run", *END]
    request = house.request
    assert (request.kind, request.ram_bytes, request.wslconfig) == ("wsl2", 512 << 20, "")
    assert (request.qemu.kernel, request.qemu.cpus) == ("/vmlinux", 2)
    assert request.qemu.isolation == "strict"
    assert house.run_dir.parent == tmp_path
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("network", "mode"), [("tap", "nat"), ("user", "virtio-proxy")])
async def test_a_session_applies_and_adapters_are_made_where_they_are_wanted(
    house: House, network: str, mode: str
) -> None:
    await run_it(GuestPlan("wslc", network=network))
    assert house.asked[:4] == ["services", "create", "apply", "share / as root"]
    assert house.asked[4] == f"networking {mode}"


@pytest.mark.parametrize("step", ["services", *BOOT[1:], *FURNISH, "run"])
async def test_whatever_fails_the_rest_is_ended(house: House, step: str, tmp_path: Path) -> None:
    house.failing[step] = FailedPreconditionError("X", "it is broken")
    with pytest.raises(FailedPreconditionError, match="it is broken"):
        await run_it()
    after = house.asked[house.asked.index(step) + 1 :]
    expected = END if step in (*FURNISH, "run") else END[-1:]
    assert after == ([] if step == "services" else expected)
    assert left_in(tmp_path) == []


async def test_a_guest_that_does_not_power_off_is_ended_with_the_services(house: House) -> None:
    house.failing["power off"] = UnavailableError("X", "no")
    assert await run_it() == 7
    assert house.asked[-2:] == ["power off", "services end"]


async def test_a_kernel_without_overlays_is_explained(house: House) -> None:
    refusal = FailedPreconditionError("GUEST_REQUEST_REFUSED", "No such device", errno="ENODEV")
    house.failing["mount overlay at /newroot"] = refusal
    with pytest.raises(FailedPreconditionError, match=r"no overlayfs.*make kernel"):
        await run_it()


async def test_a_program_that_cannot_be_run_is_named(house: House) -> None:
    house.failing["run"] = FailedPreconditionError("GUEST_REQUEST_REFUSED", "why", errno="ENOENT")
    with pytest.raises(CommandRefusedError, match="true: why") as refused:
        await run_it()
    assert refused.value.metadata == {"errno": "ENOENT"}


async def test_a_guest_without_our_init_is_explained_by_its_owner(house: House) -> None:
    house.warnings = [WarningView("GuestInitSilent", "its last words: no init found")]
    with pytest.raises(DeadlineExceededError, match="no init found") as failed:
        await run_it()
    assert failed.value.reason == "GUEST_INIT_SILENT"
    assert house.asked[:2] == BOOT[:2]
    assert not any(what.startswith("share") for what in house.asked)


async def test_a_lost_guest_is_explained_by_its_owner(house: House) -> None:
    house.failing["said"] = UnavailableError("GUEST_UNREACHABLE", "gone")
    house.warnings = [WarningView("GuestEnded", "QEMU ended with signal SIGKILL")]
    with pytest.raises(UnavailableError, match="QEMU ended with signal SIGKILL") as lost:
        await run_it()
    assert lost.value.reason == "GUEST_ENDED"
    assert house.asked[-1] == "services end"


async def test_a_service_that_ends_is_the_end(house: House, tmp_path: Path) -> None:
    house.code = None
    running = asyncio.create_task(run_it())
    await house.running.wait()
    house.ended.set()
    with pytest.raises(UnavailableError, match="the device host ended with status -9: oh"):
        await running
    assert house.asked[-3:] == END
    assert left_in(tmp_path) == []


async def test_a_boot_that_is_cancelled_leaves_nothing(house: House, tmp_path: Path) -> None:
    house.code = None
    running = asyncio.create_task(run_it())
    await house.running.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
    assert house.asked[-3:] == END
    assert left_in(tmp_path) == []


async def test_of_the_services_words_only_slowness_is_repeated(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    await run_it()
    house.log("VM owner", "2026 vm-owner INFO x: listening")
    house.log("VM owner", "2026 vm-owner INFO x: guests run by emulation (TCG): /dev/kvm: no")
    assert capsys.readouterr().err == "guests run by emulation (TCG): /dev/kvm: no\n"


async def test_a_long_boot_is_spoken_of_with_the_guests_words(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "LONG_S", 0.05)

    async def create(request: Any) -> Any:
        console = house.run_dir / "vm/id/console.log"
        console.parent.mkdir(parents=True)
        console.write_bytes(b"[ 1.0] first\r\n[ 2.0] \x1b[31mlast\r\n\r\n")
        await asyncio.sleep(0.3)
        return await house.get_vm("id")

    monkeypatch.setattr(house, "create_vm", create)
    assert await run_it() == 7
    said = capsys.readouterr().err
    assert "the guest is still booting; its console says: [ 2.0] \\x1b[31mlast" in said
