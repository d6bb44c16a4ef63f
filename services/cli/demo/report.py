"""The report of the demonstration: per VM, as JSON for programs and as a table for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final

from rich.table import Table

from services.cli.documents import as_document
from services.cli.tables import format_bytes, format_pool
from services.cli.verdict import VALID
from services.cli.views import CopyResult, HttpResult, PingResult, VmView

SHOWN_LIMIT: Final = 20
"""Most differences of one comparison that are listed; all are counted."""


@dataclass(slots=True)
class VmReport:
    """The report on one VM. Programs rely on the first fields, up to `refused`.

    Attributes:
        kind: "WSL2" or "WSLC".
        kernel: `uname -r` of the guest.
        gpa_base: First guest-physical address of the latched pool; 0 without one.
        size_bytes: Its size; 0 without one.
        token: The token that every device got; empty without a pool.
        devices: Number of its virtio devices.
        bytes_in: Bytes that its devices read from guest memory.
        bytes_out: Bytes that its devices wrote to guest memory.
        files: Number of files that the guest read and that were compared with the host.
        mismatches: Comparisons that failed: contents, modes, links, fetched files.
        refused: Number of guest addresses that its devices refused.
        name: Name of the VM in this demonstration.
        vm_id: Its id.
        degraded: Whether it works without a pool, with windows on demand.
        requests: Number of requests that its devices served.
        windows_mapped: Number of windows that its devices mapped.
        windows_evicted: Number of windows that made room for others.
        windows_waited: Number of requests that waited for a window.
        pool_slots: Number of slots of its bounce pool; 0 without one.
        pool_slots_high_water: Most slots that were in use at once.
        warnings: Names of the warnings about it.
        copied: The counts of the tree that the guest wrote; null when it wrote none.
        files_through_mount_point: Number of files that were compared through a mount point; null
            when the share was not mounted.
        networking: "nat" or "virtio-proxy"; empty when it has no network.
        ping: The result of its pings; null when it has no network.
        resolved: The addresses of a name; null when it asked for none.
        http: The response that it fetched; null when it has no network.
        mapped_port: The response of its own service, fetched from outside; null when none was.
        not_shown: What this machine could not show of it, as sentences.
        seconds: How long it took.
        seconds_by_step: The same, by the name of each step.
        failures: Every failure, as a sentence.
    """

    kind: str
    kernel: str = ""
    gpa_base: int = 0
    size_bytes: int = 0
    token: str = ""
    devices: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    files: int = 0
    mismatches: int = 0
    refused: int = 0
    name: str = ""
    vm_id: str = ""
    degraded: bool = False
    requests: int = 0
    windows_mapped: int = 0
    windows_evicted: int = 0
    windows_waited: int = 0
    pool_slots: int = 0
    pool_slots_high_water: int = 0
    warnings: list[str] = field(default_factory=list)
    copied: CopyResult | None = None
    files_through_mount_point: int | None = None
    networking: str = ""
    ping: PingResult | None = None
    resolved: list[str] | None = None
    http: HttpResult | None = None
    mapped_port: HttpResult | None = None
    not_shown: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seconds_by_step: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def take(self, vm: VmView) -> None:
        """Copy the facts that the VM owner reports of the VM."""
        self.vm_id, self.kernel = vm.vm_id, vm.kernel_release
        self.gpa_base, self.size_bytes, self.token = vm.pool_base, vm.pool_size_bytes, vm.token
        self.degraded = not vm.token
        self.devices = len(vm.devices)
        self.warnings = [warning.id for warning in vm.warnings]
        counters = [device.counters for device in vm.devices]
        self.requests = sum(item["requests"] for item in counters)
        self.bytes_in = sum(item["bytes_in"] for item in counters)
        self.bytes_out = sum(item["bytes_out"] for item in counters)
        self.refused = sum(item["translations_refused"] for item in counters)
        self.windows_mapped = sum(item["windows_mapped"] for item in counters)
        self.windows_evicted = sum(item["windows_evicted"] for item in counters)
        self.windows_waited = sum(item["windows_waited"] for item in counters)

    def compare(self, what: str, differences: list[str]) -> None:
        """Count the differences that a comparison found, and list the first of them."""
        self.mismatches += len(differences)
        self.failures += [f"{what}: {line}" for line in differences[:SHOWN_LIMIT]]

    @property
    def passed(self) -> bool:
        """Whether everything that was compared is equal and nothing was refused."""
        return not (self.mismatches or self.refused or self.failures)


@dataclass(slots=True)
class DemoReport:
    """The report on all VMs.

    Attributes:
        vms: The report on each VM.
        handshake: "valid", or the first broken rule.
        tree: The directory tree that the VMs worked on.
        tree_files: Number of its regular files that could be read.
        tree_bytes: Bytes of these files.
        tree_excluded: Names that were left out.
        tree_unreadable: Number of files that could not be read.
        not_shown: What this machine could not show, as sentences.
        seconds: How long all took.
    """

    SCHEMA: ClassVar[str] = "demo-report.v1"

    vms: list[VmReport] = field(default_factory=list)
    handshake: str = "not checked"
    tree: str = ""
    tree_files: int = 0
    tree_bytes: int = 0
    tree_excluded: list[str] = field(default_factory=list)
    tree_unreadable: int = 0
    not_shown: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every comparison and every rule holds."""
        return bool(self.vms) and self.handshake == VALID and all(vm.passed for vm in self.vms)

    def as_json(self) -> dict[str, object]:
        """Return the JSON form, in which the fields are by name."""
        return as_document(self)


