"""mini_init as process 1 of a real kernel: what it reports, what it carries out, how it ends."""

from __future__ import annotations

import hashlib
import re
import socket
from typing import TYPE_CHECKING

import grpc
import pytest
from porthole.guest.v1 import guest_control_pb2 as pb
from porthole.guest.v1 import guest_init_pb2

from services.guest_init.channel.frames import MESSAGE_LIMIT_BYTES, frame
from services.handshake.trace.otlp import parse_otlp_lines
from tests.support.directories import directory
from tests.support.guest_process import TRACE_ID, TRACEPARENT, VM_ID
from tests.support.linux_guest import DEADLINE_S
from tests.support.linux_vm import FURTHER, linux_vm, start_guest_init

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.linux_vm import LinuxVm

pytestmark = pytest.mark.guest_image

MAPPED = re.compile(r"software IO TLB: mapped \[mem 0x([0-9a-f]+)-0x([0-9a-f]+)\]")


@pytest.fixture(scope="module")
def vm() -> Iterator[LinuxVm]:
    with directory() as run_dir:
        (run_dir / "cmdline").write_text(
            f"porthole.vm_id={VM_ID} porthole.traceparent={TRACEPARENT}\n"
        )
        with linux_vm(run_dir, f"--cmdline-file={run_dir}/cmdline") as vm:
            vm.capabilities()
            yield vm


def request_of(text: str) -> pb.RunRequest:
    return pb.RunRequest(standard_input=text.encode())


