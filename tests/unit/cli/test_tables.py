from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

import pytest
from porthole.handshake.v1.device_pb2 import DeviceCounters
from rich.console import Console

from services.cli import tables
from services.cli.console import out, printable
from services.cli.documents import (
    DeviceEvent,
    ExhaustedEvent,
    PoolLatchedEvent,
    StateEvent,
    UnknownEvent,
    VmEvent,
    WarningEvent,
    as_document,
)
from services.cli.views import DeviceView, ShareView, VmView, WarningView

if TYPE_CHECKING:
    from rich.table import Table

DEVICE = DeviceView(
    instance_id="d1",
    device_class="virtio-fs",
    tag="data",
    state="attached",
    options="data;ro;swiotlb=0x3c000000,67108864;vm_id=v1",
    socket_path="/run/d1.sock",
    elevated=False,
    counters=dict.fromkeys(DeviceCounters.DESCRIPTOR.fields_by_name, 0)
    | {
        "requests": 7,
        "bytes_in": 1024,
        "bytes_out": 3 << 20,
        "translations_refused": 1,
    },
)
VM = VmView(
    vm_id="v1",
    kind="WSL2",
    state="running",
    ram_bytes=2 << 30,
    kernel_release="6.18.26.3-microsoft",
    kernel_command_line="swiotlb=force",
    pool_base=0x3C000000,
    pool_size_bytes=64 << 20,
    token="swiotlb=0x3c000000,67108864",
    networking_mode="virtio-proxy",
    guest_init_address="unix:/run/g.sock",
    machine_address="unix:/run/m.sock",
    traceparent="00-0-0-01",
    isolation="strict",
    shares=(ShareView("s1", "d1", "/srv/[bold]data", "data", "ro", elevated=False),),
    devices=(DEVICE,),
    warnings=(WarningView("Id", "text"),),
)


def rendered(table: Table) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    stream = console.file
    assert isinstance(stream, io.StringIO)
    return stream.getvalue()


def test_a_vm_is_one_row_under_its_headings() -> None:
    heading, row = rendered(tables.vm_table([VM])).splitlines()
    assert heading.split() == [
        *("VM", "kind", "state", "kernel", "RAM"),
        *("pool", "shares", "devices", "warnings"),
    ]
    assert row.split() == [
        *("v1", "WSL2", "running", "6.18.26.3-microsoft", "2", "GiB"),
        *("0x3c000000", "+", "64", "MiB", "1", "1", "1"),
    ]


def test_a_device_row_shows_its_counters() -> None:
    _, row = rendered(tables.device_table([DEVICE])).splitlines()
    assert row.split() == [
        *("d1", "virtio-fs", "data", "attached", "7", "1", "KiB", "3", "MiB", "1", "0"),
    ]


def test_names_are_not_read_as_markup() -> None:
    assert "/srv/[bold]data" in rendered(tables.share_table(VM.shares))


def test_escape_sequences_of_a_guest_do_not_reach_the_terminal() -> None:
    assert printable("6.18\x1b[2J\x9b\r") == "6.18\\x1b[2J\\x9b\\r"


def test_facts_of_a_vm_without_a_pool_say_none() -> None:
    bare = VmView(
        **{
            **{name: getattr(VM, name) for name in VM.__slots__},
            "pool_base": 0,
            "pool_size_bytes": 0,
            "token": "",
        }
    )
    lines = [line.split() for line in rendered(tables.vm_facts(bare)).splitlines()]
    assert ["pool", "none"] in lines
    assert ["token", "none"] in lines


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (StateEvent("running"), "state    running"),
        (WarningEvent("I", "t"), "warning  I: t"),
        (PoolLatchedEvent(4096, 8192), "pool     0x1000 + 8 KiB"),
        (DeviceEvent("d", "t", "needs-reset", "why"), "device   t needs-reset: why (d)"),
        (
            ExhaustedEvent("d", "t", "handles", 10, 10, "handles exhausted: 10 of 10 in use"),
            "limit    t handles exhausted: 10 of 10 in use (d)",
        ),
        (UnknownEvent(), "unknown  (this porthole does not know it; a newer one may)"),
    ],
)
def test_each_event_is_one_line(event: VmEvent, line: str) -> None:
    assert tables.watch_line(event) == line


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        (1 << 50, "1048576 GiB"),
    ],
)
def test_sizes_have_a_binary_unit(size_bytes: int, text: str) -> None:
    assert tables.format_bytes(size_bytes) == text


def test_json_is_the_fields_of_the_view_after_the_name_of_its_schema() -> None:
    document = json.loads(json.dumps(as_document(VM)))
    assert list(document)[:2] == ["schema", "vm_id"]
    assert document["schema"] == "vm.v1"
    assert document["devices"][0]["counters"]["translations_refused"] == 1
    assert document["shares"][0]["host_path"] == "/srv/[bold]data"
    assert document["pool_base"] == 0x3C000000


def test_a_pipe_gets_no_colour_and_wide_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    out().print(tables.vm_table([VM]))
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert len(text.splitlines()) == 2


def test_columns_are_honoured_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "77")
    assert out().width == 77
