"""A published pool is read whole or not at all, whatever the files hold."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.guest_init.readers import SysfsReader, first_published, parse_number
from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    from pathlib import Path

U64 = (1 << 64) - 1
POOL = SwiotlbPool(Gpa(0x3C000000), 67108864)


def publish(directory: Path, base: bytes | None, size: bytes | None) -> SysfsReader:
    for name, content in (("swiotlb_base", base), ("swiotlb_size", size)):
        if content is not None:
            (directory / name).write_bytes(content)
    return SysfsReader(directory)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0x3c000000\n", 0x3C000000),
        ("0X3C000000", 0x3C000000),
        ("67108864\n", 67108864),
        (" \t\n\v\f\r 42 \n", 42),
        ("010", 8),
        ("+7", 7),
        ("0", 0),
        ("00", 0),
        ("0x0", 0),
        (str(U64), U64),
        (f"0x{U64:x}", U64),
        (f"0{U64:o}", U64),
        ("0x" + "0" * 4000 + "1", 1),
    ],
)
def test_numbers_as_strtoull_reads_them(text: str, value: int) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "0x",
        "08",
        "1 2",
        "12a",
        "0b1",
        "1_000",
        "-1",
        "--1",
        "1.0",
        "1e3",
        "٣",
        "5\0",
        str(U64 + 1),
        f"0x{U64 + 1:x}",
        "9" * 4000,
        "0x" + "f" * 4000,
    ],
)
def test_a_text_that_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@given(st.text(alphabet=" \t\n+0123456789abcdefxXg", max_size=24))
def test_it_agrees_with_the_c_library(text: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.strtoull.restype = ctypes.c_ulonglong
    buffer = ctypes.create_string_buffer(text.encode())
    end = ctypes.c_char_p()
    ctypes.set_errno(0)
    value = libc.strtoull(buffer, ctypes.byref(end), 0)
    rest = end.value or b""
    parsed_something = len(rest) < len(text)
    whole = parsed_something and not rest.strip(b" \t\n\v\f\r") and ctypes.get_errno() == 0
    binary = "0b" in text or "0B" in text  # newer C libraries read 0b1 as well; kernels write none
    if not binary:
        assert parse_number(text) == (value if whole else None)


@given(st.integers(0, U64), st.sampled_from(["{}", "0x{:x}", "0X{:X}", "0{:o}", " {}\n"]))
def test_every_number_of_64_bits_is_read_back(value: int, form: str) -> None:
    assert parse_number(form.format(value)) == value


def test_a_published_pool(tmp_path: Path) -> None:
    assert publish(tmp_path, b"0x3c000000\n", b"67108864\n").read() == POOL


@pytest.mark.parametrize(
    ("base", "size"),
    [
        (None, None),
        (b"0x3c000000\n", None),
        (None, b"67108864\n"),
        (b"0x0\n", b"67108864\n"),
        (b"0x3c000000\n", b"0\n"),
        (b"0x3c000000\n", b""),
        (b"garbage", b"67108864\n"),
        (b"0x3c000000\n", b"67108864 bytes\n"),
        (b"0x10000000000000000", b"67108864\n"),
        (b"\xff\xfe\x00", b"67108864\n"),
        (b"1" + b" " * 5000, b"67108864\n"),
    ],
)
def test_half_a_pool_is_no_pool(tmp_path: Path, base: bytes | None, size: bytes | None) -> None:
    assert publish(tmp_path, base, size).read() is None


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_no_content_is_ever_a_crash_or_half_a_value(
    tmp_path_factory: pytest.TempPathFactory, base: bytes, size: bytes
) -> None:
    pool = publish(tmp_path_factory.mktemp("sys"), base, size).read()
    assert pool is None or (pool.base > 0 and pool.size_bytes > 0)


def test_a_directory_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "swiotlb_base").mkdir()
    assert publish(tmp_path, None, b"4096").read() is None


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    reader = publish(tmp_path, b"0x3c000000", b"67108864")
    (tmp_path / "swiotlb_base").unlink()
    # A loop of links fails even for root, who may read a file of any mode.
    (tmp_path / "swiotlb_base").symlink_to("swiotlb_base")
    assert reader.read() is None


def test_the_first_reader_that_finds_a_pool_wins(tmp_path: Path) -> None:
    class Silent:
        def read(self) -> SwiotlbPool | None:
            return None

    reader = publish(tmp_path, b"0x3c000000\n", b"67108864\n")
    assert first_published([Silent(), reader]) == POOL
    assert first_published([Silent()]) is None
    assert first_published([]) is None
