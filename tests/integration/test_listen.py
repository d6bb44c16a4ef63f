"""`porthole up --listen`: the VM owner at TCP ports beside its socket, with real processes."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.cli.exit_codes import OK, UNREACHABLE, USAGE
from tests.support.command import CALL_S, Porthole

if TYPE_CHECKING:
    from collections.abc import Iterator

PORT = re.compile(r"127\.0\.0\.1:[1-9]\d*")
PORT_6 = re.compile(r"\[::1\]:[1-9]\d*")


@contextmanager
def up(command: Porthole, *flags: str) -> Iterator[tuple[str, list[str]]]:
    """The services, what `porthole up` prints, and what it says on stderr, filled at their end."""
    process = command.up(*flags)
    said: list[str] = []
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    try:
        yield next(line for line in lines if line.startswith("Programs reach")), said
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=CALL_S)
        said += errors.splitlines()
    assert process.returncode == OK, errors


def found(pattern: re.Pattern[str], line: str) -> str:
    match = pattern.search(line)
    assert match is not None, line
    return match[0]


def test_the_owner_is_reached_at_its_ports_and_its_socket(run_dir: Path) -> None:
    command = Porthole(run_dir)
    with up(command, "--listen", "127.0.0.1:0,[::1]:0") as (line, said):
        address, address_6 = found(PORT, line), found(PORT_6, line)
        assert f" unix:{run_dir}/owner.sock and {address} and {address_6} " in line
        # Only the address leads there: the command has another run directory.
        command.environment["PORTHOLE_RUN_DIR"] = f"{run_dir}/elsewhere"
        created = command.run("--owner", f"tcp://{address}", "vm", "create", "--kind", "wslc")
        vm_id = created.stdout.strip()
        command.run("--owner", f"tcp://{address_6}", "session", "apply", vm_id)
        for owner in (
            *(address, address_6, f"dns:///{address}", f"ipv6:{address_6}", f"ipv4:{address}"),
            *(f"unix:{run_dir}/owner.sock", f"unix://{run_dir}/owner.sock"),
        ):
            shown = command.run("--owner", owner, "vm", "list").stdout
            assert vm_id in shown, owner
            assert command.run("health", owner).stdout == "SERVING\n"
        command.run("vm", "list", code=UNREACHABLE)
    for port in (address, address_6):
        assert [text for text in said if f"{port} has no authentication yet" in text], said


def test_variables_for_one_process_reach_no_other(run_dir: Path) -> None:
    command = Porthole(run_dir)
    command.environment["PORTHOLE_LISTEN"] = "127.0.0.1:0"
    command.environment["PORTHOLE_OWNER"] = f"unix:{run_dir}/owner.sock"
    with up(command) as (line, said):
        owner = found(PORT, line)
        vm_id = command.run("--owner", owner, "vm", "create", "--kind", "wslc").stdout.strip()
        environments = [
            environ
            for process in Path("/proc").glob("[0-9]*")
            if f"{run_dir}/vm/{vm_id}".encode() in contents(process / "cmdline")
            and b"services.guest_init" in contents(process / "cmdline")
            and (environ := contents(process / "environ"))
        ]
        assert environments
        # It would report to that owner, although a WSLC guest is asked.
        assert not [text for text in environments if b"PORTHOLE_OWNER" in text]
    ready = [bool(PORT.search(text)) for text in said if " ready on " in text]
    assert ready == [False, True], "the owner listens there, and no other service"


def contents(file: Path) -> bytes:
    """Return the contents of a file of a process, which may have ended."""
    try:
        return file.read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "tcp://192.0.2.1:7000", "example:1"])
def test_a_port_that_others_can_reach_is_refused_before_anything_starts(
    listen: str, run_dir: Path
) -> None:
    command = Porthole(run_dir)
    errors = command.run("up", "--listen", listen, code=USAGE).stderr
    text = " ".join(errors.replace("│", " ").split())
    assert listen.removeprefix("tcp://") in text
    assert "127.0.0.0/8, [::1] and localhost" in text
    assert "listen on 127.0.0.1:" in text
    assert "ADDRESS_NOT_LOOPBACK" in text
    assert not list(run_dir.iterdir())


def test_a_port_that_is_taken_is_named_and_nothing_is_left(run_dir: Path) -> None:
    command = Porthole(run_dir)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        errors = command.run("up", "--listen", address, code=UNREACHABLE).stderr
    assert f"cannot listen on {address}: another process listens there" in errors
    assert "choose another port, or port 0" in errors
    assert "SERVICE_START_FAILED" in errors
    assert not list(run_dir.glob("*.sock"))
