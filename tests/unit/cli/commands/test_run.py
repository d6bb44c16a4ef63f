"""The flags and exit codes of `porthole run`; no guest is booted."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from services.cli.exit_codes import USAGE
from services.cli.main import app
from services.cli.run.guest import CommandRefusedError
from services.cli.run.plan import RunShare
from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PortholeError,
    UnavailableError,
)

if TYPE_CHECKING:
    from pathlib import Path

RUNNER = CliRunner()


class Guest:
    """What the command asked for, and what comes of it."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] = ()
        self.outcome: int | PortholeError = 0

    async def run(self, *asked: Any) -> int:
        self.asked = asked
        if isinstance(self.outcome, PortholeError):
            raise self.outcome
        return self.outcome


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Guest:
    made = Guest()
    monkeypatch.setattr("services.cli.run.guest.run", made.run)
    return made


@pytest.mark.parametrize("code", [0, 1, 7, 141, 255])
def test_the_exit_code_is_the_commands(guest: Guest, code: int) -> None:
    guest.outcome = code
    assert RUNNER.invoke(app, ["run", "--", "true"]).exit_code == code


def test_flags_become_a_plan_and_a_command(guest: Guest, tmp_path: Path) -> None:
    flags = ["--share", f"{tmp_path}:/work:ro", "--net", "tap", "--memory", "512M", "--cpus", "2"]
    more = [
        "--kernel",
        "vmlinux",
        "--kind",
        "wslc",
        "--user",
        "0:0",
        "--env",
        "A=1",
        "--isolation",
        "strict",
    ]
    RUNNER.invoke(app, ["run", *flags, *more, "ls", "--color", "-l"])
    plan, command, terminal, _, environment = guest.asked
    assert (plan.kind, plan.ram_bytes, plan.cpus, plan.network) == ("wslc", 512 << 20, 2, "tap")
    assert plan.kernel == os.path.abspath("vmlinux")  # noqa: PTH100
    assert plan.isolation == "strict"
    assert plan.shares == (RunShare(str(tmp_path), "/work", True),)
    assert command.arguments == ("ls", "--color", "-l")
    assert (command.uid, command.gid, command.groups) == (0, 0, (0,))
    assert command.environment["A"] == "1"
    assert command.terminal is None
    assert terminal is None
    assert environment == {}


def test_by_default_a_command_is_the_callers_in_the_present_directory(
    guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RUNNER.invoke(app, ["run", "--", "true"])
    plan, command, *_ = guest.asked
    assert (plan.kind, plan.ram_bytes, plan.cpus, plan.kernel) == ("wsl2", 0, 0, "")
    assert (plan.isolation, plan.shares, plan.network) == ("", (), "")
    assert (command.uid, command.gid) == (os.geteuid(), os.getegid())
    assert command.directory == str(tmp_path)


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (UnavailableError("GUEST_ENDED", "the guest ended: x"), 125, "the guest ended: x"),
        (FailedPreconditionError("QEMU_NOT_FOUND", "install qemu"), 125, "install qemu"),
        (
            FailedPreconditionError("GUEST_KERNEL_MISSING", "long", path="/build/vmlinux"),
            125,
            "/build/vmlinux is missing; make what a guest boots with `make kernel guest-image`",
        ),
        (
            FailedPreconditionError("GUEST_IMAGE_MISSING", "long", path="/image"),
            125,
            "/image is missing; make what a guest boots with `make kernel guest-image`",
        ),
        (InvalidArgumentError("RAM_BYTES", "ram_bytes 1 is not"), 125, "ram_bytes 1 is not"),
        (FailedPreconditionError("GUEST_REQUEST_REFUSED", "mount", errno="ENOENT"), 125, "mount"),
        (CommandRefusedError("GUEST_REQUEST_REFUSED", "nope: x", errno="ENOENT"), 127, "nope: x"),
        (CommandRefusedError("GUEST_REQUEST_REFUSED", "nope: x", errno="EACCES"), 126, "nope: x"),
    ],
)
def test_an_error_is_one_line_and_a_code_of_its_own(
    guest: Guest, outcome: PortholeError, code: int, said: str
) -> None:
    guest.outcome = outcome
    result = RUNNER.invoke(app, ["run", "--", "true"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--share", "here", "true"],
        ["--share", "/:work", "true"],
        ["--share", "/:/a", "--share", "/tmp:/a", "true"],
        ["--kind", "wsl3", "true"],
        ["--net", "nat", "true"],
        ["--isolation", "none", "true"],
        ["--memory", "much", "true"],
        ["--cpus", "65", "true"],
        ["--user", "no-such-user", "true"],
        ["--env", "=x", "true"],
    ],
    ids=" ".join,
)
def test_wrong_usage_boots_nothing(guest: Guest, flags: list[str]) -> None:
    result = RUNNER.invoke(app, ["run", *flags])
    assert result.exit_code == USAGE
    assert guest.asked == ()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_boot(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    ended: list[bool] = []

    async def boot(*_: object) -> int:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(20)
        finally:
            ended.append(True)
        return 0

    monkeypatch.setattr("services.cli.run.guest.run", boot)
    assert RUNNER.invoke(app, ["run", "--", "true"]).exit_code == 128 + number
    assert ended == [True]
