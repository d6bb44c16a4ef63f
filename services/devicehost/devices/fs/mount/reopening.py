"""Opening a file again after its descriptor was closed, by the kernel's name_to_handle_at(2).

The kernel's file handle names an inode and its generation, so it never leads to another file, even
after files were renamed, removed or made. File handles are made here, from the descriptors of
lookups. None comes from a guest: a guest's handles are numbers of open files. Must not know nodes
or requests.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from typing import TYPE_CHECKING

from services.devicehost.devices.fs.host_files import syscalls
from services.devicehost.devices.fs.host_files.descriptors import Descriptor
from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping


class Reopener:
    """Opens the files of one share again; usable from any thread.

    Attributes:
        usable: Whether files can be opened again: their file system supports
            name_to_handle_at(2), and this process has CAP_DAC_READ_SEARCH.
    """

    def __init__(self, root: Descriptor, device: int) -> None:
        """Try to open the root again.

        Args:
            root: O_PATH descriptor of a directory.
            device: Device number of its file system.
        """
        self._mutex = threading.Lock()
        self._anchors: Mapping[int, Descriptor] = {}
        try:
            self.reopen(device, self.prepare(root, device))
        except OSError:
            self.usable = False
        else:
            self.usable = True

    def prepare(self, descriptor: Descriptor, device: int) -> bytes:
        """Return the kernel's file handle of a file, for `reopen`.

        Args:
            descriptor: O_PATH descriptor of the file.
            device: Device number of its file system.

        Raises:
            OSError: The file could not be opened again.
        """
        if device not in self._anchors:
            # open_by_handle_at(2) needs an ordinary descriptor of any file of the file system, but
            # opening a FIFO, a device or a socket would have an effect.
            kind = stat.S_IFMT(os.fstat(descriptor.fd).st_mode)
            if kind not in (stat.S_IFREG, stat.S_IFDIR):
                raise refusal(errno.EOPNOTSUPP)
            anchor = Descriptor(os.open(descriptor.path, os.O_RDONLY | os.O_NONBLOCK))
            with self._mutex:
                self._anchors = {**self._anchors, device: anchor}
        return syscalls.name_to_handle(descriptor.fd)

    def reopen(self, device: int, reopen_with: bytes) -> Descriptor:
        """Open a file again, as an O_PATH descriptor.

        Args:
            device: Device number of its file system.
            reopen_with: What `prepare` returned for it.

        Raises:
            OSError: ESTALE when the file is gone.
        """
        anchor = self._anchors.get(device)
        if anchor is None:
            raise refusal(errno.ESTALE)
        return Descriptor(syscalls.open_by_handle(anchor.fd, reopen_with, os.O_PATH))
