"""Random calls on names and files below one directory.

Must not know the other processes.
"""

from __future__ import annotations

import errno
import os
import random
import stat
import zlib
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.fs.host_files import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_FDCWD: Final = -100
_EXCHANGE: Final = 2
_DIRECTORIES: Final = "abc"
"""Names that tend to be directories, since paths go through them."""
_FILES: Final = "defghij"


class Tree:
    """Calls below one directory.

    Attributes:
        RACES: Errnos that a call may have while others work there, too; 0 is success. EINVAL: a
            directory would be moved into itself. EPERM: a link to a directory. ENODATA: the name
            now leads to a file without the attribute.
        HOST_RACES: The same while others work on the host, too. ESTALE: the kernel finds a
            directory at another place, and cannot move it there while another one is being moved
            (__d_unalias in Linux, fs/dcache.c).
    """

    RACES: Final = {
        *(0, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),
        *(errno.ELOOP, errno.EINVAL, errno.EPERM, errno.ENODATA),
    }
    HOST_RACES: Final = RACES | {errno.ESTALE}

    def __init__(self, seed: int, directory: str) -> None:
        self._random = random.Random(seed)
        self._root = directory
        self._actions: list[Callable[[str, str, int], str | None]] = [
            *(self.create, self.create, self.create, self.mkdir, self.mkdir, self.mkdir),
            *(self.symlink, self.link, self.rename),
            *(self.rename, self.exchange, self.unlink, self.rmdir, self.write, self.read),
            *(self.truncate, self.chmod, self.label, self.status, self.list, self.held),
        ]

    def step(self) -> tuple[str, int]:
        """Make one call; returns its result, and its errno or 0."""
        action = self._random.choice(self._actions)
        one, other, size = self._path(), self._path(), self._random.randrange(1 << 16)
        call = f"{action.__name__} {one} {other} {size}"
        try:
            said = action(os.path.join(self._root, one), os.path.join(self._root, other), size)
        except OSError as error:
            number = error.errno or 0
            return f"{call}: {errno.errorcode.get(number, error)}", number
        return f"{call}: {said or 'done'}", 0

    def _path(self) -> str:
        depth = self._random.choice((0, 0, 1, 1, 2))
        above = [self._random.choice(_DIRECTORIES) for _ in range(depth)]
        return "/".join([*above, self._random.choice(_DIRECTORIES + _FILES)])

    def create(self, one: str, _: str, size: int) -> None:
        fd = os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600 | size & 0o77)
        _write_all(fd, size)

    def mkdir(self, one: str, _: str, __: int) -> None:
        os.mkdir(os.path.join(os.path.dirname(one), self._random.choice(_DIRECTORIES)))

    def symlink(self, one: str, other: str, _: int) -> None:
        os.symlink(os.path.basename(other), one)

    def link(self, one: str, other: str, _: int) -> None:
        os.link(one, other, follow_symlinks=False)

    def rename(self, one: str, other: str, _: int) -> None:
        os.rename(one, other)

    def exchange(self, one: str, other: str, _: int) -> None:
        syscalls.rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE)

    def unlink(self, one: str, _: str, __: int) -> None:
        os.unlink(one)

    def rmdir(self, one: str, _: str, __: int) -> None:
        os.rmdir(one)

    def write(self, one: str, _: str, size: int) -> None:
        _write_all(os.open(one, os.O_WRONLY | os.O_APPEND), size)

    def read(self, one: str, _: str, __: int) -> str:
        with open(one, "rb", buffering=0) as file:
            data = file.readall()
        return f"{len(data)} bytes, {zlib.crc32(data):08x}"

    def truncate(self, one: str, _: str, size: int) -> None:
        os.truncate(one, size)

    def chmod(self, one: str, _: str, size: int) -> None:
        os.chmod(one, 0o700 | size & 0o77)

    def label(self, one: str, _: str, size: int) -> str:
        os.setxattr(one, "user.label", b"%d" % size)
        return os.getxattr(one, "user.label").decode()

    def status(self, one: str, _: str, __: int) -> str:
        status = os.lstat(one)
        size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
        return f"{stat.filemode(status.st_mode)} {size} {links}"

    def list(self, one: str, _: str, __: int) -> str:
        return " ".join(sorted(os.listdir(os.path.dirname(one))))

    def held(self, one: str, other: str, size: int) -> str:
        """Check that an open file stays whole when its name is changed or removed."""
        fd = os.open(one, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)
        with open(fd, "r+b", buffering=0) as file:
            file.write(b"x" * size)
            os.rename(one, other)
            return f"{os.fstat(file.fileno()).st_nlink} links"


def _write_all(fd: int, size: int) -> None:
    with open(fd, "wb", buffering=0) as file:
        file.write(b"%5d" % size * (size // 5))
