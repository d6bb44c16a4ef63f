"""`porthole device net` under QEMU: a device that is killed and started again during a transfer."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.linux_guest import NETWORK_MODULES
from tests.support.qemu_guest import booted
from tests.support.standalone import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.standalone import Process

pytestmark = [pytest.mark.qemu, pytest.mark.tap]

HOST, GUEST, PORT = "10.77.0.1", "10.77.0.2", 7000
MAC = "02:00:00:00:00:07"
KILLS = 3
BURST_BYTES = 6 << 20
"""More than the buffers of a connection hold, so that a part is under way for certain."""
DEADLINE_S = 60.0

SENDER = f"""
import random, socket, sys
noise = random.Random(7)
with socket.create_server(("{HOST}", {PORT})) as listening:
    print("listening", flush=True)
    connection, _ = listening.accept()
with connection:
    print("connected", flush=True)
    for line in sys.stdin:
        connection.sendall(noise.randbytes(int(line)))
        print("sent", flush=True)
"""
"""Sends as many bytes as each line of its input says."""


@pytest.fixture
def network() -> Iterator[tuple[str, ...]]:
    """A network namespace with a TAP; the command that runs a program in it."""
    name = f"ph-net-{os.getpid()}"
    inside = ("ip", "netns", "exec", name)
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=DEADLINE_S)
    try:
        for command in (
            "ip tuntap add mode tap name tap0",
            f"ip address add {HOST}/24 dev tap0",
            "ip link set tap0 up",
        ):
            subprocess.run([*inside, *command.split()], check=True, timeout=DEADLINE_S)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=DEADLINE_S)


def test_a_transfer_outlives_kills_of_the_device(run_dir: Path, network: tuple[str, ...]) -> None:
    flags = ("net", f"--socket-path={run_dir}/n.sock", "--tap=tap0")
    with ExitStack() as stack:

        def start() -> Process:
            return stack.enter_context(running(*flags, prefix=network))

        device = start()
        guest = stack.enter_context(
            booted(
                run_dir,
                *("-chardev", f"socket,id=n0,path={run_dir}/n.sock,reconnect=1"),
                *("-netdev", "vhost-user,id=net0,chardev=n0"),
                *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},vectors=0"),
            )
        )
        for module in NETWORK_MODULES:
            guest.run(f"insmod /modules/{module}.ko")
        guest.run(f"ip address add {GUEST}/24 dev eth0 && ip link set eth0 up")
        sender = stack.enter_context(
            subprocess.Popen(
                [*network, sys.executable, "-c", SENDER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(sender.kill)
        assert sender.stdin is not None
        assert sender.stdout is not None
        assert sender.stdout.readline() == "listening\n"
        guest.run(f"nc {HOST} {PORT} > /tmp/got & receiver=$!")
        assert sender.stdout.readline() == "connected\n"
        for _ in range(KILLS):
            sender.stdin.write(f"{BURST_BYTES}\n")
            sender.stdin.flush()
            guest.run(
                "before=$(stat -c %s /tmp/got);"
                " until [ $(stat -c %s /tmp/got) -gt $before ]; do usleep 10000; done"
            )
            device.kill()
            device = start()
            assert sender.stdout.readline() == "sent\n"
        sender.stdin.close()
        guest.run("wait $receiver")
        noise = random.Random(7)
        wanted = hashlib.sha256(b"".join(noise.randbytes(BURST_BYTES) for _ in range(KILLS)))
        assert guest.run("sha256sum < /tmp/got").split()[0] == wanted.hexdigest()
        guest.power_off()
