"""What `porthole run` does in the guest: shares, mounts, working directory. It starts nothing.

The guest's root is the host's (services.cli.guest_root). Each further share is mounted at its place
in that root.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from services.cli.guest_root import ROOT_SHARE
from services.cli.requests import GuestMount, ShareRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

KERNELS_OWN: Final = ("/dev", "/proc", "/sys")
"""Places that the guest's kernel fills: no share can be there."""


@dataclass(frozen=True, slots=True)
class RunShare:
    """A directory of the host, and its place in the guest.

    Attributes:
        host: An absolute path without symbolic links.
        guest: An absolute path, without "." and "..".
        read_only: Whether the guest cannot write.
    """

    host: str
    guest: str
    read_only: bool = False


def parse_run_share(text: str) -> RunShare:
    """Parse HOST:GUEST[:ro], the value of `run --share`. HOST may have colons, GUEST not.

    Raises:
        typer.BadParameter: It has another form, a directory that is missing on the host, or a
            place that cannot be one.
    """
    read_only = text.endswith(":ro")
    host, colon, guest = text.removesuffix(":ro").rpartition(":")
    if not (colon and host and guest):
        raise typer.BadParameter(
            f"{text!r} has no directory on both sides of a colon; write HOST:GUEST or "
            "HOST:GUEST:ro, for instance .:/work"
        )
    place = _place(text, guest)
    host = os.path.realpath(host)
    if not os.path.isdir(host):  # noqa: PTH112 - the path may be any bytes
        raise typer.BadParameter(
            f"{text!r}: {host} is not a directory of this host; make it, or share another"
        )
    return RunShare(host, place, read_only)


def _place(text: str, guest: str) -> str:
    if not guest.startswith("/"):
        raise typer.BadParameter(
            f"{text!r}: the place in the guest, {guest!r}, must be an absolute path; write "
            f"HOST:/{guest.removeprefix('./')}"
        )
    if ".." in guest.split("/"):
        raise typer.BadParameter(f"{text!r}: the place in the guest must not have '..' in it")
    place = "/" + posixpath.normpath(guest).lstrip("/")
    if place == "/" or _is_below(place, KERNELS_OWN):
        raise typer.BadParameter(
            f"{text!r}: nothing can be shared at {place}, which is the guest's own; choose another "
            "place, for instance /work"
        )
    return place


def check_places(shares: Iterable[RunShare]) -> None:
    """Refuse two shares at one place.

    Raises:
        typer.BadParameter: As above.
    """
    taken: dict[str, str] = {}
    for share in shares:
        if share.guest in taken:
            raise typer.BadParameter(
                f"{taken[share.guest]} and {share.host} are both to be at {share.guest}; give each "
                "a place of its own"
            )
        taken[share.guest] = share.host


def share_requests(shares: Iterable[RunShare]) -> dict[ShareRequest, list[RunShare]]:
    """Return what the owner is asked to share, and the places of each.

    The root comes first. A directory that is to be at several places is shared once, because the
    owner takes a second equal share for the first.
    """
    requests: dict[ShareRequest, list[RunShare]] = {
        ROOT_SHARE: [],
    }
    by_directory: dict[tuple[str, bool], list[RunShare]] = {}
    for share in shares:
        by_directory.setdefault((share.host, share.read_only), []).append(share)
    for number, ((host, read_only), places) in enumerate(by_directory.items()):
        requests[ShareRequest(host, f"share{number}", "ro" if read_only else "")] = places
    return requests


def share_mounts(requests: dict[ShareRequest, list[RunShare]]) -> list[GuestMount]:
    """Return the mounts of the further shares, for when the root has been entered.

    Then a symbolic link on the way to a place is followed as every program follows it. Outer places
    come before those within them, which they would hide.
    """
    mounts = [
        GuestMount("virtiofs", request.tag, place.guest, place.read_only)
        for request, places in requests.items()
        for place in places
    ]
    return sorted(mounts, key=lambda mount: mount.target.count("/"))


def working_directory(present: str, shares: Iterable[RunShare]) -> str:
    """Return the directory in the guest that has the path of the present one, or "/".

    Args:
        present: An absolute path on the host.
        shares: They hide what the root has at their places.
    """
    hiding = [share for share in shares if _is_below(present, (share.guest,))]
    if not hiding:
        return "/" if _is_below(present, (*KERNELS_OWN, "/run")) else present
    innermost = max(hiding, key=lambda share: share.guest.count("/"))
    below = os.path.relpath(present, innermost.guest)
    there = os.path.join(innermost.host, below)  # noqa: PTH118 - the path may be any bytes
    return present if os.path.isdir(there) else "/"  # noqa: PTH112


def _is_below(path: str, places: Iterable[str]) -> bool:
    """Return whether a path is one of the places, or below one."""
    return any(path == place or path.startswith(f"{place}/") for place in places)
