"""`python -m bench.dashboard`: how many spans a dashboard takes, and how fast it answers meanwhile.

Owns the load: whole handshakes of WSL2 VMs, each with a device of virtio-fs and an adapter, in
batches as exporters send them. The dashboard is a process of its own with a file in a temporary
directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities, parse_kernel_release
from services.handshake.events import FS, NET, Event, Sizing
from services.handshake.features import FEATURES
from services.handshake.options import build_options
from services.handshake.pool import Gpa, SwiotlbPool, format_token

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPORT: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PAGES: Final = 21
_ROWS_AT: Final = """
new MutationObserver((_, observer) => {
  if (!document.querySelector("tbody tr")) return;
  window.rowsAt = performance.now();
  observer.disconnect();
}).observe(document, {subtree: true, childList: true});
"""
BATCH_VMS: Final = 25
"""VMs of a batch: it has about 500 spans, as the batches of OpenTelemetry's exporter."""

_VM: Final = "{:08x}-2222-4333-8444-555555555555"
_FIRST: Final = 0xFFFFFFF
_POOL: Final = SwiotlbPool(Gpa(0x3C000000), 64 << 20)
_RELEASE: Final = "6.18.26.3-microsoft-standard-WSL2"
_READY: Final = re.compile(r"porthole dashboard ready on http://(.+), (.+), http://(.+)")


def handshake() -> bytes:
    """Return the request of one VM, with about 20 spans; `renumbered` makes others of it."""
    vm_id = _VM.format(_FIRST)
    token = format_token(_POOL)
    capabilities = GuestCapabilities(_POOL, _RELEASE, seccomp_user_notification=True)
    sizing = Sizing(2 << 30, True, True, None, 64 << 20)
    made = _Trace()
    call = made.span("owner", "CreateVm", 0, service="porthole.vmowner.v1.VmOwner")
    create = made.span(
        "owner",
        "Create",
        call,
        events.vm_created(vm_id, "WSL2", sizing),
        events.guest_booted(vm_id, 0),
    )
    made.span("guest-init", "Read", create)
    made.span(
        "owner",
        "Report",
        create,
        events.guest_kernel_info(vm_id, capabilities, parse_kernel_release(_RELEASE)),
        events.pool_latched(vm_id, _POOL, token),
    )
    devices = [("src", FS), ("data", FS), ("eth0", NET)]
    for tag, kind in devices:
        who = (vm_id, f"id-{tag}", kind, tag)
        options = build_options(tag, "", token, vm_id)
        add = made.span(
            "owner", "Add", create, events.device_added(*who, options, " ".join(FEATURES))
        )
        host = made.span("devicehost", "CreateDevice", add)
        made.span("devicehost", "Attach", host, events.aperture_created(*who, _POOL))
        made.span("devicehost", "First", host, events.first_request(*who))
    for tag, kind in devices:
        made.span("owner", "Remove", create, events.device_removed(vm_id, f"id-{tag}", kind, tag))
    made.span("owner", "Terminate", create, events.vm_terminated(vm_id))
    return made.request.SerializeToString()


def renumbered(one: bytes, number: int) -> bytes:
    """Return the request of another VM, in a trace of its own; all ids keep their lengths."""
    vm_id, trace_id = _VM.format(_FIRST).encode(), _FIRST.to_bytes(16, "big")
    renamed = one.replace(vm_id, _VM.format(number).encode())
    return renamed.replace(trace_id, (number + 1).to_bytes(16, "big"))


class _Trace:
    """The spans of one VM, a millisecond each, one after the other."""

    def __init__(self) -> None:
        self.request = ExportTraceServiceRequest()
        self._count = 0
        self._begin = time.time_ns()
        self._of: dict[str, Any] = {}

    def span(self, who: str, name: str, parent: int, *listed: Event, service: str = "") -> int:
        if who not in self._of:
            resource = self.request.resource_spans.add()
            pair = resource.resource.attributes.add()
            pair.key, pair.value.string_value = "service.name", who
            self._of[who] = resource.scope_spans.add()
        self._count += 1
        at = self._begin + self._count * 1_000_000
        span = self._of[who].spans.add(
            trace_id=_FIRST.to_bytes(16, "big"),
            span_id=self._count.to_bytes(8, "big"),
            parent_span_id=parent.to_bytes(8, "big") if parent else (1 << 40).to_bytes(8, "big"),
            name=name,
            start_time_unix_nano=at,
            end_time_unix_nano=at + 900_000,
        )
        if service:
            _add(span.attributes, {"rpc.service": service})
        for offset, event in enumerate(listed):
            shown = span.events.add(name=event.name, time_unix_nano=at + offset + 1)
            _add(shown.attributes, dict(event.attributes))
        return self._count


def _add(attributes: Any, values: dict[str, Any]) -> None:
    kinds = {str: "string_value", int: "int_value", bool: "bool_value"}
    for key, value in values.items():
        pair = attributes.add(key=key)
        setattr(pair.value, kinds[type(value)], value)


