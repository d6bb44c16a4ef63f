"""What applies of a `.wslconfig`: safe mode first, then virtio, then each feature, as in WSL.

Owns the order, and the warnings about what is written and does not apply. A default that gives way
is no warning. Sizes are decided last, by services.vm_owner.sizing.

Defaults differ from WSL's in three keys: directories are shared by virtio-fs, and the networking
mode is VirtioProxy, because this owner has no other shares, and NAT needs rights; and ports on
which the guest listens are not mapped by themselves (docs/adr/0034-localhost-forwarding.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from services.handshake.errors import InvalidArgumentError
from services.vm_owner import warnings
from services.vm_owner.warnings import ConfigWarning, config_warning
from services.vm_owner.wslconfig.keys import BY_NAME, Here, Key, NetworkingMode
from services.vm_owner.wslconfig.lines import Setting, UnreadableLine, read_lines

MAX_TEXT_BYTES: Final = 64 << 10
"""Longest .wslconfig that is accepted."""

MAX_NAME_LENGTH: Final = 255
"""Most characters of a file's name that are kept."""

MAX_WARNINGS: Final = 100
"""Most warnings of one file; further ones would be noise."""


class WslConfig(BaseModel):
    """The configuration that applies.

    Attributes:
        virtio: Whether virtio devices are allowed.
        virtiofs: Whether virtio-fs devices are allowed, and so directories are shared.
        networking_mode: How the guest reaches the network.
        localhost_forwarding: Whether ports on which the guest listens are mapped by themselves.
        memory_bytes: RAM of the VM; None: the default.
        swiotlb_bytes: Explicit size of the pool; None: the default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    virtio: bool = True
    virtiofs: bool = True
    networking_mode: NetworkingMode = NetworkingMode.VIRTIO_PROXY
    localhost_forwarding: bool = False
    memory_bytes: int | None = None
    swiotlb_bytes: int | None = None

    @property
    def device_bounces(self) -> bool:
        """Whether the VM may get a device that bounces: virtio-fs, or an adapter."""
        return self.virtiofs or (self.virtio and self.networking_mode.has_adapters)


@dataclass(frozen=True, slots=True)
class ParsedConfig:
    """The configuration that applies, and the warnings."""

    config: WslConfig
    warnings: tuple[ConfigWarning, ...] = ()


@dataclass(slots=True)
class _Written:
    """What is written in one file.

    Attributes:
        file: Its name, for warnings.
        lines: The line of each key, by its name, usable or not.
        settings: The setting of each usable key, by the key's field.
        values: The value of each usable key, by the key's field.
        warnings: The warnings so far.
    """

    file: str
    lines: dict[str, int] = field(default_factory=dict)
    settings: dict[str, tuple[Key, Setting]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[ConfigWarning] = field(default_factory=list)

    def warn(self, id_: str, name: str, setting: Setting, why: str) -> None:
        self._add(config_warning(id_, name, setting.value, self.file, setting.line, why))

    def warn_of_line(self, line: UnreadableLine) -> None:
        why = f"{line.why}; the line is ignored"
        self._add(config_warning(warnings.CONFIG_SYNTAX, line.text, "", self.file, line.line, why))

    def warn_of(self, field_name: str, id_: str, why: str) -> None:
        """Warn of a key if it is written."""
        if field_name in self.settings:
            key, setting = self.settings[field_name]
            self.warn(id_, key.name, setting, why)

    def _add(self, warning: ConfigWarning) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(warning)


def parse_wslconfig(text: str, file: str = ".wslconfig") -> ParsedConfig:
    """Read a .wslconfig file.

    Sections and keys are case-insensitive. The first of repeated keys counts, also when its value
    cannot be used. `lines` has the syntax, `keys` every key.

    Args:
        text: Content of the file; empty for all defaults.
        file: Its name, for warnings, which is cut to MAX_NAME_LENGTH.

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
    written = _Written(file[:MAX_NAME_LENGTH])
    for item in read_lines(text):
        if isinstance(item, UnreadableLine):
            written.warn_of_line(item)
        else:
            _read(written, item)
    config = _resolve(written)
    return ParsedConfig(config, tuple(written.warnings))