def refused(call: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    return call.code(), str(call.details())


def test_it_reports_the_pool_of_the_log_and_its_own_time(vm: LinuxVm) -> None:
    capabilities = vm.capabilities().capabilities
    assert capabilities.SerializeToString().endswith(FURTHER)
    found = MAPPED.search(vm.run("dmesg").output.decode())
    assert found
    base, end = (int(text, 16) for text in found.groups())
    assert capabilities.swiotlb_pool.base == base
    assert capabilities.swiotlb_pool.size_bytes == end - base
    assert capabilities.kernel_release == vm.run("uname", "-r").output.decode().strip()
    assert capabilities.seccomp_user_notification
    recorded = parse_otlp_lines(vm.trace.read_text(), "guest.jsonl")
    (span,) = (span for span in recorded.spans if span.name == "MiniInit")
    assert span.trace_id == TRACE_ID
    assert "POOL_SOURCE_KERNEL_LOG" in vm.trace.read_text()


def test_the_first_process_is_mini_init(vm: LinuxVm) -> None:
    assert vm.run("cat", "/proc/1/comm").output == b"init\n"
    mounts = vm.run("cat", "/proc/mounts").output.decode()
    for place in ("/dev", "/proc", "/sys", "/dev/pts", "/run", "/tmp"):
        assert f" {place} " in mounts


def test_a_command_has_streams_arguments_environment_and_an_exit_code(vm: LinuxVm) -> None:
    script = 'read -r line; echo "$line $1 $PWD $PATH"; echo problem >&2; exit 3'
    ran = vm.run(
        *("sh", "-c", script, "sh", "Ünï"),
        later=[request_of("hello\n")],
        working_directory=b"/tmp",
    )
    assert ran.output.decode() == "hello Ünï /tmp /bin\n"
    assert ran.error == b"problem\n"
    assert ran.code == 3


def test_the_end_of_the_requests_ends_the_input(vm: LinuxVm) -> None:
    assert vm.run("cat", later=[request_of("one"), request_of("two")]).output == b"onetwo"


def test_a_command_that_does_not_exist_is_refused(vm: LinuxVm) -> None:
    with pytest.raises(grpc.RpcError) as error:
        vm.run("no-such-program")
    code, text = refused(error.value)
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "the program: No such file or directory (ENOENT)" in text


def test_signals_reach_its_group_and_end_it(vm: LinuxVm) -> None:
    ran = vm.run("sh", "-c", "sleep 1000 | cat", later=[pb.RunRequest(signal=15)])
    assert ran.ended is not None
    assert ran.ended.signal == 15


def test_a_call_that_is_cancelled_ends_the_command(vm: LinuxVm) -> None:
    command = pb.Command(arguments=[b"sleep", b"987"], environment=[b"PATH=/bin"])
    call = vm.control.Run(iter([pb.RunRequest(command=command)]), timeout=DEADLINE_S)
    assert next(call).HasField("started")
    call.cancel()
    script = "while pgrep -f 'sleep 987$' >/dev/null; do sleep 0.1; done"
    assert vm.run("sh", "-c", script).code == 0


def test_ports_on_which_programs_listen_are_told_as_they_come_and_go(vm: LinuxVm) -> None:
    watching = vm.init.WatchListeners(guest_init_pb2.WatchListenersRequest(), timeout=DEADLINE_S)
    assert list(next(watching).listeners) == []
    listen = pb.Command(arguments=[b"nc", b"-l", b"-p", b"4711"], environment=[b"PATH=/bin"])
    running = vm.control.Run(iter([pb.RunRequest(command=listen)]), timeout=DEADLINE_S)
    assert next(running).HasField("started")
    [listener] = next(watching).listeners
    assert (listener.port, listener.ipv4) == (4711, True)
    running.cancel()
    assert list(next(watching).listeners) == []
    watching.cancel()


def test_a_terminal_has_its_size_and_is_resized(vm: LinuxVm) -> None:
    size = pb.WindowSize(rows=40, columns=101)
    script = "tty; stty size; read -r line; stty size; echo $line"
    ran = vm.run(
        *("sh", "-c", script),
        terminal=size,
        later=[
            pb.RunRequest(window=pb.WindowSize(rows=10, columns=20)),
            request_of("typed\n"),
        ],
    )
    lines = ran.output.decode().split("\r\n")
    assert any(line.startswith("/dev/pts/") for line in lines)
    assert "10 20" in lines
    assert lines.count("typed") == 2  # its echo, and its output
    assert ran.error == b""
    assert ran.code == 0


def test_a_user_has_no_more_rights_than_it_should(vm: LinuxVm) -> None:
    ran = vm.run("sh", "-c", "id -u; id -g; id -G; echo x >/proc/sysrq-trigger", uid=7, gid=8)
    assert ran.output == b"7\n8\n8\n"
    assert b"ermission denied" in ran.error


def test_64_mib_of_output_arrive_whole(vm: LinuxVm) -> None:
    script = (
        "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; md5sum </tmp/data >&2; "
        + ("i=0; while [ $i -lt 8 ]; do cat /tmp/data; i=$((i+1)); done; rm /tmp/data")
    )
    ran = vm.run("sh", "-c", script)
    assert len(ran.output) == 64 << 20
    parts = {ran.output[place : place + (8 << 20)] for place in range(0, 64 << 20, 8 << 20)}
    assert [hashlib.md5(part).hexdigest().encode() for part in parts] == [ran.error.split()[0]]


def test_a_stream_that_nobody_reads_holds_up_nothing(vm: LinuxVm) -> None:
    command = pb.Command(arguments=[b"yes"], environment=[b"PATH=/bin"])
    call = vm.control.Run(iter([pb.RunRequest(command=command)]), timeout=DEADLINE_S)
    assert next(call).HasField("started")
    assert vm.run("echo", "through").output == b"through\n"
    call.cancel()


def test_orphans_are_reaped(vm: LinuxVm) -> None:
    vm.run("sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done")
    assert vm.run("sh", "-c", "sleep 0.5; ps -o stat,comm | grep -c '^Z'").output == b"0\n"


def test_mounts_are_made_and_undone(vm: LinuxVm) -> None:
    request = pb.MountRequest(
        fs_type="tmpfs", source=b"memory", target=b"/mnt/a/b", options=b"size=1m", read_only=True
    )
    vm.control.Mount(request, timeout=DEADLINE_S)
    assert b"memory /mnt/a/b tmpfs ro" in vm.run("cat", "/proc/mounts").output
    with pytest.raises(grpc.RpcError) as error:
        vm.control.Mount(
            pb.MountRequest(fs_type="virtiofs", source=b"none", target=b"/mnt/c", wait_ms=50),
            timeout=DEADLINE_S,
        )
    assert "mount of virtiofs" in refused(error.value)[1]
    vm.control.Unmount(pb.UnmountRequest(target=b"/mnt/a/b"), timeout=DEADLINE_S)
    with pytest.raises(grpc.RpcError) as error:
        vm.control.Unmount(pb.UnmountRequest(target=b"/mnt/a/b"), timeout=DEADLINE_S)
    assert "(EINVAL)" in refused(error.value)[1]


def test_an_adapter_is_configured(vm: LinuxVm) -> None:
    request = pb.ConfigureAdapterRequest(
        mac_address="52:54:00:12:34:56",
        name="porthole0",
        addresses=["192.0.2.2/24", "2001:db8::2/64"],
        gateways=["192.0.2.1", "2001:db8::1"],
        mtu=1400,
        nameservers=["192.0.2.3", "2001:db8::3"],
        search_domains=["example.net", "example.org"],
        wait_ms=20_000,
    )
    vm.control.ConfigureAdapter(request, timeout=DEADLINE_S)
    shown = vm.run("ip", "addr", "show", "porthole0").output.decode()
    for text in ("mtu 1400", "inet 192.0.2.2/24", "inet6 2001:db8::2/64", ",UP"):
        assert text in shown
    assert b"default via 192.0.2.1 dev porthole0" in vm.run("ip", "route").output
    assert b"default via 2001:db8::1 dev porthole0" in vm.run("ip", "-6", "route").output
    assert vm.run("cat", "/etc/resolv.conf").output.decode() == (
        "nameserver 192.0.2.3\nnameserver 2001:db8::3\nsearch example.net example.org\n"
    )
    assert b",UP" in vm.run("ip", "link", "show", "lo").output
    request.mac_address, request.wait_ms = "52:54:00:ff:ff:ff", 0
    with pytest.raises(grpc.RpcError) as error:
        vm.control.ConfigureAdapter(request, timeout=DEADLINE_S)
    assert "(ENODEV)" in refused(error.value)[1]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (pb.MountRequest(fs_type="tmpfs", target=b"relative"), "not an absolute path"),
        (pb.MountRequest(fs_type="tmpfs", target=b"/a\0b"), "has a byte 0"),
        (pb.MountRequest(fs_type="tmpfs", target=b"/a", wait_ms=60_001), "at most 60000"),
        (pb.MountRequest(fs_type="tmpfs", target=b"/a", directories=[b"/b"] * 65), "at most 64"),
        (pb.MountRequest(fs_type="tmpfs", target=b"/" + b"a" * 5000), "at most 4095"),
        (pb.MountRequest(fs_type="tmpfs", target=b"/a", options=b"o" * 70_000), "at most 65536"),
    ],
)
def test_requests_out_of_bounds_are_refused(
    vm: LinuxVm, request_: pb.MountRequest, text: str
) -> None:
    with pytest.raises(grpc.RpcError) as error:
        vm.control.Mount(request_, timeout=DEADLINE_S)
    assert text in refused(error.value)[1]


