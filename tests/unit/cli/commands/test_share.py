from __future__ import annotations

import pytest

from services.cli.commands.share import checksum_line


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (b"a b", b"00  a b\n"),
        (b"a\nb", b"\\00  a\\nb\n"),
        (b"a\\b", b"\\00  a\\\\b\n"),
        (b"\xff", b"00  \xff\n"),
    ],
)
def test_a_checksum_line_is_what_sha256sum_writes(name: bytes, line: bytes) -> None:
    assert checksum_line(name, "00") == line
