"""Tables and lines for people, made of views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from services.cli.console import printable
from services.cli.documents import (
    DeviceEvent,
    ExhaustedEvent,
    PoolLatchedEvent,
    StateEvent,
    UnknownEvent,
    VmEvent,
    WarningEvent,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.cli.views import DeviceView, PortView, ShareView, VmView
    from services.handshake.trace.checker import VmVerdict

_STATE_STYLE = {
    "running": "green",
    "attached": "green",
    "booted": "yellow",
    "connected": "yellow",
    "listening": "yellow",
    "needs-reset": "red",
    "terminated": "dim",
    "valid": "green",
}


def format_bytes(size_bytes: int) -> str:
    """Write a size with a binary unit, exact where it is a whole number of units."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size == int(size) else f"{size:.1f} {unit}"


def format_pool(base: int, size_bytes: int) -> str:
    """Write a pool as its first address and size."""
    return f"0x{base:x} + {format_bytes(size_bytes)}" if size_bytes else "none"


def vm_table(vms: Iterable[VmView]) -> Table:
    """Return a table with one row per VM."""
    table = _table("VM", "kind", "state", "kernel", "RAM", "pool", "shares", "devices", "warnings")
    for vm in vms:
        _row(
            table,
            vm.vm_id,
            vm.kind,
            vm.state,
            vm.kernel_release or "?",
            format_bytes(vm.ram_bytes),
            format_pool(vm.pool_base, vm.pool_size_bytes),
            str(len(vm.shares)),
            str(len(vm.devices)),
            str(len(vm.warnings)),
        )
    return table


def vm_facts(vm: VmView) -> Table:
    """Return a table of all scalar facts of one VM, one per row."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in (
        ("VM", vm.vm_id),
        ("kind", vm.kind),
        ("state", vm.state),
        ("kernel", vm.kernel_release or "not reported"),
        ("RAM", format_bytes(vm.ram_bytes)),
        ("command line", vm.kernel_command_line),
        ("pool", format_pool(vm.pool_base, vm.pool_size_bytes)),
        ("token", vm.token or "none"),
        ("networking", vm.networking_mode),
        ("guest init", vm.guest_init_address or "none"),
        ("machine", vm.machine_address),
        ("isolation", vm.isolation),
        ("trace", vm.traceparent),
        *(("warning", f"{warning.id}: {warning.text}") for warning in vm.warnings),
    ):
        _row(table, name, value)
    return table


def share_table(shares: Iterable[ShareView]) -> Table:
    """Return a table with one row per share."""
    table = _table("share", "tag", "directory", "options", "elevated", "aggregate")
    for share in shares:
        flags = ("yes" if each else "no" for each in (share.elevated, share.aggregate))
        _row(table, share.share_id, share.tag, share.host_path, share.options or "-", *flags)
    return table


def port_table(ports: Iterable[PortView]) -> Table:
    """Return a table with one row per port."""
    table = _table("host", "guest", "state", "cause")
    for port in ports:
        cause = f"{port.detail} [{port.reason}]" if port.reason else "-"
        _row(table, listening(port), str(port.guest_port), port.state, cause)
    return table


def listening(port: PortView) -> str:
    """Return where the host listens, as `port remove` takes it."""
    address = f"[{port.listen_address}]" if ":" in port.listen_address else port.listen_address
    return f"{address}:{port.listen_port}/{port.protocol}"


def device_table(devices: Iterable[DeviceView]) -> Table:
    """Return a table with one row per device, with its counters."""
    table = _table("device", "class", "tag", "state")
    for heading in ("requests", "in", "out", "refused", "windows"):
        table.add_column(heading, justify="right", overflow="fold")
    for device in devices:
        counters = device.counters
        _row(
            table,
            device.instance_id,
            device.device_class,
            device.tag,
            device.state,
            str(counters["requests"]),
            format_bytes(counters["bytes_in"]),
            format_bytes(counters["bytes_out"]),
            str(counters["translations_refused"]),
            str(counters["windows_mapped"]),
        )
    return table


def verdict_table(verdicts: Iterable[VmVerdict], show: Callable[[str], str]) -> Table:
    """Return a table with one row per VM: its handshake is valid, or the broken rules.

    Args:
        verdicts: The verdicts.
        show: What makes a text of a trace fit for a line of output.
    """
    table = _table("VM", "kind", "token", "devices", "handshake")
    for vm in verdicts:
        rules = ", ".join(dict.fromkeys(violation.rule for violation in vm.violations))
        cells = (show(vm.vm_id), show(vm.kind) or "?", show(vm.token) or "none")
        _row(table, *cells, str(vm.devices), rules or "valid")
    return table


def watch_line(event: VmEvent) -> str:
    """Return one event as one line."""
    match event:
        case StateEvent():
            return f"state    {event.state}"
        case WarningEvent():
            return f"warning  {event.id}: {event.text}"
        case DeviceEvent():
            detail = f": {event.detail}" if event.detail else ""
            return f"device   {event.tag} {event.state}{detail} ({event.instance_id})"
        case PoolLatchedEvent():
            return f"pool     {format_pool(event.base, event.size_bytes)}"
        case ExhaustedEvent():
            return f"limit    {event.tag} {event.detail} ({event.instance_id})"
        case UnknownEvent():
            return f"{event.event}  (this porthole does not know it; a newer one may)"


def _table(*headings: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    """Add a row of plain texts: names that guests chose must not be interpreted as markup."""
    table.add_row(*(Text(printable(cell), _STATE_STYLE.get(cell, "")) for cell in cells))
