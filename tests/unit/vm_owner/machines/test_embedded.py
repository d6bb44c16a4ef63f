"""The embedded machine: its child process starts, dies, and is waited for."""

from __future__ import annotations

import asyncio
import os
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import UnavailableError
from services.vm_owner.clients import dial_machine
from services.vm_owner.machines.embedded import EmbeddedMachine

if TYPE_CHECKING:
    from pathlib import Path

# A program that serves only Machine, at the address of --listen.
GUEST = """
import asyncio, os, sys
from porthole.machine.v1 import machine_pb2, machine_pb2_grpc
from services.rpc.server import Servicer, start_server
from services.rpc.version import service_version
NAME = "porthole.machine.v1.Machine"
class Machine(machine_pb2_grpc.MachineServicer):
    async def GetVersion(self, request, context):
        return machine_pb2.MachineGetVersionResponse(version=service_version(NAME))
    async def Boot(self, request, context):
        return machine_pb2.BootResponse(guest_init_address=os.environ["PORTHOLE_LOG_LEVEL"])
    async def PowerOff(self, request, context):
        print("powered off", flush=True)
        return machine_pb2.PowerOffResponse()
async def main():
    add = machine_pb2_grpc.add_MachineServicer_to_server
    address = sys.argv[sys.argv.index("--listen") + 1]
    server = await start_server([address], [Servicer(add, Machine(), NAME)])
    print("last words: serving", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def embedded(run_dir: Path, program: str) -> EmbeddedMachine:
    return EmbeddedMachine(
        run_dir / "vm",
        {"PORTHOLE_LOG_LEVEL": "error"},
        partial(dial_machine, wait_s=20.0),
        (sys.executable, "-c", program),
    )


async def test_a_guest_that_ends_before_it_serves_is_quoted(run_dir: Path) -> None:
    machine = embedded(run_dir, "import sys; print('no memory left'); sys.exit(3)")
    with pytest.raises(UnavailableError, match="status 3: no memory left") as ended:
        await machine.start(lambda _: None)
    assert ended.value.reason == "GUEST_ENDED"
    await machine.stop()


async def test_a_guest_that_is_stopped_is_collected_and_no_end_is_reported(run_dir: Path) -> None:
    ends: list[str] = []
    machine = embedded(run_dir, GUEST)
    await machine.start(ends.append)
    process = machine._process
    assert process is not None
    assert os.getpgid(process.pid) == process.pid
    await machine.stop()
    assert "powered off" in (run_dir / "vm" / "machine.log").read_text()
    await machine.ended()
    assert process.returncode is not None
    assert ends == []


async def test_a_guest_that_dies_is_noticed_and_then_refuses_at_once(run_dir: Path) -> None:
    ended = asyncio.get_running_loop().create_future()
    machine = embedded(run_dir, GUEST)
    await machine.start(ended.set_result)
    process = machine._process
    assert process is not None
    process.kill()
    assert "status -9: last words: serving" in await asyncio.wait_for(ended, 10)
    with pytest.raises(UnavailableError) as refused:
        await machine.detach_device("any")
    assert refused.value.reason == "GUEST_ENDED"
    assert machine._external._client is not None
    await machine.stop()
    assert machine._external._client is None  # a channel would connect to the dead guest for ever


async def test_a_guest_that_does_not_end_is_killed(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.vm_owner.machines.embedded.STOP_DEADLINE_S", 0.2)
    machine = embedded(
        run_dir, "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + GUEST
    )
    await machine.start(lambda _: None)
    process = machine._process
    assert process is not None
    await machine.stop()
    await machine.ended()
    assert process.returncode == -9


FLUSHES = GUEST.replace(
    "await asyncio.Event().wait()",
    """stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(15, stopping.set)
    await stopping.wait()
    print("exports", flush=True)
    open(sys.argv[sys.argv.index("--vm-dir") + 1] + "/may-end").read()""",
)


async def test_a_guest_that_is_off_is_not_waited_for_while_it_exports(run_dir: Path) -> None:
    machine = embedded(run_dir, FLUSHES)
    await machine.start(lambda _: None)
    process = machine._process
    assert process is not None
    os.mkfifo(run_dir / "vm" / "may-end")  # the process waits until it is opened for writing
    await machine.stop()
    still_runs = process.returncode is None
    assert still_runs
    ended = asyncio.create_task(machine.ended())
    await asyncio.to_thread((run_dir / "vm" / "may-end").write_text, "now")
    await ended
    assert process.returncode == 0
    await machine.stop()  # a second call does nothing


async def test_a_guest_that_cannot_be_powered_off_is_waited_for(run_dir: Path) -> None:
    refusing = GUEST.replace('print("powered off", flush=True)', 'raise OSError("stuck")')
    machine = embedded(run_dir, refusing)
    await machine.start(lambda _: None)
    process = machine._process
    assert process is not None
    await machine.stop()
    assert process.returncode is not None
