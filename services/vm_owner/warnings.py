"""The warnings of a VM: ids for programs, texts for people.

Owns the wording. record.py, wslconfig and sizing.py decide when a warning is due.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.handshake.features import SWIOTLB_TOKEN

if TYPE_CHECKING:
    from services.handshake.errors import PortholeError
    from services.handshake.pool import SwiotlbPool
    from services.vm_owner.manifest import Manifest

KERNEL_UNSUPPORTED: Final = "MessageSwiotlbKernelUnsupported"
POOL_REFUSED: Final = "SwiotlbPoolRefused"
POOL_NOT_AS_REQUESTED: Final = "PoolNotAsRequested"
POOL_TOO_LARGE: Final = "SwiotlbTooLarge"
MEMORY_OUT_OF_BOUNDS: Final = "MemoryOutOfBounds"
DEVICE_HOST_UNSUPPORTED: Final = "SwiotlbDeviceHostUnsupported"
KERNEL_RELEASE_UNREADABLE: Final = "KernelReleaseUnreadable"
NETWORKING_FALLBACK: Final = "NetworkingFallback"
PORT_NOT_FORWARDED: Final = "PortNotForwarded"
PORTS_LEFT_OUT: Final = "PortsLeftOut"
SHARE_FAILED: Final = "ShareFailed"
GUEST_ENDED: Final = "GuestEnded"
GUEST_INIT_ENDED: Final = "GuestInitEnded"
GUEST_INIT_SILENT: Final = "GuestInitSilent"
CONFIG_VALUE: Final = "WslConfigValue"
CONFIG_UNKNOWN: Final = "WslConfigUnknownKey"
CONFIG_SYNTAX: Final = "WslConfigSyntax"
CONFIG_REPEATED: Final = "WslConfigRepeatedKey"
CONFIG_NEEDS_VIRTIO: Final = "WslConfigNeedsVirtio"
CONFIG_IGNORED: Final = "WslConfigIgnoredKey"
CONFIG_REFUSED: Final = "WslConfigRefusedValue"
CONFIG_SAFE_MODE: Final = "WslConfigSafeMode"
CONFIG_OVERRIDDEN: Final = "WslConfigOverridden"

WARNINGS_KEPT: Final = 256
"""Most warnings of a VM: GetVm returns all. Its configuration and first shares give fewer."""

QUOTED_LIMIT: Final = 200
"""Most characters of a key, and of a value, that a warning quotes. A section's name is a part of
each of its keys, so a hundred warnings could quote a hundred times the file."""

MESSAGE_LIMIT: Final = 1000
"""Most characters of the message of an error that a warning repeats; it may quote a path twice."""


@dataclass(frozen=True, slots=True)
class VmWarning:
    """One warning of a VM."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class ConfigWarning(VmWarning):
    """A warning about one line of a .wslconfig file.

    Attributes:
        key: "section.key" as documented; the raw line when it cannot be parsed. It is cut to
            QUOTED_LIMIT.
        value: The value in the file, cut likewise; empty for a line that cannot be parsed.
        file: Name of the file.
        line: Line number, counted from 1.
    """

    key: str
    value: str
    file: str
    line: int


def config_warning(id_: str, key: str, value: str, file: str, line: int, why: str) -> ConfigWarning:
    """Return a warning about a .wslconfig file."""
    key, value = _quoted(key), _quoted(value)
    said = f"{key}={value}" if value else key
    return ConfigWarning(id_, f"{file}:{line}: {said}: {why}", key, value, file, line)


def _quoted(text: str) -> str:
    return _cut(text, QUOTED_LIMIT)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def kernel_unsupported(kernel_release: str, manifest: Manifest) -> VmWarning:
    """A pool was asked for and the kernel of a WSL2 VM published none."""
    return VmWarning(
        KERNEL_UNSUPPORTED,
        "This VM's kernel does not offer the DMA bounce pool that was asked for: "
        f"{manifest.explain_missing_pool(kernel_release)}. Virtio file shares and networking work, "
        "but slower; a newer kernel brings their full speed.",
    )


def pool_refused(refusal: PortholeError) -> VmWarning:
    """The pool that a guest announced was refused."""
    return VmWarning(
        POOL_REFUSED,
        f"The DMA bounce pool that the guest announced was refused ({refusal.reason}): "
        f"{refusal.message}. Virtio devices added meanwhile work without it, but slower.",
    )


def pool_not_as_requested(pool: SwiotlbPool, requested_bytes: int) -> VmWarning:
    """The latched pool has another size than the kernel command line asked for."""
    asked = f"a pool of {requested_bytes} bytes" if requested_bytes else "no pool"
    return VmWarning(
        POOL_NOT_AS_REQUESTED,
        f"The guest was asked for {asked} and announced {pool} of {pool.size_bytes} bytes. Its "
        "devices use what it announced; a kernel that keeps to hv_pci_swiotlb= reserves what is "
        "asked for, rounded up to 2 MiB.",
    )


