"""System calls that Python does not offer: what they must not do."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def inner_fd(tmp_path: Path) -> Iterator[int]:
    """A directory with links, in a directory with a file that must not be reached."""
    (tmp_path / "secret").write_text("secret")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "file").touch()
    (inner / "up").symlink_to("../secret")
    (inner / "away").symlink_to("/etc/passwd")
    (inner / "near").symlink_to("file")
    (inner / "folder").symlink_to(".")
    fd = os.open(inner, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"..", errno.EXDEV),
        (b"../secret", errno.EXDEV),
        (b"/etc/passwd", errno.EXDEV),
        (b"up", errno.ELOOP),
        (b"away", errno.ELOOP),
        (b"near", errno.ELOOP),
        (b"folder/file", errno.ELOOP),
    ],
)
def test_opening_beneath_follows_no_link_and_reaches_nothing_above(
    inner_fd: int, name: bytes, number: int
) -> None:
    with pytest.raises(OSError) as error:
        os.close(syscalls.open_beneath(inner_fd, name, os.O_RDONLY))
    assert error.value.errno == number


def test_a_magic_link_is_not_followed() -> None:
    """/proc/self/fd has links that lead to a file without its path."""
    directory = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError) as error:
            syscalls.open_beneath(directory, b"0/", os.O_PATH)
        assert error.value.errno == errno.ELOOP
    finally:
        os.close(directory)


def test_a_link_itself_can_be_opened_by_path_only(inner_fd: int) -> None:
    fd = syscalls.open_beneath(inner_fd, b"away", os.O_PATH)
    try:
        assert os.readlink(b"", dir_fd=fd) == b"/etc/passwd"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.root
def test_a_file_that_is_opened_again_goes_to_no_child_process(inner_fd: int) -> None:
    ordinary = os.open(f"/proc/self/fd/{inner_fd}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fd = syscalls.open_by_handle(ordinary, syscalls.name_to_handle(inner_fd), os.O_PATH)
        try:
            assert os.path.samestat(os.fstat(fd), os.fstat(inner_fd))
            assert not os.get_inheritable(fd)
        finally:
            os.close(fd)
    finally:
        os.close(ordinary)


def test_a_range_of_a_file_reaches_beyond_32_bits_and_not_beyond_63(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        syscalls.fallocate(file.fileno(), 0, 5 << 32, 4096)
        assert os.fstat(file.fileno()).st_size == (5 << 32) + 4096
        for offset, length in ((1 << 63, 1), (0, 1 << 63)):
            with pytest.raises(OverflowError, match="does not fit 63 bits"):
                syscalls.fallocate(file.fileno(), 0, offset, length)
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            syscalls.fallocate(file.fileno(), 0, (1 << 63) - 1, 1)


@pytest.mark.parametrize(("number", "passed_on"), [(errno.EPERM, False), (errno.ENOMEM, True)])
def test_where_a_thread_can_have_no_umask_of_its_own_it_sets_the_process_wide_one(
    monkeypatch: pytest.MonkeyPatch, number: int, passed_on: bool
) -> None:
    def refuse(_: int) -> int:
        ctypes.set_errno(number)
        return -1

    monkeypatch.setattr(syscalls, "_unshare", refuse)
    before = os.umask(0o077)
    try:
        if passed_on:
            with pytest.raises(OSError, match=os.strerror(number)):
                syscalls.use_private_umask(0o022)
        else:
            syscalls.use_private_umask(0o022)
    finally:
        after = os.umask(before)
    assert after == (0o077 if passed_on else 0o022)