def summary_table(report: DemoReport) -> Table:
    """Return a table with one column per VM: its pool, its counters, its comparisons."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    for vm in report.vms:
        heading = f"{vm.name} (degraded)" if vm.degraded else vm.name
        table.add_column(heading, overflow="fold", style="yellow" if vm.degraded else "")
    for label, cells in (
        ("kernel", [vm.kernel for vm in report.vms]),
        ("pool", [format_pool(vm.gpa_base, vm.size_bytes) for vm in report.vms]),
        ("token", [vm.token or "none" for vm in report.vms]),
        ("devices", [str(vm.devices) for vm in report.vms]),
        ("requests", [str(vm.requests) for vm in report.vms]),
        ("into devices", [format_bytes(vm.bytes_in) for vm in report.vms]),
        ("out of devices", [format_bytes(vm.bytes_out) for vm in report.vms]),
        ("refused", [str(vm.refused) for vm in report.vms]),
        ("windows", [str(vm.windows_mapped) for vm in report.vms]),
        ("pool use", [_pool_use(vm) for vm in report.vms]),
        ("files read", [str(vm.files) for vm in report.vms]),
        ("tree written", [_copied(vm.copied) for vm in report.vms]),
        ("mount point", [_mounted(vm.files_through_mount_point) for vm in report.vms]),
        ("network", [vm.networking or "-" for vm in report.vms]),
        ("ping", [_pinged(vm.ping) for vm in report.vms]),
        ("name", [", ".join(vm.resolved or ["-"]) for vm in report.vms]),
        ("HTTP", [_fetched(vm.http) for vm in report.vms]),
        ("mapped port", [_fetched(vm.mapped_port) for vm in report.vms]),
        ("mismatches", [str(vm.mismatches) for vm in report.vms]),
        ("took", [f"{vm.seconds:.1f} s" for vm in report.vms]),
    ):
        table.add_row(label, *cells)
    return table


def _pool_use(vm: VmReport) -> str:
    if not vm.pool_slots:
        return "-"
    return f"{vm.pool_slots_high_water} of {vm.pool_slots} slots"


def _copied(result: CopyResult | None) -> str:
    return f"{result.files} files, {format_bytes(result.bytes_copied)}" if result else "-"


def _mounted(files: int | None) -> str:
    return "-" if files is None else f"{files} files"


def _pinged(result: PingResult | None) -> str:
    if result is None:
        return "-"
    median_ms = result.round_trip_median_s * 1000
    return f"{result.received} of {result.sent}, {median_ms:.1f} ms"


def _fetched(result: HttpResult | None) -> str:
    return f"{result.status}, {format_bytes(result.size_bytes)}" if result else "-"
