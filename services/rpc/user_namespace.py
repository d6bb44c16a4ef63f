"""User namespaces: the rights over a network of its own, with TAPs, that any user may have.

Owns entering one (user_namespaces(7)), and saying what on this machine forbids it. Only a process
that has one thread can enter one, so it is done before anything else. Programs that an ordinary
user starts from there have no rights, and may enter one of their own. Must not know what the
network is for.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from services.handshake.errors import FailedPreconditionError
from services.wire import tun

# include/uapi/linux/sched.h
NEW_MOUNTS: Final = 0x0002_0000
NEW_NETWORK: Final = 0x4000_0000
_NEW_USER: Final = 0x1000_0000

# include/uapi/linux/mount.h
_MS_REC: Final = 0x4000
_MS_PRIVATE: Final = 1 << 18

# include/uapi/linux/capability.h
CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21

_SWITCHES: Final = (
    ("user/max_user_namespaces", "0", "raise user.max_user_namespaces, which is 0"),
    (
        "kernel/unprivileged_userns_clone",
        "0",
        "set kernel.unprivileged_userns_clone, which is 0, to 1",
    ),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor restricts them: set kernel.apparmor_restrict_unprivileged_userns, which is 1, "
        "to 0, or allow `userns` in a profile",
    ),
)
"""Where a system forbids user namespaces: file below /proc/sys, what it says then, the remedy."""

_MESSAGE_BYTES: Final = 1024


def has_capabilities(*numbers: int) -> bool:
    """Return whether these capabilities are effective; root may lack them."""
    status = Path("/proc/self/status").read_text()
    (effective,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return all(int(effective, 16) >> number & 1 for number in numbers)


def enter(also: int = 0) -> None:
    """Move this process into a user namespace of its own; user and group stay what they are.

    A child process tries it first: half way there is no way back.

    Args:
        also: NEW_MOUNTS, NEW_NETWORK: the namespaces that this process gets in it at once.

    Raises:
        FailedPreconditionError: USER_NAMESPACE_REFUSED, with cause and remedy; nothing has
            changed.
    """
    refusal = _tried_by_a_child()
    if not refusal:
        try:
            _enter(also)
        except OSError as error:  # this process has more than one thread, or the last one was taken
            refusal = str(error)
    if refusal:
        raise FailedPreconditionError(
            "USER_NAMESPACE_REFUSED",
            "it needs root, or a user namespace with a TAP in it, which this machine refuses: "
            f"{refusal}; {remedy(Path('/proc/sys'), Path(tun.DEVICE))}",
        )


def remedy(sysctls: Path, device: Path) -> str:
    """Return what is to be done where user namespaces, or a TAP in one, are refused.

    Args:
        sysctls: /proc/sys.
        device: /dev/net/tun.
    """
    for name, forbidding, words in _SWITCHES:
        try:
            if sysctls.joinpath(name).read_text().strip() == forbidding:
                return words
        except OSError:
            continue
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} must be there, readable and writable (modprobe tun; chmod 0666 {device})"
    return "a container, or a security module, may forbid it"


def unshare(kinds: int) -> None:
    """Give this thread new namespaces; the mounts that it sees then propagate nowhere.

    Raises:
        OSError: The kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(kinds) != 0:
        raise _failed("unshare")
    # systemd makes the root shared, so that without this a mount would propagate to the host.
    private = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    if kinds & NEW_MOUNTS and libc.mount(b"none", b"/", None, private, None) != 0:
        raise _failed("mount")


def _enter(kinds: int) -> None:
    user, group = os.geteuid(), os.getegid()
    unshare(_NEW_USER | kinds)
    # A group may be mapped by one who cannot leave groups any more (CVE-2014-8989).
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", name).write_text(text)


def _tried_by_a_child() -> str:
    """Have a child process make namespaces and a TAP; return what it could not; empty: nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "it ended"
        try:
            _enter(NEW_NETWORK | NEW_MOUNTS)
            _make_tap()
            said = ""
        except OSError as error:
            said = str(error)
        finally:
            os.write(writing, said.encode()[:_MESSAGE_BYTES])
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as words:
        said = words.read().decode(errors="replace")
    os.waitpid(child, 0)
    return said


def _make_tap() -> None:
    fd = os.open(tun.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, tun.TUNSETIFF, tun.IFREQ_FLAGS.pack(b"tap%d", tun.IFF_TAP | tun.IFF_NO_PI))
    os.close(fd)


def _failed(call: str) -> OSError:
    number = ctypes.get_errno()
    if number == errno.ENOSPC:
        return OSError(number, f"{call}: there are too many namespaces (user.max_user_namespaces)")
    return OSError(number, f"{call}: {os.strerror(number)}")
