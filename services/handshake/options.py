"""Device options: the string that the VM owner writes and the device host parses.

The form is `name;key=value;flag;…;vm_id=<uuid>`. The token is one of the items, if there is one.
"""

from __future__ import annotations

import ipaddress
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import (
    SwiotlbPool,
    check_aperture,
    format_aperture,
    parse_aperture,
    parse_token,
)
from services.handshake.rate_limit import RateLimit, parse_rate_limit
from services.handshake.xattr_map import SAFE, XattrMap, parse_xattr_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_QUEUES: Final = 8
"""Most request queues of a virtio-fs device, and most pairs of queues of a virtio-net device."""

CASE_MODES: Final = ("off", "dir", "force")
"""Values of `case=`; WSL's drvfs has the same."""

CACHE_MODES: Final = ("none", "auto", "always")
"""Values of `cache=`; virtiofsd has the same."""

OPPOSITES: Final = {"suid": "nosuid", "dev": "nodev"}
"""What a guest may leave on the host, and the option that forbids it. Both are forbidden unless
they are given, or the share has `metadata`."""

SUBMOUNTS_MODES: Final = ("on", "off")
"""Values of `submounts=`: whether what is mounted below a share is announced as a file system."""

RINGS_ANYWHERE: Final = "anywhere"
RINGS_INSIDE: Final = "inside"
RINGS_MODES: Final = (RINGS_ANYWHERE, RINGS_INSIDE)
"""Values of `rings=`: where a guest may have the rings of a device that is confined to a pool."""

SPOOFING_ALLOWED: Final = "allow"
SPOOFING_REFUSED: Final = "refuse"
SPOOFING_MODES: Final = (SPOOFING_ALLOWED, SPOOFING_REFUSED)
"""Values of `spoofing=`: whether a guest may send frames under the addresses of other stations."""

OWNERS_KEYS: Final = ("swiotlb", "aperture", "vm_id")
"""The keys that only the VM owner writes."""

_DECIMAL: Final = re.compile(r"\d{1,10}", re.ASCII)
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FsOptions:
    """The options of a virtio-fs device. None: not given.

    Attributes:
        suid: Whether the guest may leave set-id bits and file capabilities on the host.
        dev: Whether it may leave device nodes there.
        xattr: Which names of extended attributes it may use, and what they are on the host.
        aperture: The part of the pool that is this device's own; its rings are there, too.
        submounts: Whether what is mounted below the share is a file system of its own in the guest.
    """

    name: str
    vm_id: str
    swiotlb: SwiotlbPool | None = None
    aperture: SwiotlbPool | None = None
    rings: str = RINGS_ANYWHERE
    queues: int = 1
    ro: bool = False
    metadata: bool = False
    case: str = "off"
    uid: int | None = None
    gid: int | None = None
    umask: int = 0
    dmask: int | None = None
    fmask: int | None = None
    symlinkroot: str | None = None
    cache: str = "auto"
    writeback: bool = False
    suid: bool = False
    dev: bool = False
    xattr: XattrMap = SAFE
    submounts: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class NetOptions:
    """The options of a virtio-net device. None: not given.

    Attributes:
        aperture: See FsOptions.
        queues: Pairs of a receive and a transmit queue, 1 to MAX_QUEUES.
        limit_tx: How fast frames may go that the guest sends.
        limit_rx: How fast those may go that it gets.
        spoofing: One of SPOOFING_MODES.
    """

    name: str
    vm_id: str
    swiotlb: SwiotlbPool | None = None
    aperture: SwiotlbPool | None = None
    rings: str = RINGS_ANYWHERE
    client_ip: str | None = None
    client_ip_ipv6: str | None = None
    client_mac: bytes | None = None
    gateway_ip: str | None = None
    queues: int = 1
    limit_tx: RateLimit | None = None
    limit_rx: RateLimit | None = None
    spoofing: str = SPOOFING_ALLOWED


