"""The log of a guest's output: bounded, and safe to quote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.vm_owner.machines import bounded_log
from services.vm_owner.machines.bounded_log import BoundedLog

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_file_has_the_newest_part_and_never_more_than_twice_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_log, "FILE_LIMIT_BYTES", 100)
    log = BoundedLog(tmp_path / "console.log")
    for number in range(1000):
        log.write(f"line {number}\n".encode())
        sizes = [path.stat().st_size for path in tmp_path.iterdir()]
        assert sum(sizes) <= 200
    log.write(b"x" * 1000 + b"the end")
    log.close()
    assert (tmp_path / "console.log").read_bytes().endswith(b"xthe end")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["console.log", "console.log.1"]


def test_last_lines_are_printable_and_few(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "log")
    log.write("".join(f"line {n}\r\n" for n in range(100)).encode())
    log.write(b"\x1b[31mred\xff\n\n  \n")
    assert log.last_lines(3) == "line 98 | line 99 | [31mred\N{REPLACEMENT CHARACTER}"
    log.write(b"y" * 5000)
    assert len(log.last_lines()) <= bounded_log.QUOTED_CHARACTERS + 1
    log.close()


def test_a_file_that_cannot_be_written_leaves_the_last_lines(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "missing" / "log")
    log.write(b"said\n")
    assert log.last_lines() == "said"
    assert log.line_with("sai") == "said"
    assert log.line_with("else") == ""


def test_a_guest_that_prints_does_not_fill_the_owners_log_when_the_disk_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = BoundedLog(tmp_path / "missing" / "log")
    for number in range(100):
        log.write(f"line {number}\n".encode())
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/missing/log is not written: No such file or directory"
    ]
