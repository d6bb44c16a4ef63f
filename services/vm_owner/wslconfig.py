"""The `.wslconfig` parser: text in, typed configuration and warnings out (handshake.md section 5).

Owns the syntax, the keys, their defaults, and the effect of virtio=false. A wrong line never
prevents a VM: a value that cannot be used gives a warning, and the default applies. Must not know
VMs or files: the caller passes the text.

The default networking mode is VirtioProxy, whose adapters are the only ones that this owner adds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from services.handshake.errors import InvalidArgumentError
from services.vm_owner import warnings
from services.vm_owner.warnings import ConfigWarning, config_warning

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_TEXT_BYTES: Final = 64 << 10
"""Longest .wslconfig that is accepted."""

MAX_WARNINGS: Final = 100
"""Most warnings about one file; further ones would be noise."""


class NetworkingMode(StrEnum):
    """`[wsl2] networkingMode`: the modes that this owner distinguishes."""

    NONE = "none"
    NAT = "nat"
    VIRTIO_PROXY = "virtioproxy"


class WslConfig(BaseModel):
    """The configuration of a .wslconfig, with defaults filled in.

    Attributes:
        virtio: Whether virtio devices are allowed.
        virtiofs: Whether drives are shared by virtio-fs.
        virtio9p: Whether drives are shared by virtio-9p.
        networking_mode: How the guest reaches the network.
        memory_bytes: RAM of the VM; None: not configured.
        swiotlb_bytes: Explicit size of the pool; None: not configured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    virtio: bool = True
    virtiofs: bool = True
    virtio9p: bool = False
    networking_mode: NetworkingMode = NetworkingMode.VIRTIO_PROXY
    memory_bytes: int | None = None
    swiotlb_bytes: int | None = None

    @property
    def device_bounces(self) -> bool:
        """Whether the VM uses a device that bounces through the pool."""
        return self.virtiofs or self.virtio9p or self.networking_mode is NetworkingMode.VIRTIO_PROXY


@dataclass(frozen=True, slots=True)
class ParsedConfig:
    """The configuration that applies after all overrides, and the warnings."""

    config: WslConfig
    warnings: tuple[ConfigWarning, ...] = ()


@dataclass(frozen=True, slots=True)
class _Key:
    name: str
    field: str
    read: Callable[[str], object]
    want: str