def test_a_root_is_entered_with_what_the_kernel_shows(run_dir: Path) -> None:
    with linux_vm(run_dir) as vm:
        vm.capabilities()
        vm.control.Mount(
            pb.MountRequest(fs_type="tmpfs", source=b"root", target=b"/new"), timeout=DEADLINE_S
        )
        vm.run("sh", "-c", "cp -a /bin /new; echo here >/new/mark")
        with pytest.raises(grpc.RpcError) as error:
            vm.control.EnterRoot(pb.EnterRootRequest(path=b"/tmp/none"), timeout=DEADLINE_S)
        assert "root /tmp/none" in refused(error.value)[1]
        assert vm.run("cat", "/new/mark", "/proc/1/comm").output == b"here\ninit\n"
        vm.control.EnterRoot(pb.EnterRootRequest(path=b"/new"), timeout=DEADLINE_S)
        ran = vm.run("sh", "-c", "cat /mark; ls /; tty", terminal=pb.WindowSize(rows=9, columns=9))
        assert ran.output.split() == [
            *(b"here", b"bin", b"dev", b"mark", b"proc", b"sys", b"/dev/pts/0")
        ]
        vm.control.PowerOff(pb.PowerOffRequest(), timeout=DEADLINE_S)
        assert vm.qemu.wait(DEADLINE_S) == 0


def test_the_guest_powers_off_whatever_runs_in_it(run_dir: Path) -> None:
    with linux_vm(run_dir) as vm:
        vm.capabilities()
        vm.run("sh", "-c", "trap '' TERM HUP; (trap '' TERM HUP; while :; do sleep 1; done) &")
        vm.control.PowerOff(pb.PowerOffRequest(), timeout=DEADLINE_S)
        assert vm.qemu.wait(DEADLINE_S) == 0
        assert "Kernel panic" not in vm.console.read_text(errors="replace")


def test_garbage_on_the_channel_is_survived(run_dir: Path) -> None:
    with linux_vm(run_dir) as vm:
        vm.capabilities()
        vm.guest_init.kill()
        vm.guest_init.wait()
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(str(vm.channel))
            other.settimeout(DEADLINE_S)
            too_long = b"PHI1" + (MESSAGE_LIMIT_BYTES + 1).to_bytes(4, "little")
            other.sendall(b"\0PHIP\xff" * 30_000 + frame(b"\xff" * 50) + frame(b"\x08\x05"))
            other.sendall(too_long)
            heard = b""
            while b"must be at most 65536" not in heard:
                heard += other.recv(65536)
            assert b"cannot be parsed" in heard
            assert b"does not know the request" in heard
        assert vm.guest_init.stdout is not None
        vm.guest_init.stdout.close()
        (run_dir / "guest-init.sock").unlink()
        vm.guest_init = start_guest_init(run_dir, f"--channel=unix:{vm.channel}")
        assert vm.capabilities().capabilities.kernel_release
        assert vm.run("echo", "alive").output == b"alive\n"
        vm.run("sh", "-c", "(sleep 0.5; poweroff) &")  # of busybox: a signal for process 1
        assert vm.qemu.wait(DEADLINE_S) == 0
