"""The socket on which a device waits for its front-end: made at a path, or handed in.

Owns which files may be replaced and which users may connect. Must not know the protocol that is
spoken on the socket.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path
from typing import Final, Self

from services.handshake.errors import InvalidArgumentError

_OWNER_MODE: Final = 0o600
_GROUP_MODE: Final = 0o660
_PATH_LIMIT: Final = 107


class ListeningSocket:
    """A Unix stream socket that front-ends can connect to.

    Attributes:
        path: Its name in the file system.
        socket: Listens.
    """

    def __init__(self, path: Path, sock: socket.socket, *, leaves_file: bool) -> None:
        """Take over a socket.

        Args:
            path: Of the socket.
            sock: Listens there.
            leaves_file: Whether `path` was made by another process, and stays after `close`.
        """
        self.path = path
        self.socket = sock
        self._leaves_file = leaves_file

    @classmethod
    def at(cls, path: Path, group_id: int | None = None) -> Self:
        """Make a socket.

        Args:
            path: At most 107 bytes; a stale socket there is replaced.
            group_id: Members may connect as well; None: only this user.

        Raises:
            InvalidArgumentError: SOCKET_PATH: too long, the directory does not take a socket, the
                group cannot be given, a file of another kind is there, or a process listens there.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(sock, path, group_id)
        except BaseException:
            sock.close()
            raise
        return cls(path, sock, leaves_file=False)

    @classmethod
    def inherited(cls, fd: int) -> Self:
        """Take over a descriptor that the process was started with.

        Raises:
            InvalidArgumentError: SOCKET_FD: it is not a listening Unix stream socket with a path.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError as error:
            raise _refuse_fd(fd, error.strerror or str(error)) from error
        try:
            kind = (sock.family, sock.type)
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            name = sock.getsockname()  # of an abstract socket it is bytes, of a nameless one empty
            if (
                kind != (socket.AF_UNIX, socket.SOCK_STREAM)
                or not listens
                or not isinstance(name, str)
                or not name
            ):
                raise _refuse_fd(fd, "no listening Unix stream socket with a path")
            # Processes that this one starts do not inherit it, and accept never blocks.
            sock.set_inheritable(False)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return cls(Path(name), sock, leaves_file=True)

    def close(self) -> None:
        """Stop listening, and remove the file if `at` has made it."""
        self.socket.close()
        self.remove_file()

    def remove_file(self) -> None:
        """Remove the file if `at` has made it; harmless when done before."""
        if not self._leaves_file:
            self.path.unlink(missing_ok=True)
            self._leaves_file = True


def _refuse_fd(fd: int, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "SOCKET_FD",
        f"descriptor {fd}: {why}; hand in a Unix socket on which listen(2) was called",
        fd=fd,
    )


def _bind(sock: socket.socket, path: Path, group_id: int | None) -> None:
    name = os.fsencode(path)
    if len(name) > _PATH_LIMIT:
        raise InvalidArgumentError(
            "SOCKET_PATH",
            f"socket path {str(path)!r} has {len(name)} bytes; {_PATH_LIMIT} are the most: choose "
            "a shorter run directory",
            bound=_PATH_LIMIT,
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path, name)
        sock.bind(name)
        if group_id is not None:
            os.chown(path, -1, group_id)
        path.chmod(_OWNER_MODE if group_id is None else _GROUP_MODE)
        sock.listen(1)
    except OSError as error:
        raise InvalidArgumentError(
            "SOCKET_PATH", f"cannot listen on {str(path)!r}: {error.strerror}"
        ) from error


def _remove_stale(path: Path, name: bytes) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidArgumentError(
            "SOCKET_PATH", f"{str(path)!r} exists and is no socket; choose another path"
        )
    # A stream connection would take the place of the front-end that a live device waits for. A
    # datagram socket is refused without that: with EPROTOTYPE if a process listens, otherwise with
    # ECONNREFUSED.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        if probe.connect_ex(name) in (0, errno.EPROTOTYPE):
            raise InvalidArgumentError(
                "SOCKET_PATH",
                f"a process listens on {str(path)!r} already; end it, or choose another path",
            )
    path.unlink()
