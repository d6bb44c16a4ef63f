"""Acting as the guest's user: file system credentials of the calling thread.

Files are created under the uid and gid of the guest's process where the device host may do so (as
root, in effect), and as the device host itself otherwise. The guest kernel checks permissions: it
mounts virtio-fs with default_permissions and knows supplementary groups, which do not travel. So
CAP_DAC_OVERRIDE is kept while creating. The calls made here change the calling thread alone; glibc
spreads none of them over the process. Must not know FUSE.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
from typing import TYPE_CHECKING, Final, NamedTuple

from services.devicehost.devices.fs.host_files.errors import refusal

if TYPE_CHECKING:
    from types import TracebackType

_CAP_DAC_OVERRIDE: Final = 1 << 1
_CAP_FSETID: Final = 1 << 4
_CAP_SETGID: Final = 1 << 6
_CAP_SETUID: Final = 1 << 7
CAP_SYS_RESOURCE: Final = 1 << 24
_CAPABILITY_VERSION_3: Final = 0x20080522
_NOBODY: Final = (1 << 32) - 1
"""Not an id: with it setfsuid and setfsgid change nothing and return the current value."""

_SYS_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159, "riscv64": 159}
"""By machine; glibc's setgroups would change every thread."""

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("setfsuid", "setfsgid"):
    getattr(_libc, _name).argtypes = (ctypes.c_uint32,)
    getattr(_libc, _name).restype = ctypes.c_uint32


class User(NamedTuple):
    """The user that a request acts for.

    Attributes:
        uid: User id.
        gid: Group id.
        member: Whether the user is also in the group of the directory that the request is about.
    """

    uid: int
    gid: int
    member: bool


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def may_switch() -> bool:
    """Return whether this process may act as any user."""
    wanted = _CAP_SETUID | _CAP_SETGID
    return bool(_capabilities()[0].effective & wanted == wanted)


def leave_groups() -> None:
    """Take the calling thread's supplementary groups away, if it may act as any user.

    They are the device host's, and the guest's user is in none of them. On an architecture whose
    number of the system call is not known here, the whole process leaves them.

    Raises:
        OSError: An error of setgroups(2) other than EPERM: a user namespace may forbid it for
            good.
    """
    if not may_switch():
        return
    number = _SYS_SETGROUPS.get(platform.machine())
    with contextlib.suppress(PermissionError):
        if number is None:
            os.setgroups([])
        elif _libc.syscall(ctypes.c_long(number), ctypes.c_size_t(0), None):
            raise refusal(ctypes.get_errno())


def give_up(capability: int) -> None:
    """Take a capability from the calling thread for good, and from the threads that it starts.

    Args:
        capability: Its bit, of the first 32.

    Raises:
        OSError: An error of capset(2).
    """
    data = _capabilities()
    for each in ("effective", "permitted", "inheritable"):
        setattr(data[0], each, getattr(data[0], each) & ~capability)
    _set_capabilities(data)


class Nothing:
    """A context in which credentials stay as they are."""

    def __enter__(self) -> None:
        """Change nothing."""

    def __exit__(self, *_: object) -> None:
        """Change nothing."""


NOTHING: Final = Nothing()


def is_own(uid: int, gid: int) -> bool:
    """Return whether these ids are root's and the process's own: acting as them changes nothing."""
    return not (uid or gid or os.geteuid() or os.getegid())


class ActAs:
    """While this is entered, the calling thread creates files as `uid` and `gid`."""

    __slots__ = ("_gid", "_kept", "_uid")

    def __init__(self, uid: int, gid: int, *, override: bool = True, member: bool = False) -> None:
        """Remember the user and group to act as.

        Args:
            uid: User id of the host.
            gid: Group id of the host.
            override: Keep CAP_DAC_OVERRIDE: the guest kernel has checked permissions already.
            member: A supplementary group makes the user a member of the new file's group.
                CAP_FSETID is kept, so that the file's set-group-id bit stays.
        """
        self._uid = uid
        self._gid = gid
        self._kept = _CAP_DAC_OVERRIDE * override | _CAP_FSETID * member

    def __enter__(self) -> None:
        """Switch.

        Raises:
            OSError: EPERM when the id is not mapped in this user namespace; credentials are
                then as before.
        """
        _libc.setfsgid(self._gid)
        _libc.setfsuid(self._uid)
        # The calls report no failure, so the values are read back.
        if _libc.setfsgid(_NOBODY) != self._gid or _libc.setfsuid(_NOBODY) != self._uid:
            self.__exit__(None, None, None)
            raise refusal(errno.EPERM)
        if self._kept and self._uid:
            _change(add=self._kept)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Switch back; the user first, since that brings the capabilities back."""
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())


class KillSuidGid:
    """While this is entered, writing clears set-user-id and set-group-id bits.

    The kernel keeps the bits for a thread with CAP_FSETID, so the thread drops the capability.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        """Drop the capability."""
        _change(remove=_CAP_FSETID)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raise the capability again, if it is permitted."""
        _change(add=_CAP_FSETID)


def _capabilities() -> ctypes.Array[_Data]:
    header, data = _Header(_CAPABILITY_VERSION_3, 0), (_Data * 2)()
    if _libc.capget(ctypes.byref(header), data):
        raise refusal(ctypes.get_errno())
    return data


def _change(*, add: int = 0, remove: int = 0) -> None:
    data = _capabilities()
    data[0].effective = (data[0].effective | add & data[0].permitted) & ~remove
    _set_capabilities(data)


def _set_capabilities(data: ctypes.Array[_Data]) -> None:
    header = _Header(_CAPABILITY_VERSION_3, 0)
    if _libc.capset(ctypes.byref(header), data):
        raise refusal(ctypes.get_errno())
