from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from services.devicehost.vhost_user.sockets import ListeningSocket
from services.handshake.errors import InvalidArgumentError
from tests.support.descriptors import open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def refusal(path: Path) -> InvalidArgumentError:
    """Ask for a socket that is refused; nothing must be left of it."""
    before = open_fds()
    with pytest.raises(InvalidArgumentError) as refused:
        ListeningSocket.at(path)
    assert refused.value.reason == "SOCKET_PATH"
    assert open_fds() == before
    return refused.value


@pytest.mark.parametrize(("group_id", "mode"), [(None, 0o600), (os.getgid(), 0o660)])
def test_only_its_user_and_its_group_may_connect(
    run_dir: Path, group_id: int | None, mode: int
) -> None:
    path = run_dir / "dev" / "a.sock"
    before = os.umask(0)
    try:
        listening = ListeningSocket.at(path, group_id)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert connects(path)
    listening.close()
    assert not path.exists()


def test_a_stale_socket_is_replaced(run_dir: Path) -> None:
    path = run_dir / "a.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert not connects(path)
    listening = ListeningSocket.at(path)
    assert connects(path)
    listening.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_a_process_has_is_not_replaced(
    run_dir: Path, kind: socket.SocketKind
) -> None:
    path = run_dir / "a.sock"
    with socket.socket(socket.AF_UNIX, kind) as live:
        live.bind(str(path))
        if kind is socket.SOCK_STREAM:
            live.listen(1)
        inode = path.stat().st_ino
        assert "listens" in refusal(path).message
        assert path.stat().st_ino == inode


def test_what_is_no_socket_is_not_replaced(run_dir: Path) -> None:
    path = run_dir / "a.sock"
    path.write_text("precious")
    assert "no socket" in refusal(path).message
    assert path.read_text() == "precious"


def test_a_path_that_no_socket_can_have_is_refused(run_dir: Path) -> None:
    long = run_dir / ("x" * (108 - len(os.fsencode(run_dir)) - 1))
    assert "108 bytes" in refusal(long).message


@pytest.fixture
def theirs(run_dir: Path) -> Iterator[socket.socket]:
    """A listening socket of whoever starts this process; inheritable and blocking."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run_dir / "theirs.sock"))
        sock.listen(1)
        os.set_inheritable(sock.fileno(), True)
        yield sock


def test_a_socket_that_was_handed_in_is_not_removed(theirs: socket.socket, run_dir: Path) -> None:
    path = run_dir / "theirs.sock"
    listening = ListeningSocket.inherited(os.dup(theirs.fileno()))
    assert listening.path == path
    assert connects(path)
    listening.close()
    assert path.exists()
    assert connects(path), "whoever handed it in still listens"


def test_a_socket_that_was_handed_in_is_not_inherited_and_does_not_block(
    theirs: socket.socket,
) -> None:
    fd = os.dup(theirs.fileno())
    os.set_inheritable(fd, True)
    listening = ListeningSocket.inherited(fd)
    assert not os.get_inheritable(fd)
    with pytest.raises(BlockingIOError):
        listening.socket.accept()
    listening.close()


def handed_in(kind: str, run_dir: Path) -> int:
    if kind == "a pipe":
        reads, writes = os.pipe()
        os.close(writes)
        return reads
    family = socket.AF_INET if kind == "of another family" else socket.AF_UNIX
    type_ = socket.SOCK_SEQPACKET if kind == "of another type" else socket.SOCK_STREAM
    sock = socket.socket(family, type_)
    if kind == "abstract":
        sock.bind(b"\0" + os.urandom(8).hex().encode())
    elif kind == "of another family":
        sock.bind(("127.0.0.1", 0))
    elif kind != "without a name":
        sock.bind(str(run_dir / "b.sock"))
    if kind not in ("without a name", "that does not listen"):
        sock.listen(1)
    return sock.detach()


@pytest.mark.parametrize(
    "kind",
    [
        "a pipe",
        "abstract",
        "of another family",
        "of another type",
        "that does not listen",
        "without a name",
    ],
)
def test_no_other_descriptor_is_taken_over(run_dir: Path, kind: str) -> None:
    fd = handed_in(kind, run_dir)
    with pytest.raises(InvalidArgumentError) as refused:
        ListeningSocket.inherited(fd)
    assert refused.value.reason == "SOCKET_FD"
