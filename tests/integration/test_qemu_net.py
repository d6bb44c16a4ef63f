"""`porthole device net` under QEMU.

A device that is killed and started again during a transfer, and a guest that knows its network from
passt alone.
"""

from __future__ import annotations

import hashlib
import os
import random
import shlex
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.support.linux_guest import NETWORK_MODULES
from tests.support.passt import PASST
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


LEASE = (
    "#!/bin/sh",
    '[ "$1" = bound ] || exit 0',
    'ip address add "$ip/$mask" dev eth0',
    'ip route add default via "$router"',
    'echo "nameserver $dns" > /etc/resolv.conf',
)
"""What busybox's udhcpc runs with each answer."""


@pytest.mark.passt
def test_a_guest_gets_address_gateway_and_name_server_by_dhcp(run_dir: Path) -> None:
    alone = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    contents = os.urandom(1 << 20)
    with ExitStack() as stack:
        device = stack.enter_context(
            running(
                *("net", f"--socket-path={run_dir}/n.sock", "--user", f"--passt={PASST}"),
                *("--client-ip=10.9.0.2/24", "--gateway-ip=10.9.0.1"),
                *("--dns-forward=10.9.0.53", "--host-loopback=10.9.0.127", "--port=8080:80"),
                prefix=alone,
            )
        )
        inside = ("nsenter", f"--net=/proc/{device.process.pid}/ns/net")
        (run_dir / "file").write_bytes(contents)
        server = [sys.executable, "-um", "http.server", "-b", "127.0.0.1", "-d", str(run_dir)]
        serving = stack.enter_context(
            subprocess.Popen(
                [*inside, *server, "8000"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(serving.kill)
        assert serving.stdout is not None
        assert serving.stdout.readline().startswith("Serving")
        guest = stack.enter_context(
            booted(
                run_dir,
                *("-chardev", f"socket,id=n0,path={run_dir}/n.sock"),
                *("-netdev", "vhost-user,id=net0,chardev=n0"),
                *("-device", f"virtio-net-pci,netdev=net0,mac={MAC},vectors=0"),
            )
        )
        for module in NETWORK_MODULES:
            guest.run(f"insmod /modules/{module}.ko")
        guest.run("ip link set lo up; ip link set eth0 up")
        guest.run("mkdir -p /etc")
        for line in LEASE:
            guest.run(f"echo {shlex.quote(line)} >> /lease")
        guest.run("chmod +x /lease; udhcpc -q -n -f -i eth0 -s /lease < /dev/null")
        assert "10.9.0.2/24" in guest.run("ip address show dev eth0")
        assert "via 10.9.0.1" in guest.run("ip route")
        assert guest.run("cat /etc/resolv.conf").strip() == "nameserver 10.9.0.53"
        digest = guest.run("wget -qO - http://10.9.0.127:8000/file | sha256sum").split()[0]
        assert digest == hashlib.sha256(contents).hexdigest()
        guest.run("(echo answer | nc -l -p 80 > /tmp/asked) &")
        asked = subprocess.run(
            [*inside, sys.executable, "-c", ASK],
            check=True,
            capture_output=True,
            timeout=DEADLINE_S,
        )
        assert asked.stdout == b"answer\n"
        guest.power_off()


ASK = """
import socket, sys
with socket.create_connection(("127.0.0.1", 8080), 30) as connection:
    sys.stdout.buffer.write(connection.makefile("rb").readline())
"""
