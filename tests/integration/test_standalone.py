"""`porthole device`: one device in a process of its own, as QEMU and its kind start virtiofsd."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.devicehost import fastpath
from services.handshake import events as handshake_events
from services.handshake.errors import FailedPreconditionError
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from services.simguest.guest import KINDS
from services.simguest.kernel import Kernel, ordinary_ranges, reserve_pool
from services.simguest.memory.bounce import BouncePool
from services.simguest.memory.dma import DirectDma
from services.simguest.memory.pages import PageAllocator
from services.simguest.memory.ram import GuestRam
from services.simguest.virtio.device import DeviceMemory, VirtioDevice
from services.simguest.workload.workload import Workload
from services.wire import vhost_user as wire
from services.wire.fuse import INIT_IN, Opcode
from tests.support.front_end import RawFrontEnd, RingEvents
from tests.support.guest_ring import USER_BASE, GuestRing
from tests.support.guest_ring import GuestRam as RingRam
from tests.support.memory_files import MemoryFiles
from tests.support.standalone import DEADLINE_S, fs, running
from tests.unit.devicehost.vhost_user.conftest import POOL, eventually
from tests.unit.devicehost.vhost_user.test_held_descriptors import Guest as PooledGuest
from tests.unit.devicehost.vhost_user.test_held_descriptors import ask, fuse_request, pages_of

if TYPE_CHECKING:
    from collections.abc import Iterator

RAM_BYTES = 64 << 20
POOL_MIB = 16
ATTRIBUTES = ("user.a", "trusted.a", "security.a")
HEAVY = {"grpc", "google", "opentelemetry", "porthole", "pydantic_settings", "rich"}


class Guest:
    """A guest with one share; it bounces through a pool at a known place."""

    def __init__(self) -> None:
        self.ram = GuestRam(RAM_BYTES)
        kernel = Kernel("6.18.26.3", publishes_pool=True)
        pool = reserve_pool(kernel, f"hv_pci_swiotlb={POOL_MIB}M", self.ram.regions[0])
        assert pool is not None
        self.pool: SwiotlbPool = pool
        direct = DirectDma(self.ram, PageAllocator(ordinary_ranges(self.ram.regions, pool)))
        self._memory = DeviceMemory(self.ram, BouncePool(self.ram, pool), direct)

    def put_rings_into_the_pool(self) -> None:
        bounce = self._memory.buffers
        self._memory = DeviceMemory(self.ram, bounce, bounce)

    @contextmanager
    def share(self, socket_path: Path) -> Iterator[Workload]:
        device = VirtioDevice("data", socket_path, KINDS[handshake_events.FS], self._memory)
        workload = Workload()
        try:
            workload.attach_share("data", device)
            yield workload
        finally:
            workload.close()
            device.close()


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.ram.close()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    directory = tmp_path / "shared"
    directory.mkdir()
    (directory / "hello").write_text("from the host")
    return directory


@pytest.mark.parametrize("kind", ["whole", "windows", "aperture"])
def test_a_guest_is_served_until_it_goes(
    run_dir: Path, shared: Path, guest: Guest, kind: str
) -> None:
    flags = {
        "whole": [],
        "windows": ["--memory=windows"],
        "aperture": ["--" + format_token(guest.pool)],
    }[kind]
    with running(*fs(run_dir, shared, "--tag=data", *flags)) as device:
        assert device.line == f"porthole device fs ready on unix:{run_dir}/s.sock\n"
        with guest.share(device.socket_path) as workload:
            files = workload.files("data")
            assert files.read_file("hello") == b"from the host"
            files.write_file("answer", b"from the guest" * 10_000, 0o644)
            mapped = device.mapped_bytes()
        code, log = device.end()
    assert code == 0, log
    assert (shared / "answer").read_bytes() == b"from the guest" * 10_000
    assert not (run_dir / "s.sock").exists()
    assert ("not confined" in log) == (kind == "whole")
    assert f"the native fast path is {fastpath.status}" in log
    pool_and_rings = guest.pool.size_bytes + (1 << 20)
    if kind == "whole":
        assert mapped == RAM_BYTES
    else:
        assert 0 < mapped < pool_and_rings
    assert (mapped >= guest.pool.size_bytes) == (kind != "windows")


def test_it_waits_for_another_front_end_when_told_to(
    run_dir: Path, shared: Path, guest: Guest
) -> None:
    with running(
        *fs(run_dir, shared, "--tag=data", "--cache=none", "--persistent", "--readonly")
    ) as device:
        for _ in range(2):
            with guest.share(device.socket_path) as workload:
                files = workload.files("data")
                assert files.read_file("hello") == b"from the host"
                with pytest.raises(OSError, match="Read-only"):
                    files.write_file("answer", b"", 0o644)
        code, log = device.terminate()
    assert code == 0, log
    assert not (run_dir / "s.sock").exists()


def test_sigterm_ends_it_in_order_under_a_guest(run_dir: Path, shared: Path, guest: Guest) -> None:
    with (
        running(*fs(run_dir, shared, "--tag=data")) as device,
        guest.share(device.socket_path) as workload,
    ):
        assert workload.files("data").read_file("hello") == b"from the host"
        code, log = device.terminate()
    assert code == 0, log
    assert "ending: SIGTERM" in log
    assert not (run_dir / "s.sock").exists()


def test_a_signal_that_another_thread_takes_ends_it_as_well(run_dir: Path, shared: Path) -> None:
    with running(*fs(run_dir, shared)) as device:
        code, log = device.terminate_by_another_thread()
    assert code == 0, log
    assert "ending: SIGTERM" in log


def test_the_socket_of_a_live_device_is_left_alone(
    run_dir: Path, shared: Path, guest: Guest
) -> None:
    with running(*fs(run_dir, shared, "--tag=data")) as device:
        with running(*fs(run_dir, shared)) as second:
            code, log = second.end()
            assert code == 2
            assert "a process listens on" in log
        with guest.share(device.socket_path) as workload:
            assert workload.files("data").read_file("hello") == b"from the host"
        assert device.end()[0] == 0


def test_the_socket_of_a_dead_device_is_replaced(run_dir: Path, shared: Path) -> None:
    with running(*fs(run_dir, shared)):
        pass
    assert (run_dir / "s.sock").exists()
    with running(*fs(run_dir, shared)) as device:
        assert device.line
        assert device.terminate()[0] == 0


def test_what_libvirt_says_is_understood(run_dir: Path, tmp_path: Path, guest: Guest) -> None:
    shared = tmp_path / "a,b"
    shared.mkdir()
    (shared / "hello").write_text("from the host")
    said = f"source={tmp_path}/a,,b,cache=always,writeback,xattr,flock,posix_lock"
    with running("fs", f"--socket-path={run_dir}/s.sock", "--tag=data", "-o", said) as device:
        with guest.share(device.socket_path) as workload:
            assert workload.files("data").read_file("hello") == b"from the host"
        assert device.end()[0] == 0


@pytest.mark.root
@pytest.mark.parametrize(
    ("more", "mode", "makes_devices", "attributes"),
    [
        ([], 0o4755, True, {"user.a": "user.a"}),
        (["--options=nosuid;nodev"], 0o755, False, {"user.a": "user.a"}),
        (["--xattr"], 0o4755, True, {name: name for name in ATTRIBUTES}),
        (["-o", "no_xattr"], 0o4755, True, {}),
        (
            ["--xattr", "--xattrmap=:map::user.virtiofs.:"],
            0o4755,
            True,
            {name: f"user.virtiofs.{name}" for name in ATTRIBUTES},
        ),
        (
            ["-o", "xattrmap=/bad/all/user./user./ /ok/all///", "--options=nodev"],
            0o4755,
            False,
            {"trusted.a": "trusted.a", "security.a": "security.a"},
        ),
    ],
)
def test_what_a_guest_may_leave_on_the_host(
    run_dir: Path,
    shared: Path,
    guest: Guest,
    more: list[str],
    mode: int,
    *,
    makes_devices: bool,
    attributes: dict[str, str],
) -> None:
    with running(*fs(run_dir, shared, "--tag=data", *more)) as device:
        with guest.share(device.socket_path) as workload:
            share = workload.files("data").operations
            made = share.mknod(1, b"program", stat.S_IFREG | 0o4755)
            for name in ATTRIBUTES:
                with suppress(OSError):
                    share.setxattr(made.nodeid, name.encode(), b"1")
            assert {name.decode() for name in share.listxattr(made.nodeid)} == set(attributes)
            with nullcontext() if makes_devices else pytest.raises(PermissionError):
                share.mknod(1, b"zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        device.end()
    assert stat.S_IMODE((shared / "program").stat().st_mode) == mode
    assert set(os.listxattr(shared / "program")) == set(attributes.values())
    assert (shared / "zero").exists() == makes_devices


def test_rules_that_are_none_are_refused(run_dir: Path, shared: Path) -> None:
    with running(*fs(run_dir, shared, "--xattrmap=:ok:all:")) as device:
        code, log = device.end()
    assert code == 2
    assert "--xattrmap: option value ':ok:all:' is not rules" in log


@pytest.mark.parametrize("more", [[], ["--tag=data"]])
def test_the_configuration_is_told_when_it_was_given(
    run_dir: Path, shared: Path, more: list[str]
) -> None:
    with running(*fs(run_dir, shared, *more)) as device:
        with RawFrontEnd(device.socket_path) as front_end:
            offered = front_end.ask_u64(wire.Request.GET_PROTOCOL_FEATURES)
        assert device.end()[0] == 0
    assert bool(offered & wire.PROTOCOL_F_CONFIG) == bool(more)


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_systemd_is_told_when_front_ends_can_connect(
    run_dir: Path, shared: Path, abstract: bool
) -> None:
    address = f"{run_dir}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(DEADLINE_S)
        manager.bind(f"\0{address}" if abstract else address)
        name = f"@{address}" if abstract else address
        with running(*fs(run_dir, shared), env={"NOTIFY_SOCKET": name}) as device:
            assert manager.recv(100) == b"READY=1"
            with RawFrontEnd(device.socket_path) as front_end:
                front_end.negotiate()
            assert device.end()[0] == 0


def test_a_listening_socket_can_be_handed_in(run_dir: Path, shared: Path, guest: Guest) -> None:
    path = run_dir / "theirs.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(1)
        flags = [f"--fd={listening.fileno()}", f"--shared-dir={shared}", "--tag=data"]
        with running("fs", *flags, fds=[listening.fileno()]) as device:
            assert device.socket_path == path
            with guest.share(path) as workload:
                assert workload.files("data").read_file("hello") == b"from the host"
            code, log = device.end()
    assert code == 0, log
    assert path.exists(), "whoever made the socket removes it"


@pytest.mark.parametrize("native", ["1", "0"], ids=["native", "Python"])
def test_a_device_with_more_queues_than_its_guest_uses_gives_guest_memory_up(
    run_dir: Path, shared: Path, native: str
) -> None:
    guest = PooledGuest()
    token = format_token(POOL)
    env = {fastpath.SWITCH: native}
    try:
        with running(*fs(run_dir, shared, f"--{token}", "--queues=4"), env=env) as device:
            files = MemoryFiles(guest.rams, device.process.pid)
            with (
                RawFrontEnd(device.socket_path) as front,
                RingEvents() as unused,
                RingEvents() as events,
            ):
                front.negotiate()
                assert front.attach(*guest.rams) == 0
                rings = [guest.ring(0), guest.ring(1)]
                front.start(0, rings[0], unused)
                front.start(1, rings[1], events)
                assert files.descriptors() == 6
                init = fuse_request(Opcode.INIT, 0, INIT_IN.pack(7, 36, 0, 0, 0))
                assert ask(guest, rings[1], events, init)
                assert eventually(lambda: files.descriptors() == 0)
                assert files.mapped() == sorted([(POOL.base, POOL.size_bytes), *pages_of(*rings)])
            code, log = device.end()
    finally:
        guest.close()
    assert code == 0, log
    assert "descriptors of guest memory: 6 closed, since the guest makes requests; 0 held" in log


def test_with_rings_inside_a_guest_is_served_by_its_pool_alone(
    run_dir: Path, shared: Path, guest: Guest
) -> None:
    guest.put_rings_into_the_pool()
    flags = [f"--{format_token(guest.pool)}", "--rings=inside", "--queues=3", "--tag=data"]
    with running(*fs(run_dir, shared, *flags)) as device:
        with guest.share(device.socket_path) as workload:
            assert workload.files("data").read_file("hello") == b"from the host"
            assert device.mapped_bytes() == guest.pool.size_bytes
        code, log = device.end()
    assert code == 0, log
    assert "descriptors of guest memory: 1 closed, since rings are inside the pool; 0 held" in log


def test_with_rings_inside_a_guest_that_has_them_elsewhere_is_refused(
    run_dir: Path, shared: Path, guest: Guest
) -> None:
    flags = [f"--{format_token(guest.pool)}", "--rings=inside", "--tag=data"]
    with running(*fs(run_dir, shared, *flags)) as device:
        with pytest.raises(FailedPreconditionError), guest.share(device.socket_path):
            pass
        code, log = device.end()
    assert code == 3, log
    assert "with rings=inside the device maps its pool alone" in log
    assert "RING_OUTSIDE_APERTURE" in log
    assert "[RINGS_NEVER_SERVED]" in log.splitlines()[-1]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("place", ["pool", "ring"])
def test_a_device_whose_rings_never_ran_says_so(
    run_dir: Path, shared: Path, place: str, persistent: bool
) -> None:
    """A token of memory that is not shared, and rings in memory that is not."""
    ram = RingRam(RAM_BYTES)
    pool = SwiotlbPool(Gpa(1 << 30 if place == "pool" else 1 << 20), 1 << 20)
    flags = ["--persistent"] if persistent else []
    with running(*fs(run_dir, shared, f"--{format_token(pool)}", *flags)) as device:
        with RawFrontEnd(device.socket_path) as front_end:
            front_end.negotiate()
            assert front_end.attach(ram) == (1 if place == "pool" else 0)
            if place == "ring":
                assert front_end.state(wire.Request.SET_VRING_NUM, 0, 16) == 0
                assert front_end.set_addr(0, GuestRing(ram, 1 << 40, 16)) == 1
        device.await_log("Likely causes")
        code, log = device.terminate() if persistent else device.end()
    ram.close()
    assert code == (0 if persistent else 3), log
    assert log.count("Likely causes") == 1
    assert "no ring was ever served" in log
    reason = "POOL_NOT_IN_GUEST_MEMORY" if place == "pool" else "ADDRESS_OUT_OF_BOUNDS"
    assert reason in log
    assert ("[RINGS_NEVER_SERVED]" in log.splitlines()[-1]) is not persistent


def test_memory_that_cannot_be_sealed_is_taken_with_one_warning(
    run_dir: Path, shared: Path
) -> None:
    # As Cloud Hypervisor makes it: a memfd without MFD_ALLOW_SEALING.
    fd = os.memfd_create("guest-ram", 0)
    try:
        os.ftruncate(fd, RAM_BYTES)
        half = RAM_BYTES // 2
        regions = [wire.MemRegion(at, half, USER_BASE + at, at) for at in (0, half)]
        with running(*fs(run_dir, shared)) as device:
            with RawFrontEnd(device.socket_path) as front_end:
                front_end.negotiate()
                table = wire.pack_mem_table(regions)
                assert front_end.command(wire.Request.SET_MEM_TABLE, table, [fd, fd]) == 0
                assert device.mapped_bytes() == RAM_BYTES
            code, log = device.end()
    finally:
        os.close(fd)
    assert code == 0, log
    assert log.count("cannot be sealed") == 1


def test_it_loads_neither_grpc_nor_telemetry(run_dir: Path, shared: Path) -> None:
    with running(*fs(run_dir, shared), env={"PYTHONPROFILEIMPORTTIME": "1"}) as device:
        code, log = device.terminate()
    assert code == 0
    loaded = {line.rpartition("|")[2].strip() for line in log.splitlines() if "|" in line}
    assert "services.devicehost.devices.fs.device" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in HEAVY}


@pytest.mark.tap
def test_a_link_that_comes_up_before_a_front_end_connects_ends_nothing(run_dir: Path) -> None:
    tap = f"phl{os.getpid() % 10**6}"
    flags = ["net", f"--socket-path={run_dir}/n.sock", f"--tap={tap}", "--mac=02:00:00:00:00:07"]
    with running(*flags) as device:
        subprocess.run(["ip", "link", "set", tap, "up"], check=True)
        with RawFrontEnd(device.socket_path) as front_end:
            front_end.negotiate()
            config = wire.Config(0, 8, 0, bytes(8)).pack()
            assert eventually(lambda: front_end.ask(wire.Request.GET_CONFIG, config)[-2] & 1 == 1)
        assert device.end()[0] == 0


@pytest.mark.tap
def test_a_tap_is_served(run_dir: Path) -> None:
    tap = f"ph{os.getpid() % 10**6}"
    flags = ["net", f"--socket-path={run_dir}/n.sock", f"--tap={tap}", "--mac=02:00:00:00:00:07"]
    with running(*flags) as device:
        assert device.line == f"porthole device net ready on unix:{run_dir}/n.sock\n"
        assert Path(f"/sys/class/net/{tap}").exists()
        with RawFrontEnd(device.socket_path) as front_end:
            front_end.negotiate()
            config = front_end.ask(wire.Request.GET_CONFIG, wire.Config(0, 6, 0, bytes(6)).pack())
            assert bytes.fromhex("020000000007") in config
        assert device.end()[0] == 0
    assert not Path(f"/sys/class/net/{tap}").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fs"], 2, "--shared-dir"),
        (["fs", "--shared-dir=/"], 2, "--socket-path"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--fd=3"], 2, "--fd"),
        (["fs", "--shared-dir=/nowhere", "--socket-path=S"], 2, "SHARED_DIR_MISSING"),
        (["fs", "--shared-dir=/dev/null", "--socket-path=S"], 2, "SHARED_DIR_NOT_A_DIRECTORY"),
        (["fs", "--shared-dir=/", "--socket-path=S", f"--tag={'x' * 37}"], 2, "TAG_TOO_LONG"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--tag=a;b"], 2, "OPTION_SYNTAX"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--options=nosuch"], 2, "OPTION_UNKNOWN"),
        (["fs", "-o", "source=", "--socket-path=S"], 2, "OPTION_VALUE"),
        (["fs", "-o", "source=/,sandbox=chroot", "--socket-path=S"], 2, "-o sandbox=chroot"),
        (["fs", "-o", "source=/,no_posix_lock", "--socket-path=S"], 2, "-o no_posix_lock"),
        (["fs", "-o", "source=/,nosuch=1", "--socket-path=S"], 2, "OPTION_UNKNOWN"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--nosuch"], 2, "OPTION_UNKNOWN"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--sandbox", "chroot"], 2, "OPTION_REFUSED"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--rlimit-nofile=9"], 2, "DESCRIPTOR_LIMIT"),
        (["fs", "--shared-dir=/", "--socket-path=S", "word"], 2, "OPTION_SYNTAX"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--cache=some"], 2, "OPTION_VALUE"),
        (
            ["fs", "--cache=none", "-o", "source=/,cache=auto", "--socket-path=S"],
            2,
            "OPTION_CONFLICT",
        ),
        (["fs", "-o", "source=/,cache=some", "--socket-path=S"], 2, "OPTION_VALUE"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--swiotlb=0x1000"], 2, "--swiotlb"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--swiotlb=0x1,4096"], 2, "--swiotlb"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--rings=inside"], 2, "RINGS_WITHOUT_POOL"),
        (
            ["fs", "--shared-dir=/", "--socket-path=S", "--options=rings=inside"],
            2,
            "RINGS_WITHOUT_POOL",
        ),
        (
            [
                *("fs", "--shared-dir=/", "--socket-path=S", "--rings=inside"),
                *("--swiotlb=0x1000,4096", "--options=rings=anywhere"),
            ],
            2,
            "OPTION_CONFLICT",
        ),
        (["fs", "--shared-dir=/", f"--socket-path=/tmp/{'x' * 110}"], 2, "SOCKET_PATH"),
        (["fs", "--shared-dir=/", "--socket-path=/dev/null"], 2, "is no socket"),
        (["fs", "--shared-dir=/", "--fd=0"], 2, "SOCKET_FD"),
        (["fs", "--shared-dir=/", "--fd=999"], 2, "SOCKET_FD"),
        (["fs", "--shared-dir=/", "--socket-path=S", "--socket-group=nosuch"], 2, "nosuch"),
        (["net", "--socket-path=S"], 2, "--tap"),
        (["net", "--socket-path=S", "--tap=a/b"], 2, "TAP_NAME"),
        (["net", "--socket-path=S", "--tap=x", "--mac=nonsense"], 2, "OPTION_VALUE"),
        pytest.param(
            ["net", "--socket-path=S", "--tap=lo"], 3, "TAP_NOT_A_TAP", marks=pytest.mark.tap
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_one_line_and_a_code(
    run_dir: Path, arguments: list[str], code: int, said: str
) -> None:
    given = [argument.replace("=S", f"={run_dir}/s.sock") for argument in arguments]
    result = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "device", *given],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert result.returncode == code
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(run_dir.iterdir()) == []


@pytest.mark.parametrize("kind", ["fs", "net"])
def test_capabilities_are_printed_for_libvirt(kind: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "device", kind, "--print-capabilities"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    printed = json.loads(result.stdout)
    assert printed.pop("type") == kind
    # With the first of them libvirt gives options without -o.
    understood = ["separate-options", "posix-acl-negotiation-mode"]
    assert set(understood if kind == "fs" else []) <= set(printed.get("features", []))