@contextlib.contextmanager
def dashboard(folder: Path) -> Iterator[tuple[int, str, str]]:
    """Run a dashboard; yield its process id, and the addresses of its page and of OTLP."""
    listen = [
        part
        for name in ("listen", "otlp-grpc", "otlp-http")
        for part in (f"--{name}", "127.0.0.1:0")
    ]
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "services.dashboard"),
            *("--database", str(folder / "d.sqlite"), "--log-level", "error", *listen),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            match = _READY.fullmatch(line.strip())
            if match is None:
                raise SystemExit(f"the dashboard did not start: {line}")
            yield process.pid, match[1], match[2]
        finally:
            process.send_signal(signal.SIGTERM)


class Pages:
    """Asks for the list of VMs, again and again, and keeps how long each answer took."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.milliseconds: list[float] = []

    def __enter__(self) -> Pages:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.2):
            began = time.perf_counter()
            get(self._address, "/vms")
            self.milliseconds.append((time.perf_counter() - began) * 1000)


def get(address: str, path: str) -> Any:
    """Return the JSON at a path of the API."""
    with urllib.request.urlopen(f"http://{address}/api/v1{path}", timeout=60) as answer:
        return json.load(answer)


def measure(rate: int, seconds: float, vms: int) -> dict[str, Any]:
    """Store handshakes, then send spans at a rate while the list is asked for.

    Args:
        rate: Spans in a second.
        seconds: How long.
        vms: How many handshakes are stored before.
    """
    one = handshake()
    spans = len(
        [
            None
            for each in ExportTraceServiceRequest.FromString(one).resource_spans
            for scope in each.scope_spans
            for _ in scope.spans
        ]
    )
    with tempfile.TemporaryDirectory() as folder, dashboard(Path(folder)) as (pid, page, otlp):
        channel = grpc.insecure_channel(otlp)
        export: Any = channel.unary_unary(EXPORT)
        number = 0

        def send() -> float:
            nonlocal number
            batch = b"".join(renumbered(one, number + each) for each in range(BATCH_VMS))
            number += BATCH_VMS
            began = time.perf_counter()
            export(batch)
            return (time.perf_counter() - began) * 1000

        began = time.perf_counter()
        while number < vms:
            send()
        stored_rate = number * spans / (time.perf_counter() - began)
        stored_lag = _until_judged(page)
        with Pages(page) as quiet:
            time.sleep(5)
        shown = _page_ms(page)
        acknowledged = []
        used, sent, began = _cpu_s(pid), 0, time.perf_counter()
        with Pages(page) as busy:
            while (passed := time.perf_counter() - began) < seconds:
                if sent > rate * passed:
                    time.sleep(sent / rate - passed)
                acknowledged.append(send())
                sent += BATCH_VMS * spans
        took = time.perf_counter() - began
        used = _cpu_s(pid) - used
        channel.close()
        return {
            "handshakes_stored": number,
            "spans_per_s_at_most": round(stored_rate),
            "judged_after_s": round(stored_lag, 1),
            "spans_per_s": round(sent / took),
            "acknowledged_ms": _quantiles(acknowledged),
            "page_first_ms": round(shown[0], 1) if shown else None,
            "page_ms": _quantiles(shown[1:]) if shown else None,
            "list_ms_idle": _quantiles(quiet.milliseconds),
            "list_ms_under_load": _quantiles(busy.milliseconds),
            "receiving_cpu": round(used / took, 2),
            "judged_after_load_s": round(_until_judged(page), 1),
            "all_valid": get(page, "/vms")["counts"]["valid"] == number,
            "file_bytes": get(page, "/about")["used_bytes"],
        }


def _until_judged(page: str) -> float:
    began = time.perf_counter()
    while get(page, "/about")["to_be_judged"]:
        time.sleep(0.2)
    return time.perf_counter() - began


def _page_ms(address: str) -> list[float]:
    """Return how long a browser takes from the address to a list with rows.

    The first figure is of a browser that was never there; the others are of one that was.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        return []
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        # When there are rows, by the clock of the page: asking it from here takes longer.
        page.add_init_script(_ROWS_AT)
        for _ in range(PAGES):
            page.goto(f"http://{address}/")
            page.wait_for_selector("tbody tr")
            found.append(float(page.evaluate("window.rowsAt")))
        browser.close()
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 1),
        "p99": round(ordered[int(len(ordered) * 0.99)], 1),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--rate", type=int, default=5_000, help="spans in a second")
    parser.add_argument("--seconds", type=float, default=30, help="how long")
    parser.add_argument("--vms", type=int, default=10_000, help="handshakes stored before")
    given = parser.parse_args()
    print(json.dumps(measure(given.rate, given.seconds, given.vms), indent=2))


if __name__ == "__main__":
    main()