def build_options(
    name: str,
    extra: str,
    token: str | None,
    vm_id: str,
    aperture: SwiotlbPool | None = None,
) -> str:
    """Write the options string of one device.

    Args:
        name: The mount tag or adapter name.
        extra: Further items, "key=value;flag"; empty for none.
        token: The VM's token, verbatim; None or empty when no pool is latched.
        vm_id: UUID of the VM; always the last item.
        aperture: The part of the pool that is this device's own; None: the whole pool. Without a
            token it is not written.

    Raises:
        InvalidArgumentError: OPTION_SYNTAX when the name is empty or has ';' or '=';
            OPTION_RESERVED when `extra` names a key that only the owner may write.
    """
    if not name or set(name) & set(";=\0"):
        raise InvalidArgumentError(
            "OPTION_SYNTAX",
            f"device name {name!r} must be non-empty, without ';' and '='",
            name=name,
        )
    items = [item for item in extra.split(";") if item]
    for item in items:
        key = item.partition("=")[0]
        if key in OWNERS_KEYS:
            raise InvalidArgumentError(
                "OPTION_RESERVED",
                f"option {item!r}: {key} is written by the VM owner; leave it out",
                option=item,
            )
    if token:
        items += [token, *([format_aperture(aperture)] if aperture else [])]
    return ";".join([name, *items, f"vm_id={vm_id}"])


def parse_fs_options(text: str) -> FsOptions:
    """Parse the options of a virtio-fs device.

    Raises:
        InvalidArgumentError: OPTION_SYNTAX, OPTION_UNKNOWN (lists the known keys), OPTION_CONFLICT,
            OPTION_VALUE, or a reason of `parse_token`, `parse_aperture` or `check_aperture`.
    """
    name, values = _parse(text, _FS_KEYS)
    for key, opposite in OPPOSITES.items():
        if key in values and opposite in values:
            raise InvalidArgumentError(
                "OPTION_CONFLICT", f"{name!r} is given {key} and {opposite}; give one", option=key
            )
        # Where the share keeps modes and device numbers itself, the host's files have none.
        values[key] = key in values or ("metadata" in values and opposite not in values)
        values.pop(opposite, None)
    return FsOptions(name=name, **values)  # type: ignore[arg-type]


def parse_net_options(text: str) -> NetOptions:
    """Parse the options of a virtio-net device.

    Raises:
        InvalidArgumentError: See `parse_fs_options`; also RATE_LIMIT_VALUE.
    """
    name, values = _parse(text, _NET_KEYS)
    options = NetOptions(name=name, **values)  # type: ignore[arg-type]
    if options.spoofing == SPOOFING_REFUSED and options.client_mac is None:
        raise InvalidArgumentError(
            "OPTION_VALUE",
            f"option spoofing={SPOOFING_REFUSED} of {name!r} needs the guest's own address; give "
            "client_mac= as well",
            option="spoofing",
        )
    return options


def _parse(text: str, keys: Mapping[str, Callable[[str], object]]) -> tuple[str, dict[str, object]]:
    name, *items = text.split(";")
    if not name or "=" in name:
        raise InvalidArgumentError(
            "OPTION_SYNTAX", f"options {text!r} must start with the device's name", options=text
        )
    raw: dict[str, str | None] = {}
    for item in items:
        key, equals, given = item.partition("=")
        value = given if equals else None
        if key not in keys:
            known = ", ".join(sorted(keys))
            raise InvalidArgumentError(
                "OPTION_UNKNOWN",
                f"option {item!r} of {name!r} is not known; the known ones are {known}",
                option=item,
            )
        if key in raw and raw[key] != value:
            raise InvalidArgumentError(
                "OPTION_CONFLICT",
                f"option {key} of {name!r} is given as {raw[key]!r} and as {value!r}; give it once",
                option=key,
            )
        if (value is None) != (keys[key] is _flag):
            want = f"{key}" if keys[key] is _flag else f"{key}=<value>"
            raise InvalidArgumentError(
                "OPTION_SYNTAX", f"option {item!r} of {name!r}: write {want}", option=item
            )
        raw[key] = value
    if "vm_id" not in raw:
        raise InvalidArgumentError(
            "OPTION_SYNTAX", f"options {text!r} lack vm_id=<uuid>, which comes last", options=text
        )
    values = {key: keys[key](value or "") for key, value in raw.items()}
    aperture, pool = values.get("aperture"), values.get("swiotlb")
    if isinstance(aperture, SwiotlbPool):
        check_aperture(aperture, pool if isinstance(pool, SwiotlbPool) else None)
    return name, values


