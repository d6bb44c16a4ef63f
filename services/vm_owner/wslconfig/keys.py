"""The keys of `.wslconfig`, as one table: what WSL does with each, and what is done here.

docs/wslconfig.md shows the same table; a test compares them. resolution.py has the order in which
the keys are applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake import byte_sizes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class NetworkingMode(StrEnum):
    """`[wsl2] networkingMode`: the modes that WSL has."""

    NONE = "none"
    NAT = "nat"
    BRIDGED = "bridged"
    MIRRORED = "mirrored"
    VIRTIO_PROXY = "virtioproxy"

    @property
    def has_adapters(self) -> bool:
        """Whether this owner makes virtio adapters in the mode."""
        return self in (NetworkingMode.NAT, NetworkingMode.VIRTIO_PROXY)


class Here(StrEnum):
    """What is done with a key here."""

    DONE = "done"
    REFUSED = "refused"
    IGNORED = "ignored"


@dataclass(frozen=True, slots=True)
class Key:
    """One key.

    Attributes:
        names: Its name "section.key", then its other names.
        default: WSL's default, for people.
        wsl: What WSL does with it, for people.
        here: What is done with it here. REFUSED: true is a warning, as in WSL. IGNORED: it is a
            warning whatever the value is.
        note: What is done here, for people; empty: nothing.
        field: Where a value of it is kept; empty: nowhere.
        read: Reads a value; raises ValueError.
        want: What a value has to be, for people.
    """

    names: tuple[str, ...]
    default: str
    wsl: str
    here: Here = Here.IGNORED
    note: str = ""
    field: str = ""
    read: Callable[[str], object] = str
    want: str = ""

    @property
    def name(self) -> str:
        """The name that warnings have."""
        return self.names[0]


def _boolean(text: str) -> bool:
    if text.lower() in ("1", "true"):
        return True
    if text.lower() in ("0", "false"):
        return False
    raise ValueError(text)


def _networking_mode(text: str) -> NetworkingMode:
    # Consomme is the later name of VirtioProxy; WSL accepts both.
    lower = text.lower()
    return NetworkingMode.VIRTIO_PROXY if lower == "consomme" else NetworkingMode(lower)


def _switch(name: str, field: str, default: str, wsl: str, note: str) -> Key:
    return Key((name,), default, wsl, Here.DONE, note, field, _boolean, "true or false")


def _size(name: str, field: str, default: str, wsl: str, note: str) -> Key:
    return Key(
        (name,), default, wsl, Here.DONE, note, field, byte_sizes.parse_size, byte_sizes.WANT
    )


def _ignored(names: str, default: str, wsl: str) -> Key:
    return Key(tuple(names.split()), default, wsl)


KEYS: Final = (
    # In the order in which they are applied.
    _switch(
        "wsl2.safeMode",
        "safe_mode",
        "false",
        "warns, and switches off virtio, host file systems, networking, GPU, GUI and the user's "
        "kernel",
        "the same for virtio, shares and networking, with a warning",
    ),
    _switch(
        "wsl2.virtio",
        "virtio",
        "true",
        "false: no virtiofs, virtio9p and swiotlb; Consomme becomes Nat, or None if it is the "
        "default",
        "the same; a device is refused with VIRTIO_OFF",
    ),
    Key(
        ("wsl2.virtio9p",),
        "false",
        "true: warns that it is not supported any more, and uses 9p over a socket",
        Here.REFUSED,
        "true is a warning; there is no device, and no pool for it",
        "virtio9p",
        _boolean,
        "true or false",
    ),
    _switch(
        "wsl2.virtiofs",
        "virtiofs",
        "false",
        "shares drives by virtio-fs, otherwise by 9p",
        "default true; false: a share, or another virtio-fs device, is refused with VIRTIOFS_OFF",
    ),
    _switch(
        "wsl2.hostFileSystemAccess",
        "host_file_system_access",
        "true",
        "false: no drives are mounted",
        "false: as virtiofs=false",
    ),
    Key(
        ("wsl2.networkingMode", "experimental.networkingMode"),
        "nat",
        "none, nat, bridged, mirrored or consomme, which was called virtioproxy",
        Here.DONE,
        "default virtioproxy, alias consomme; nat: virtio adapters on TAP interfaces; none: no "
        "adapters, and a virtio-net device is refused with NETWORKING_MODE; in bridged and "
        "mirrored ConfigureNetworking is, too",
        "networking_mode",
        _networking_mode,
        "one of none, nat, bridged, mirrored, virtioproxy and consomme",
    ),
    _switch(
        "wsl2.localhostForwarding",
        "localhost_forwarding",
        "true",
        "ports of the guest on the host's localhost",
        "default false; true: in the mode virtioproxy, TCP ports from 1024 on",
    ),
    _size(
        "wsl2.memory",
        "memory_bytes",
        "half of the host's; 0: the default",
        "RAM, at least 256 MiB and at most that of the host",
        "default 2 GiB, at least 256 MiB and at most 1 TiB, with a warning if that changes it; a "
        "size that CreateVm names comes first",
    ),
    _size(
        "experimental.swiotlb",
        "swiotlb_bytes",
        "64 MiB from 1 GiB + 64 MiB of RAM on if virtiofs or Consomme is used; 0: the default",
        "size of the pool, whatever the RAM and the devices are",
        "the same, and by default also with nat, whose adapters are virtio here; a size that does "
        "not fit into the RAM below 4 GiB is a warning, and the default applies",
    ),
    # The rest configures what this owner does not have.
    _ignored("wsl2.kernel", "the bundled one", "kernel image"),
    _ignored("wsl2.kernelCommandLine", "empty", "appended to the kernel's command line"),
    _ignored("wsl2.kernelModules", "the bundled ones", "disk with the modules of the kernel"),
    _ignored("wsl2.loadDefaultKernelModules", "true", "loads three modules at boot"),
    _ignored("wsl2.loadKernelModules", "none", "further modules that are loaded at boot"),
    _ignored("wsl2.processors", "all of the host", "number of processors"),
    _ignored("wsl2.swap", "a quarter of the RAM", "size of the swap disk; 0: none"),
    _ignored("wsl2.swapFile", "a temporary file", "path of the swap disk"),
    _ignored("wsl2.nestedVirtualization", "true where it is supported", "KVM in the guest"),
    _ignored("wsl2.hardwarePerformanceCounters", "true on x86-64", "counters in the guest"),
    _ignored("wsl2.gpuSupport", "true", "the host's GPU in the guest"),
    _ignored("wsl2.guiApplications", "true", "windows of guest programs on the host"),
    _ignored("wsl2.systemDistro", "the bundled one", "disk of the system distribution"),
    _ignored("wsl2.isolateDistroCgroup", "true", "a cgroup for each distribution"),
    _ignored("wsl2.telemetry", "true in releases", "sends telemetry"),
    _ignored("wsl2.debugConsole", "false", "a window with the kernel's log"),
    _ignored("wsl2.debugConsoleLogFile", "none", "file with the kernel's log"),
    _ignored("wsl2.earlyBootLogging", "false", "the log from the beginning, by a serial port"),
    _ignored("wsl2.kernelDebugPort", "0", "port of a kernel debugger"),
    _ignored("wsl2.kernelBootTimeout", "30 s", "longest boot of the kernel"),
    _ignored("wsl2.distributionStartTimeout", "60 s", "longest start of a distribution"),
    _ignored("wsl2.mountDeviceTimeout", "5 s", "longest wait for a disk"),
    _ignored("wsl2.vmIdleTimeout", "60 s", "an idle VM ends after this time"),
    _ignored("wsl2.crashDumpFolder", "a temporary folder", "folder of crash dumps"),
    _ignored("wsl2.maxCrashDumpCount", "10", "number of crash dumps that are kept"),
    _ignored("wsl2.defaultVhdSize", "1 TiB", "largest size of a new distribution's disk"),
    _ignored("wsl2.vmSwitch", "none", "virtual switch of the mode bridged"),
    _ignored("wsl2.macAddress", "random", "address of the mode bridged"),
    _ignored("wsl2.dhcp", "true", "DHCP in the mode bridged"),
    _ignored("wsl2.dhcpTimeout", "5 s", "longest wait for DHCP"),
    _ignored("wsl2.ipv6", "false", "IPv6 in the mode bridged"),
    _ignored("wsl2.dnsProxy", "true", "the host as the DNS server of the mode nat"),
    _ignored(
        "wsl2.dnsTunneling experimental.dnsTunneling", "true", "DNS by a socket, not by packets"
    ),
    _ignored(
        "wsl2.firewall experimental.firewall", "true", "rules of the host's firewall for the guest"
    ),
    _ignored("wsl2.autoProxy experimental.autoProxy", "true", "the host's HTTP proxy in the guest"),
    _ignored("experimental.autoMemoryReclaim", "dropCache", "gives back cached memory"),
    _ignored("experimental.sparseVhd", "false", "new disks shrink by themselves"),
    _ignored("experimental.bestEffortDnsParsing", "false", "passes on unknown DNS records"),
    _ignored("experimental.dnsTunnelingIpAddress", "WSL's own", "name server of DNS tunneling"),
    _ignored("experimental.initialAutoProxyTimeout", "1 s", "longest wait for the proxy"),
    _ignored("experimental.ignoredPorts", "none", "ports that the mode mirrored does not share"),
    _ignored("experimental.hostAddressLoopback", "false", "the host's addresses in mirrored mode"),
    _ignored("experimental.setVersionDebug", "false", "log of the conversion of a distribution"),
    _ignored(
        "experimental.virtioFsAggregateShares",
        "true",
        "all drives of a user are directories of one virtio-fs device; here AddShare says it",
    ),
    _ignored("general.distributionInstallPath", "in the user's profile", "place of new disks"),
    _ignored("general.instanceIdleTimeout", "15 s", "an idle distribution ends after this time"),
)
"""Every key that WSL knows."""

BY_NAME: Final[Mapping[str, Key]] = {name.lower(): key for key in KEYS for name in key.names}
"""The key of each name, in lower case."""
