"""The native library's side of a mount: struct ph_mount, which has its nodes and open files.

Owns the reference to it. `native_tables` works on what it has, and `native_mounts` puts it where
the native loop finds it. Must not know requests.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Final

from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files.descriptors import first_unusable
from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from services.devicehost.devices.fs.host_files.descriptors import Descriptor, Limits


class NativeMount:
    """The library's side of one mount; it lives as long as it is referenced.

    Attributes:
        library: The native fast path.
        root_id: Of the shared directory's node.
        pointer: The library's struct ph_mount, for its functions.
    """

    pointer: int | None = None

    def __init__(
        self,
        library: ctypes.CDLL,
        root: Descriptor,
        rules: fastpath.PhRules,
        limits: Limits,
        *,
        root_id: int,
        may_switch: bool,
    ) -> None:
        """Start with the root.

        Args:
            library: The native fast path.
            root: O_PATH descriptor of the shared directory.
            rules: How files are shown.
            limits: Of the device.
            root_id: Of the shared directory's node; other nodes are numbered from there.
            may_switch: Whether files are made as the guest's user.

        Raises:
            OSError: EIO: the shared directory cannot be read any more, or there is no memory.
        """
        self.library: Final = library
        self.root_id: Final = root_id
        setup = fastpath.PhMountSetup(
            rules=rules,
            root_id=root_id,
            nodes=limits.nodes,
            all_nodes=limits.all_nodes,
            descriptors=limits.descriptors,
            handles=limits.handles,
            all_handles=limits.all_handles,
            root_fd=root.duplicate().detach(),
            descriptor_limit=first_unusable(),
            may_switch=may_switch,
            alone=limits.one_guest,
        )
        self.pointer = library.ph_mount_new(ctypes.byref(setup))
        if self.pointer is None:
            raise refusal(errno.EIO)

    def __del__(self) -> None:
        """Release the library's side, which the native loop may still use for a while."""
        if self.pointer is not None:
            self.library.ph_mount_release(self.pointer)
            self.pointer = None
