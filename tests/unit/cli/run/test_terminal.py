"""The caller's terminal: raw while a command has it, and as before afterwards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios
from typing import TYPE_CHECKING

import pytest

from services.cli.requests import WindowSize
from services.cli.run import terminal as module
from services.cli.run.terminal import Escapes, Terminal, callers_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """The two ends of a terminal of 24 lines of 80 characters."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    try:
        yield ours, theirs
    finally:
        for fd in (ours, theirs):
            with contextlib.suppress(OSError):
                os.close(fd)


def test_it_is_raw_in_the_body_and_as_before_after_it(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    with Terminal(pty[1]).raw():
        local = termios.tcgetattr(pty[1])[3]
        assert not local & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert termios.tcgetattr(pty[1]) == before


def test_it_is_restored_after_an_error(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    with pytest.raises(KeyboardInterrupt), Terminal(pty[1]).raw():
        raise KeyboardInterrupt
    assert termios.tcgetattr(pty[1]) == before


def test_it_may_be_raw_twice(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    terminal = Terminal(pty[1])
    with terminal.raw():
        terminal.restore()
        assert termios.tcgetattr(pty[1]) == before
        terminal.make_raw()
        assert termios.tcgetattr(pty[1]) != before
    assert termios.tcgetattr(pty[1]) == before


def test_what_was_typed_before_is_kept(pty: tuple[int, int]) -> None:
    os.write(pty[0], b"typed\n")
    with Terminal(pty[1]).raw():
        assert os.read(pty[1], 100) == b"typed\n"


def test_its_end_while_it_is_raw_is_no_error(pty: tuple[int, int]) -> None:
    with Terminal(pty[1]).raw():
        os.close(pty[0])


def test_what_is_no_terminal_cannot_be_raw() -> None:
    with open("/dev/null", "rb") as file, pytest.raises(OSError, match="ioctl"):  # noqa: PTH123
        Terminal(file.fileno()).make_raw()


def test_its_size_is_that_of_now(pty: tuple[int, int]) -> None:
    terminal = Terminal(pty[1])
    assert terminal.size == WindowSize(24, 80)
    fcntl.ioctl(pty[0], termios.TIOCSWINSZ, struct.pack("4H", 50, 132, 0, 0))
    assert terminal.size == WindowSize(50, 132)
    with open("/dev/null", "rb") as file:  # noqa: PTH123
        assert Terminal(file.fileno()).size == WindowSize(0, 0)


def test_a_command_has_a_terminal_if_all_three_streams_are_one(
    pty: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STANDARD_FDS", (pty[1], pty[1], pty[1]))
    assert callers_terminal() is not None
    with open("/dev/null", "rb") as file:  # noqa: PTH123
        monkeypatch.setattr(module, "STANDARD_FDS", (pty[1], pty[1], file.fileno()))
        assert callers_terminal() is None


@pytest.mark.parametrize(
    ("typed", "complete"),
    [
        ([(b"\x1d\x1d\x1d", 0.0)], True),
        ([(b"\x1d", 0.0), (b"\x1d", 0.4), (b"\x1d", 1.0)], True),
        ([(b"\x1d", 0.0), (b"\x1d", 0.4), (b"\x1d", 1.1)], False),
        ([(b"\x1d", 0.0), (b"\x1d", 1.0), (b"\x1d", 1.5), (b"\x1d", 1.9)], True),
        ([(b"\x1d\x1da\x1d", 0.0)], False),
        ([(b"x\x1d\x1d\x1dy", 0.0)], True),
        ([(b"", 0.0)], False),
    ],
)
def test_three_of_the_key_in_a_second_are_the_end(
    typed: list[tuple[bytes, float]], complete: bool
) -> None:
    escapes = Escapes()
    found = [escapes.complete(data, now_s) for data, now_s in typed]
    assert any(found) is complete