@dataclass(slots=True)
class _Reading:
    """The state of reading one file; `given` has value and line of every usable key."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    given: dict[str, tuple[str, int]] = field(default_factory=dict)
    warnings: list[ConfigWarning] = field(default_factory=list)

    def warn(self, id_: str, key: str, value: str, line: int, why: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(config_warning(id_, key, value, self.file, line, why))


def parse_size(text: str) -> int:
    """Read a size: plain bytes, or with a unit K, M, G, T, each with or without B.

    Args:
        text: For instance "64M", "4096K", "1GB" or "67108864".

    Raises:
        ValueError: It is not a size, or does not fit into 64 bits.
    """
    match = re.fullmatch(r"(\d{1,20})\s*(?:([KMGT])B?|B)?", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    size = int(match[1]) << (10 * " KMGT".index((match[2] or " ").upper()))
    if size >= 1 << 64:
        raise ValueError(text)
    return size


def parse_wslconfig(text: str, file: str = ".wslconfig") -> ParsedConfig:
    """Read a .wslconfig file.

    Sections and keys are case-insensitive. `#` and `;` begin a comment at the beginning of a line
    or after white space. A value may be in double quotes. The last of repeated keys counts.

    Args:
        text: Content of the file; empty for all defaults.
        file: Its name, for warnings, which is cut to 255 characters.

    Raises:
        InvalidArgumentError: WSLCONFIG_TOO_LARGE past MAX_TEXT_BYTES.
    """
    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_TEXT_BYTES:
        raise InvalidArgumentError(
            "WSLCONFIG_TOO_LARGE",
            f"{file} has {size_bytes} bytes, more than the {MAX_TEXT_BYTES} that are read",
            size=size_bytes,
            limit=MAX_TEXT_BYTES,
        )
    reading = _Reading(file[:255])
    section = ""
    for number, raw in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        line = _without_comment(raw)
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip().lower()
        elif "=" in line:
            _read_key(reading, section, line, number)
        else:
            reading.warn(
                warnings.CONFIG_SYNTAX,
                line,
                "",
                number,
                "neither [section] nor key=value; the line is ignored",
            )
    return _without_virtio(WslConfig(**reading.values), reading)


def _without_comment(raw: str) -> str:
    # A quoted value may contain the characters that begin a comment.
    match = re.match(r'\s*([^"#;]*"[^"]*")', raw)
    if match:
        return match[1].strip()
    return re.split(r"(?:^|\s)[#;]", raw, maxsplit=1)[0].strip()


def _read_key(reading: _Reading, section: str, line: str, number: int) -> None:
    name, _, raw_value = line.partition("=")
    value = raw_value.strip().strip('"')
    lookup = f"{section}.{name.strip().lower()}"
    key = _KEYS.get(lookup)
    if key is None:
        if lookup not in _OTHERS:
            shown = f"{section}.{name.strip()}" if section else name.strip()
            reading.warn(
                warnings.CONFIG_UNKNOWN, shown, value, number, "unknown key; the line is ignored"
            )
        return
    try:
        parsed = key.read(value)
    except ValueError:
        why = f"not {key.want}; the line is ignored"
        reading.warn(warnings.CONFIG_VALUE, key.name, value, number, why)
        return
    if key.name in reading.given:
        first = reading.given[key.name][1]
        why = f"given in line {first} already; this line counts"
        reading.warn(warnings.CONFIG_REPEATED, key.name, value, number, why)
    reading.values[key.field] = parsed
    reading.given[key.name] = (value, number)


def _without_virtio(config: WslConfig, reading: _Reading) -> ParsedConfig:
    """Without virtio, switch off the keys that need it, with a warning for each."""
    if config.virtio:
        return ParsedConfig(config, tuple(reading.warnings))
    explicit_mode = "wsl2.networkingMode" in reading.given
    fallback = NetworkingMode.NAT if explicit_mode else NetworkingMode.NONE
    taken: dict[str, tuple[bool, str, object, str]] = {
        "wsl2.virtiofs": (config.virtiofs, "virtiofs", False, "it is switched off"),
        "wsl2.virtio9p": (config.virtio9p, "virtio9p", False, "it is switched off"),
        "experimental.swiotlb": (
            config.swiotlb_bytes is not None,
            "swiotlb_bytes",
            None,
            "it is ignored",
        ),
        "wsl2.networkingMode": (
            config.networking_mode is NetworkingMode.VIRTIO_PROXY,
            "networking_mode",
            fallback,
            f"VirtioProxy falls back to {fallback}",
        ),
    }
    update: dict[str, object] = {}
    for name, (in_use, field_name, instead, why) in taken.items():
        if in_use:
            value, number = reading.given.get(name, ("", 0))
            reason = f"needs virtio, which wsl2.virtio=false switches off; {why}"
            reading.warn(warnings.CONFIG_NEEDS_VIRTIO, name, value, number, reason)
            update[field_name] = instead
    return ParsedConfig(config.model_copy(update=update), tuple(reading.warnings))


def _boolean(value: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[value.lower()]


def _bool_key(name: str, field_name: str) -> _Key:
    def read(value: str) -> bool:
        try:
            return _boolean(value)
        except KeyError:
            raise ValueError(value) from None

    return _Key(name, field_name, read, "true or false")


def _size_key(name: str, field_name: str) -> _Key:
    return _Key(name, field_name, parse_size, "a size like 64M, 4096K, 1GB or a number of bytes")


def _by_name(*keys: _Key) -> Mapping[str, _Key]:
    return {key.name.lower(): key for key in keys}


_KEYS: Final = _by_name(
    _bool_key("wsl2.virtio", "virtio"),
    _bool_key("wsl2.virtiofs", "virtiofs"),
    _bool_key("wsl2.virtio9p", "virtio9p"),
    _Key(
        "wsl2.networkingMode",
        "networking_mode",
        lambda value: NetworkingMode(value.lower()),
        f"one of {', '.join(NetworkingMode)}",
    ),
    _size_key("wsl2.memory", "memory_bytes"),
    _size_key("experimental.swiotlb", "swiotlb_bytes"),
)

_OTHERS: Final = frozenset(
    f"{section}.{key.lower()}"
    for section, keys in {
        "wsl2": (
            "kernel kernelModules kernelCommandLine processors swap swapFile pageReporting "
            "localhostForwarding guiApplications debugConsole nestedVirtualization vmIdleTimeout "
            "maxCrashDumpCount dnsProxy dnsTunneling firewall autoProxy safeMode defaultVhdSize "
            "distributionStartTimeout"
        ),
        "experimental": (
            "autoMemoryReclaim sparseVhd bestEffortDnsParsing dnsTunnelingIpAddress "
            "initialAutoProxyTimeout ignoredPorts hostAddressLoopback"
        ),
        "general": "distributionInstallPath instanceIdleTimeout",
        "gpu": "enabled",
    }.items()
    for key in keys.split()
)
"""Keys that WSL documents and this owner ignores, without a warning."""