def device_host_unsupported(software_version: str, *, elevated: bool) -> VmWarning:
    """A device host lacks the feature that a device with a token needs."""
    whose = "elevated user's device host" if elevated else "device host"
    return VmWarning(
        DEVICE_HOST_UNSUPPORTED,
        f"The {whose} (version {software_version or 'unknown'}) does not announce the feature "
        f"{SWIOTLB_TOKEN!r}, so its devices work without the VM's DMA bounce pool, but slower; a "
        "newer device host brings their full speed. The devices of another device host are not "
        "affected.",
    )


def pool_too_large(asked_bytes: int, limit_bytes: int, used_bytes: int) -> VmWarning:
    """The configured size of the pool does not fit into the VM."""
    instead = f"the default of {used_bytes} bytes applies" if used_bytes else "no pool is asked for"
    return VmWarning(
        POOL_TOO_LARGE,
        f"experimental.swiotlb={asked_bytes}: a pool of this VM must be smaller than {limit_bytes} "
        f"bytes (its RAM, at most 4 GiB); {instead}",
    )


def memory_out_of_bounds(asked_bytes: int, used_bytes: int) -> VmWarning:
    """The configured memory size is out of bounds, of which the nearest applies."""
    bound = "at least" if used_bytes > asked_bytes else "at most"
    return VmWarning(
        MEMORY_OUT_OF_BOUNDS,
        f"wsl2.memory={asked_bytes}: a VM has {bound} {used_bytes} bytes of memory, which apply",
    )


def kernel_release_unreadable(refusal: PortholeError) -> VmWarning:
    """The kernel release that a guest reported has no version in it."""
    return VmWarning(KERNEL_RELEASE_UNREADABLE, refusal.message)


def share_failed(host_path: str, failure: PortholeError) -> VmWarning:
    """A share could not be added that the VM should have from the beginning, or had before."""
    why = _cut(failure.message, MESSAGE_LIMIT)
    return VmWarning(
        SHARE_FAILED,
        f"share of {_quoted(host_path)} was not added ({failure.reason}): {why}; the VM and its "
        "other shares are not affected; add it again with AddShare",
    )


def networking_fallback(mode: str, failure: PortholeError) -> VmWarning:
    """A networking mode cannot be set up on this host."""
    return VmWarning(
        NETWORKING_FALLBACK,
        f"networking mode {mode} cannot be set up ({failure.reason}): "
        f"{_cut(failure.message, MESSAGE_LIMIT)}; the VM has no network adapters",
    )


def port_not_forwarded(key: str, failure: PortholeError) -> VmWarning:
    """A port on which the guest listens could not be mapped by itself."""
    return VmWarning(
        PORT_NOT_FORWARDED,
        f"localhostForwarding: {key} of this host is not forwarded to the guest, which listens on "
        f"that port ({failure.reason}): {_cut(failure.message, MESSAGE_LIMIT)}. Other ports are "
        "not affected; this VM gets no second warning of this kind. Map the guest's port to "
        "another one with `porthole port add`",
    )


def ports_left_out(count: int, limit: int) -> VmWarning:
    """The guest listens on more ports than are mapped by themselves."""
    return VmWarning(
        PORTS_LEFT_OUT,
        f"localhostForwarding: the guest listens on so many ports that {count} are not forwarded, "
        f"as a VM has at most {limit} mappings of this kind; map those that are needed with "
        "`porthole port add`",
    )


def guest_ended(why: str) -> VmWarning:
    """A guest ended by itself."""
    return VmWarning(GUEST_ENDED, f"the guest ended by itself: {why}; the VM is shut down")


def guest_init_ended(cause: str) -> VmWarning:
    """Guest init, process 1 of a guest, ended by itself."""
    return VmWarning(
        GUEST_INIT_ENDED,
        f"the guest's init ended by itself with {cause}, and no guest goes on without its process "
        "1; the VM is shut down",
    )


def guest_init_silent(deadline_s: float, last_words: str) -> VmWarning:
    """The init of a WSL2 guest did not report its capabilities in time."""
    return VmWarning(
        GUEST_INIT_SILENT,
        f"the guest's init did not report within {deadline_s:g} s of boot, so the VM runs without "
        "a DMA bounce pool until it does: virtio devices work, but slower, and what runs in the "
        "guest has to mount its shares and set up its adapters. Look at the guest's init, or raise "
        f"the owner's --capabilities-deadline-s. The guest's last words: {last_words or 'none'}",
    )