def _refusal(value: str, want: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "OPTION_VALUE", f"option value {value!r} is not {want}", value=value
    )


def _flag(_: str) -> bool:
    return True


def _swiotlb(value: str) -> SwiotlbPool:
    return parse_token(f"swiotlb={value}")


def _aperture(value: str) -> SwiotlbPool:
    return parse_aperture(f"aperture={value}")


def _uuid(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise _refusal(value, "a UUID") from None


def _id(value: str) -> int:
    if _DECIMAL.fullmatch(value) and int(value) < (1 << 32) - 1:
        return int(value)
    raise _refusal(value, f"a user or group id from 0 to {(1 << 32) - 2}")


def _mask(value: str) -> int:
    if re.fullmatch(r"0?[0-7]{1,4}", value, re.ASCII) and int(value, 8) <= 0o777:
        return int(value, 8)
    raise _refusal(value, "an octal mask from 0 to 777")


def _queues(value: str) -> int:
    if _DECIMAL.fullmatch(value) and 1 <= int(value) <= MAX_QUEUES:
        return int(value)
    raise _refusal(value, f"a number of queues from 1 to {MAX_QUEUES}")


def _case(value: str) -> str:
    return _one_of(CASE_MODES, value)


def _cache(value: str) -> str:
    return _one_of(CACHE_MODES, value)


def _submounts(value: str) -> bool:
    return _one_of(SUBMOUNTS_MODES, value) == "on"


def _rings(value: str) -> str:
    return _one_of(RINGS_MODES, value)


def _spoofing(value: str) -> str:
    return _one_of(SPOOFING_MODES, value)


def _one_of(values: tuple[str, ...], value: str) -> str:
    if value in values:
        return value
    raise _refusal(value, f"one of {', '.join(values)}")


def _path(value: str) -> str:
    if value.startswith("/"):
        return value
    raise _refusal(value, "an absolute path")


def _ipv4(value: str) -> str:
    try:
        return str(ipaddress.IPv4Interface(value))
    except ValueError:
        raise _refusal(
            value, "an IPv4 address with a prefix length, for instance 192.0.2.2/24"
        ) from None


def _ipv6(value: str) -> str:
    try:
        return str(ipaddress.IPv6Interface(value))
    except ValueError:
        raise _refusal(
            value, "an IPv6 address with a prefix length, for instance fd00::2/64"
        ) from None


def _gateway(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        raise _refusal(value, "an IP address") from None


def _mac(value: str) -> bytes:
    if _MAC.fullmatch(value):
        return bytes.fromhex(value.replace(":", ""))
    raise _refusal(value, "a MAC address, for instance 52:54:00:12:34:56")


_FS_KEYS: Final[dict[str, Callable[[str], object]]] = {
    "ro": _flag,
    "metadata": _flag,
    "case": _case,
    "uid": _id,
    "gid": _id,
    "umask": _mask,
    "dmask": _mask,
    "fmask": _mask,
    "symlinkroot": _path,
    "cache": _cache,
    "writeback": _flag,
    "suid": _flag,
    "nosuid": _flag,
    "dev": _flag,
    "nodev": _flag,
    "xattr": parse_xattr_option,
    "submounts": _submounts,
    "swiotlb": _swiotlb,
    "aperture": _aperture,
    "rings": _rings,
    "queues": _queues,
    "vm_id": _uuid,
}
_NET_KEYS: Final[dict[str, Callable[[str], object]]] = {
    "client_ip": _ipv4,
    "client_ip_ipv6": _ipv6,
    "client_mac": _mac,
    "gateway_ip": _gateway,
    "queues": _queues,
    "limit_tx": parse_rate_limit,
    "limit_rx": parse_rate_limit,
    "spoofing": _spoofing,
    "swiotlb": _swiotlb,
    "aperture": _aperture,
    "rings": _rings,
    "vm_id": _uuid,
}
