"""Who a command in the guest is run as, and the environment that it gets.

The guest has the host's users, because it has the host's /etc. Must not know guests.
"""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PASSED: Final = ("LANG", "LANGUAGE", "TZ", "NO_COLOR")
"""Variables that a command gets from the caller, and those whose names begin with LC_. Others may
be secrets, or name sockets that the guest does not have."""

OF_TERMINALS: Final = ("TERM", "COLORTERM")
"""Variables that it gets as well if it has a terminal."""

_ID_LIMIT: Final = (1 << 32) - 2


@dataclass(frozen=True, slots=True)
class GuestUser:
    """A user of the guest.

    Attributes:
        groups: The supplementary groups.
        name: Empty: the number has no name.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str = ""
    home: str = "/"
    shell: str = "/bin/sh"


def caller() -> GuestUser:
    """Return the user who runs this process."""
    uid = os.geteuid()
    return _user(uid, _entry(uid), os.getegid(), tuple(os.getgroups()))


def parse_user(text: str) -> GuestUser:
    """Parse USER[:GROUP], the value of `run --user`, each a name or a number.

    Raises:
        typer.BadParameter: There is no such user or group.
    """
    who, colon, group = text.partition(":")
    entry: pwd.struct_passwd | None
    try:
        entry = pwd.getpwnam(who)
    except (KeyError, ValueError):
        uid = _number(text, "user", who)
        entry = _entry(uid)
    else:
        uid = entry.pw_uid
    gid = _group(text, group) if colon else (entry.pw_gid if entry else uid)
    groups = tuple(os.getgrouplist(entry.pw_name, gid)) if entry and not colon else (gid,)
    return _user(uid, entry, gid, groups)


def environment(
    user: GuestUser, callers: Mapping[str, str], *, terminal: bool, given: Iterable[str] = ()
) -> dict[str, str]:
    """Return the variables of a command.

    Args:
        user: Who it is run as.
        callers: The variables of the caller.
        terminal: Whether it has a terminal.
        given: NAME=VALUE, or NAME with the caller's value, which may be missing.

    Raises:
        typer.BadParameter: One of `given` has no name.
    """
    variables = {"PATH": PATH, "HOME": user.home, "SHELL": user.shell}
    if user.name:
        variables |= {"USER": user.name, "LOGNAME": user.name}
    passed = (*PASSED, *(OF_TERMINALS if terminal else ()))
    variables |= {
        name: value for name, value in callers.items() if name in passed or name.startswith("LC_")
    }
    for item in given:
        name, equals, value = item.partition("=")
        if not name:
            raise typer.BadParameter(f"{item!r} has no name; write NAME=VALUE or NAME")
        if equals:
            variables[name] = value
        elif name in callers:
            variables[name] = callers[name]
    return variables


def _user(
    uid: int, entry: pwd.struct_passwd | None, gid: int, groups: tuple[int, ...]
) -> GuestUser:
    if entry is None:
        return GuestUser(uid, gid, groups)
    return GuestUser(
        uid, gid, groups, entry.pw_name, entry.pw_dir or "/", entry.pw_shell or "/bin/sh"
    )


def _entry(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _group(text: str, group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except (KeyError, ValueError):
        return _number(text, "group", group)


def _number(text: str, what: str, digits: str) -> int:
    if digits.isascii() and digits.isdigit() and int(digits) <= _ID_LIMIT:
        return int(digits)
    raise typer.BadParameter(
        f"{text!r}: there is no {what} {digits!r}; give the name of one, or a number from 0 to "
        f"{_ID_LIMIT}"
    )
