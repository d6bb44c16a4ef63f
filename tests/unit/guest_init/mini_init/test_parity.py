"""mini_init reads as guest init does: numbers, pools, frames."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.guest_init.channel import frames
from services.guest_init.listeners import Listener, listeners
from services.guest_init.readers import SYSFS_DIR, SysfsReader, parse_number
from services.handshake.pool import Gpa, SwiotlbPool
from tests.support.mini_init import COMPILER, FrameReader, Listening, build

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")

VMBUS = SYSFS_DIR.lstrip("/")
VIRTIO = "sys/bus/virtio"
RESERVED = "proc/device-tree/reserved-memory"
NONE, FROM_VMBUS, FROM_VIRTIO, FROM_TREE, FROM_LOG = range(1, 6)

TEXTS = [
    *("0", "1", "0x0", "0x10", "0X1F", "010", "08", "0x", "0xg", "x", "", " ", "\n", "-1", "-0"),
    *(
        "+1",
        "+ 1",
        "+-1",
        "++1",
        " \t\n\v\f\r7\r\n",
        "7 7",
        "7x",
        "1_000",
        "\u0661",
        "1\0",
        "\x001",
    ),
    *("18446744073709551615", "18446744073709551616", "0xffffffffffffffff", "0x10000000000000000"),
    *("01777777777777777777777", "02000000000000000000000", "0" * 90 + "1", "9" * 400),
    *("0x3c000000\n", "67108864\n", "0x 1", "1e3", "0b1", "0o7", "+0x1F\n"),
]
SHORT = st.text(alphabet="0123456789abfxX+- \t\n\v\f\r", max_size=30)


@pytest.fixture(scope="module")
def pure(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("pure"))


def number_of(pure: ctypes.CDLL, text: str) -> int | None:
    raw, number = text.encode(), ctypes.c_uint64()
    parsed = pure.pool_parse_number(raw, ctypes.c_size_t(len(raw)), ctypes.byref(number))
    return number.value if parsed else None


@pytest.mark.parametrize("text", TEXTS)
def test_a_number_is_what_guest_init_reads(pure: ctypes.CDLL, text: str) -> None:
    assert number_of(pure, text) == parse_number(text)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(SHORT)
def test_any_text_is_what_guest_init_reads(pure: ctypes.CDLL, text: str) -> None:
    assert number_of(pure, text) == parse_number(text)


def publish(root: Path, directory: str, base: str | None, size: str | None) -> None:
    (root / directory).mkdir(parents=True, exist_ok=True)
    for name, text in (("swiotlb_base", base), ("swiotlb_size", size)):
        if text is not None:
            (root / directory / name).write_text(text)


def read(pure: ctypes.CDLL, root: Path) -> tuple[int, SwiotlbPool | None]:
    pool = pure.pool_read(str(root).encode())
    found = SwiotlbPool(Gpa(pool.base), pool.size_bytes) if pool.source != NONE else None
    return pool.source, found


@pytest.mark.parametrize("base", [None, "0x3c000000\n", "0", "", "-1", "x" * 5000])
@pytest.mark.parametrize("size", [None, "67108864\n", "0\n", "1 1", "0" * 4096, "0" * 4097])
def test_files_are_what_guest_init_reads(
    pure: ctypes.CDLL, tmp_path: Path, base: str | None, size: str | None
) -> None:
    publish(tmp_path, VMBUS, base, size)
    assert read(pure, tmp_path)[1] == SysfsReader(tmp_path / VMBUS).read()


def test_the_places_are_read_in_order(pure: ctypes.CDLL, tmp_path: Path) -> None:
    assert read(pure, tmp_path) == (NONE, None)
    log(tmp_path, "swiotlb=force", ["6,100,0,-;" + mapped(0x6000_0000, 0x6400_0000)])
    assert read(pure, tmp_path) == (FROM_LOG, SwiotlbPool(Gpa(0x6000_0000), 64 << 20))
    tree(tmp_path, {"pool@50000000": (0x5000_0000, 32 << 20)})
    assert read(pure, tmp_path) == (FROM_TREE, SwiotlbPool(Gpa(0x5000_0000), 32 << 20))
    publish(tmp_path, VIRTIO, "0x40000000\n", "2097152\n")
    assert read(pure, tmp_path) == (FROM_VIRTIO, SwiotlbPool(Gpa(0x4000_0000), 2 << 20))
    publish(tmp_path, VMBUS, "0x3c000000\n", "67108864\n")
    assert read(pure, tmp_path) == (FROM_VMBUS, SwiotlbPool(Gpa(0x3C00_0000), 64 << 20))


def test_half_a_pool_is_none_and_the_next_place_is_read(pure: ctypes.CDLL, tmp_path: Path) -> None:
    publish(tmp_path, VMBUS, "0x3c000000\n", None)
    publish(tmp_path, VIRTIO, "0x40000000\n", "2097152\n")
    assert read(pure, tmp_path)[0] == FROM_VIRTIO


def mapped(base: int, end: int) -> str:
    return f"software IO TLB: mapped [mem {base:#018x}-{end:#018x}] ({(end - base) >> 20}MB)\n"


def log(root: Path, cmdline: str, records: Sequence[str]) -> None:
    # A file gives all records at once, so one is all that a test has.
    (root / "proc").mkdir(exist_ok=True)
    (root / "dev").mkdir(exist_ok=True)
    (root / "proc/cmdline").write_text(cmdline + "\n")
    (root / "dev/kmsg").write_text("".join(records))


@pytest.mark.parametrize(
    ("cmdline", "record", "source"),
    [
        ("quiet swiotlb=65536,force x", "6,1,0,-;" + mapped(0x1000, 0x2000), FROM_LOG),
        ("swiotlb=force", "4,1,0,-;" + mapped(0x1000, 0x2000), FROM_LOG),
        ("swiotlb=noforce", "6,1,0,-;" + mapped(0x1000, 0x2000), NONE),
        ("quiet", "6,1,0,-;" + mapped(0x1000, 0x2000), NONE),
        ("xswiotlb=force", "6,1,0,-;" + mapped(0x1000, 0x2000), NONE),
        ("swiotlb=force", "14,1,0,-;" + mapped(0x1000, 0x2000), NONE),
        ("swiotlb=force", "6,1,0,-;" + mapped(0x2000, 0x2000), NONE),
        ("swiotlb=force", "6,1,0,-;" + mapped(0, 0x2000), NONE),
        ("swiotlb=force", "6,1,0,-;software IO TLB: mapped [mem 0x", NONE),
    ],
)
def test_the_log_counts_if_everything_bounces_and_the_kernel_wrote_it(
    pure: ctypes.CDLL, tmp_path: Path, cmdline: str, record: str, source: int
) -> None:
    log(tmp_path, cmdline, [record])
    assert read(pure, tmp_path)[0] == source


def tree(
    root: Path, pools: dict[str, tuple[int, int]], compatible: str = "restricted-dma-pool"
) -> None:
    reserved = root / RESERVED
    reserved.mkdir(parents=True, exist_ok=True)
    for name in ("#address-cells", "#size-cells"):
        (reserved / name).write_bytes((2).to_bytes(4, "big"))
    for name, (base, size) in pools.items():
        (reserved / name).mkdir()
        (reserved / name / "compatible").write_bytes(f"other\0{compatible}\0".encode())
        (reserved / name / "reg").write_bytes(base.to_bytes(8, "big") + size.to_bytes(8, "big"))


def test_pools_of_the_device_tree_are_one_range(pure: ctypes.CDLL, tmp_path: Path) -> None:
    tree(tmp_path, {f"p{number}": (0x5000_0000 + (number << 21), 2 << 20) for number in (2, 0, 1)})
    assert read(pure, tmp_path) == (FROM_TREE, SwiotlbPool(Gpa(0x5000_0000), 6 << 20))


def test_pools_with_a_gap_are_none(pure: ctypes.CDLL, tmp_path: Path) -> None:
    tree(tmp_path, {"a": (0x5000_0000, 2 << 20), "b": (0x6000_0000, 2 << 20)})
    assert read(pure, tmp_path) == (NONE, None)


@pytest.mark.parametrize("reg", [b"", b"\0" * 16, b"\xff" * 16, b"\0" * 7, b"1" * 40])
def test_a_pool_without_a_range_is_none(pure: ctypes.CDLL, tmp_path: Path, reg: bytes) -> None:
    tree(tmp_path, {"a": (0x5000_0000, 2 << 20)})
    (tmp_path / RESERVED / "a/reg").write_bytes(reg)
    assert read(pure, tmp_path) == (NONE, None)


def test_other_reserved_memory_is_no_pool(pure: ctypes.CDLL, tmp_path: Path) -> None:
    tree(tmp_path, {"a": (0x5000_0000, 2 << 20)}, compatible="shared-dma-pool")
    assert read(pure, tmp_path) == (NONE, None)


PARTS = st.one_of(
    st.binary(max_size=20),
    st.binary(min_size=1, max_size=200).map(frames.frame),
    st.just(b"PHI1"),
    st.integers(0, 70_000).map(lambda length: b"PHI1" + length.to_bytes(4, "little")),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(PARTS, max_size=12))
@example([b"PHI1\x01\0\1\0", b"x" * 70_000])
def test_frames_are_what_guest_init_finds(pure: ctypes.CDLL, stream: list[bytes]) -> None:
    python, reader = frames.FrameReader(), FrameReader()
    for piece in stream:
        found: list[bytes] = []
        for place in range(0, len(piece), 1000):
            found += fed(pure, reader, piece[place : place + 1000])
        assert found == python.feed(piece)
    assert reader.skipped == python.skipped_bytes


def fed(pure: ctypes.CDLL, reader: FrameReader, piece: bytes) -> list[bytes]:
    room, length = ctypes.c_size_t(), ctypes.c_uint32()
    message = ctypes.POINTER(ctypes.c_uint8)()
    place = pure.frame_room(ctypes.byref(reader), ctypes.byref(room))
    assert room.value >= len(piece)
    ctypes.memmove(place, piece, len(piece))
    pure.frame_received(ctypes.byref(reader), ctypes.c_size_t(len(piece)))
    found = []
    while pure.frame_take(ctypes.byref(reader), ctypes.byref(message), ctypes.byref(length)):
        found.append(ctypes.string_at(message, length.value))
    return found


@given(st.binary(min_size=1, max_size=100))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_headers_are_what_guest_init_writes(pure: ctypes.CDLL, message: bytes) -> None:
    header = ctypes.create_string_buffer(8)
    pure.frame_write_header(header, ctypes.c_uint32(len(message)))
    assert header.raw + message == frames.frame(message)


def listening(pure: ctypes.CDLL, root: Path, v4: str, v6: str) -> tuple[Listener, ...]:
    net = root / "proc" / "net"
    net.mkdir(parents=True, exist_ok=True)
    for name, text in (("tcp", v4), ("tcp6", v6)):
        (net / name).write_bytes(text.encode())
    found = Listening()
    pure.listening_read(str(root).encode(), ctypes.byref(found))
    of_v4, of_v6 = (list(ports.numbers[: ports.count]) for ports in (found.ipv4, found.ipv6))
    ports = sorted({*of_v4, *of_v6})[:256]
    return tuple(Listener(port, ipv4=True, ipv6=port in of_v6) for port in ports)


ADDRESSES = st.sampled_from(["00000000", "0100007F", "0" * 32, "0" * 24 + "01000000", "0", ""])
SOCKETS = st.lists(
    st.tuples(ADDRESSES, st.integers(0, 0x1FFFF), st.sampled_from(["0A", "0A", "0A", "01", "x"])),
    max_size=400,
)


def table(sockets: list[tuple[str, int, str]]) -> str:
    lines = (
        f" 0: {address}:{port:04X} 00000000:0000 {state} 0\n" for address, port, state in sockets
    )
    return "heading\n" + "".join(lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(SOCKETS, SOCKETS)
@example([("00000000", port, "0A") for port in range(2200, 1000, -1)], [])
def test_ports_on_which_programs_listen_are_those_that_guest_init_reads(
    pure: ctypes.CDLL,
    tmp_path: Path,
    v4: list[tuple[str, int, str]],
    v6: list[tuple[str, int, str]],
) -> None:
    texts = table(v4), table(v6)
    assert listening(pure, tmp_path, *texts) == listeners(*texts)


@pytest.mark.parametrize(
    "text", ["", "x", "a\nb\n", "a\n0: 00000000:1F90 0000", "a\n\n\n", "a\n: : : 0A"]
)
def test_what_is_no_table_has_no_ports(pure: ctypes.CDLL, tmp_path: Path, text: str) -> None:
    assert listening(pure, tmp_path, text, text) == listeners(text, text)
