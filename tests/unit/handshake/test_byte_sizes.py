"""The one grammar of sizes."""

from __future__ import annotations

import pytest

from services.handshake.byte_sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("67108864", 64 << 20),
        ("512B", 512),
        ("4096K", 4 << 20),
        ("4096KiB", 4 << 20),
        ("64M", 64 << 20),
        ("64MB", 64 << 20),
        ("1024MiB", 1 << 30),
        ("64mib", 64 << 20),
        ("64 MB", 64 << 20),
        ("1g", 1 << 30),
        ("1GB", 1 << 30),
        (" 2T ", 2 << 40),
        ("18446744073709551615", (1 << 64) - 1),
    ],
)
def test_a_size(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "M", "lots", "-1", "64MM", "64iB", "64KBi", "1.5G", "0x10", "1 2", "٣M", "9" * 5000],
)
def test_a_text_that_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size like 64M") as refused:
        parse_size(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["18446744073709551616", "16777216T"])
def test_a_size_past_64_bits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        parse_size(text)