def _read(written: _Written, setting: Setting) -> None:
    key = BY_NAME.get(setting.name.lower())
    if key is None:
        why = "unknown key; the line is ignored"
        written.warn(warnings.CONFIG_UNKNOWN, setting.name, setting, why)
        return
    if key.name in written.lines:
        why = f"given in line {written.lines[key.name]} already, which counts; this line is ignored"
        written.warn(warnings.CONFIG_REPEATED, key.name, setting, why)
        return
    written.lines[key.name] = setting.line
    if key.here is Here.IGNORED:
        why = "this owner does not have what the key configures in WSL; the line is ignored"
        written.warn(warnings.CONFIG_IGNORED, key.name, setting, why)
        return
    try:
        value = key.read(setting.value)
    except ValueError:
        why = f"not {key.want}; the default applies"
        written.warn(warnings.CONFIG_VALUE, key.name, setting, why)
        return
    written.settings[key.field] = key, setting
    written.values[key.field] = value


def _resolve(written: _Written) -> WslConfig:
    values = written.values
    virtio = values.get("virtio", True)
    virtiofs = values.get("virtiofs", True)
    host_access = values.get("host_file_system_access", True)
    mode = values.get("networking_mode", NetworkingMode.VIRTIO_PROXY)
    swiotlb_bytes = values.get("swiotlb_bytes")
    cause = "wsl2.virtio=false"
    if values.get("safe_mode"):
        cause = "wsl2.safeMode=true"
        _warn_of_safe_mode(written, mode)
        virtio, mode = False, NetworkingMode.NONE
    if not virtio:
        virtiofs, swiotlb_bytes = False, None
        mode = _without_virtio(written, mode, cause)
    elif values.get("virtio9p"):
        why = "virtio-9p is not supported any more; there is no such device, and no pool for it"
        written.warn_of("virtio9p", warnings.CONFIG_REFUSED, why)
    if virtiofs and not host_access:
        virtiofs = False
        if values.get("virtiofs"):
            why = "wsl2.hostFileSystemAccess=false switches it off"
            written.warn_of("virtiofs", warnings.CONFIG_OVERRIDDEN, why)
    forwarding = values.get("localhost_forwarding", False)
    if forwarding and mode is not NetworkingMode.VIRTIO_PROXY:
        forwarding = False
        why = f"the networking mode {mode} maps no ports; it is switched off"
        written.warn_of("localhost_forwarding", warnings.CONFIG_OVERRIDDEN, why)
    return WslConfig(
        virtio=virtio,
        virtiofs=virtiofs,
        networking_mode=mode,
        localhost_forwarding=forwarding,
        # WSL takes 0 for "not configured", too.
        memory_bytes=values.get("memory_bytes") or None,
        swiotlb_bytes=swiotlb_bytes or None,
    )


def _warn_of_safe_mode(written: _Written, mode: NetworkingMode) -> None:
    why = "safe mode: virtio, shares and networking are off"
    written.warn_of("safe_mode", warnings.CONFIG_SAFE_MODE, why)
    why = "wsl2.safeMode=true switches it off"
    for name in ("virtio", "host_file_system_access"):
        if written.values.get(name):
            written.warn_of(name, warnings.CONFIG_OVERRIDDEN, why)
    if mode is not NetworkingMode.NONE:
        written.warn_of("networking_mode", warnings.CONFIG_OVERRIDDEN, why)


def _without_virtio(written: _Written, mode: NetworkingMode, cause: str) -> NetworkingMode:
    """Warn of the keys that are written and need virtio; return the mode that applies."""
    needs = f"needs virtio, which {cause} switches off"
    for name, then in (
        ("virtiofs", "it is switched off"),
        ("virtio9p", "it is switched off"),
        ("swiotlb_bytes", "it is ignored"),
    ):
        if written.values.get(name):
            written.warn_of(name, warnings.CONFIG_NEEDS_VIRTIO, f"{needs}; {then}")
    if mode is not NetworkingMode.VIRTIO_PROXY:
        return mode
    if "networking_mode" not in written.values:
        return NetworkingMode.NONE
    why = f"{needs}; VirtioProxy falls back to {NetworkingMode.NAT}"
    written.warn_of("networking_mode", warnings.CONFIG_NEEDS_VIRTIO, why)
    return NetworkingMode.NAT
