"""Answers of the dashboard's API, as docs/dashboard.md has them, for a page without a dashboard.

Must not know the page. Whether a real dashboard answers like this is shown by test_dashboard.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

NOW_MS = 1790000000000
TRACE = "0af7651916cd43dd8448eb211c80319c"
TOKEN = "swiotlb=0x38000000,67108864"
BASE, SIZE = "0x38000000", "67108864"
OTHER_BASE, OTHER_SIZE = "0x38200000", "67112960"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"

RULES = [
    ("BOOTED_MISSING", 9, "The guest boots."),
    ("APERTURE_MISMATCH", 7, "An aperture is exactly the latched pool."),
    ("TOKEN_MISSING", 4, "A device that is added after a pool was latched has the token."),
    ("APERTURE_MISSING", 7, "A device with a token gets its aperture."),
    ("PARENT_MISSING", 9, "The parent of each span was recorded."),
]

PARTIES = [
    ("owner", "VM owner", "owner"),
    ("guest-kernel", "guest kernel", "guest-kernel"),
    ("guest-init", "guest init", "guest-init"),
    ("device-host", "device host", "device-host"),
]


def row(vm_id: str, verdict: str = "valid", **changes: Any) -> Json:
    """A row of the list."""
    broken = ["APERTURE_MISMATCH"] if verdict == "broken" else []
    return {
        "vm_id": vm_id,
        "kind": "WSL2",
        "kernel": "6.18.26.3-1",
        "verdict": verdict,
        "rules": broken,
        "problem": "",
        "token": TOKEN,
        "devices": 2,
        "lives": 1,
        "spans": 9,
        "services": ["devicehost", "guest-init", "owner"],
        "started_ms": NOW_MS,
        "ended_ms": NOW_MS + 2300,
        "latched_us": 48210,
        "last_ms": NOW_MS + 2500,
        "revision": 1,
    } | changes


def hop(
    before: int | None, base: str | None = BASE, size: str | None = SIZE, token: str | None = None
) -> Json:
    """What a step says of the pool, equal to the hop before."""

    def same(value: str | None) -> bool | None:
        return None if before is None or value is None else True

    return {
        "base": base,
        "size": size,
        "token": token,
        "own_part": None,
        "compared_with": before,
        "same": {"base": same(base), "size": same(size), "token": same(token)},
    }


def _event(index: int, name: str, party: str, hop: Json | None, device_id: str = "") -> Json:
    return {
        "index": index,
        "name": name,
        "party": party,
        "service": "devicehost" if party.startswith("device") else "owner",
        "at_us": 8000 * index,
        "device_id": device_id,
        "trace_id": TRACE,
        "span_id": f"{index + 1:016x}",
        "attributes": [{"key": "porthole.vm.ram_bytes", "value": {"intValue": "2147483648"}}]
        if name == "VmCreated"
        else [{"key": "porthole.device.tag", "value": {"stringValue": device_id}}],
        "hop": hop,
        "broken": [],
    }


def _events(devices: tuple[str, ...]) -> list[Json]:
    found = [
        _event(0, "VmCreated", "owner", hop(None, None)),
        _event(1, "GuestBooted", "owner", None),
        _event(2, "GuestKernelInfo", "guest-init", hop(0)),
        _event(3, "PoolLatched", "owner", hop(2, token=TOKEN)),
    ]
    for device in devices:
        added = len(found)
        party = f"device:{device}"
        found += [
            _event(added, "AddGuestDevice", "owner", hop(3, token=TOKEN), device),
            _event(added + 1, "ApertureCreated", party, hop(added), device),
            _event(added + 2, "FirstRequestCompleted", party, None, device),
        ]
    return [*found, _event(len(found), "VmTerminated", "owner", None)]


def valid(vm_id: str, devices: tuple[str, ...] = ("src", "eth0")) -> Json:
    """One VM whose handshake is valid."""
    events = _events(devices)
    parties: list[Json] = [
        {"id": ident, "name": name, "kind": kind} for ident, name, kind in PARTIES
    ]
    for device in devices:
        named = {"device_id": device, "class": "virtio-fs", "tag": device, "removed": True}
        parties.append(
            {"id": f"device:{device}", "name": device, "kind": "device", "device": named}
        )
    life = {
        "verdict": "valid",
        "started_ms": NOW_MS,
        "ended_ms": NOW_MS + 2300,
        "parties": parties,
        "events": events,
        "rules": [
            {"rule": rule, "section": section, "says": says, "verdict": "kept", "violations": []}
            for rule, section, says in RULES
        ],
        "violations": [],
        "violations_left_out": 0,
    }
    return {
        "vm": row(vm_id, devices=len(devices)),
        "lives": [life],
        "spans": [_span(event) for event in events],
        "spans_left_out": 0,
        "origin_ms": NOW_MS,
        "links": [
            {"name": "Jaeger", "url": f"http://127.0.0.1:1/trace/{TRACE}", "trace_id": TRACE}
        ],
    }


def _span(event: Json) -> Json:
    return {
        "id": f"{TRACE}/{event['span_id']}",
        "trace_id": TRACE,
        "span_id": event["span_id"],
        "parent_id": "" if event["index"] == 0 else f"{1:016x}",
        "depth": 0 if event["index"] == 0 else 1,
        "name": f"span of {event['name']}",
        "kind": "internal",
        "service": event["service"],
        "start_us": event["at_us"] - 100,
        "duration_us": 900,
        "status": "ok",
        "status_message": "",
        "events": [{"name": event["name"], "at_us": event["at_us"]}],
    }


def break_at(answer: Json, rule: str, detail: str, index: int | None, **changes: Any) -> Json:
    """Break a rule of a valid VM: at an event, or (None) somewhere that `changes` name."""
    [life] = answer["lives"]
    violation = {
        "index": len(life["violations"]),
        "rule": rule,
        "detail": detail,
        "events": [] if index is None else [index],
        "spans": [],
        "missing": [],
    } | changes
    life["violations"].append(violation)
    life["verdict"] = answer["vm"]["verdict"] = "broken"
    answer["vm"]["rules"].append(rule)
    for each in life["rules"]:
        if each["rule"] == rule:
            each["verdict"] = "broken"
            each["violations"].append(violation["index"])
    if index is not None:
        life["events"][index]["broken"].append(violation["index"])
    return answer


def other_aperture(vm_id: str) -> Json:
    """The aperture of the second device, step 9, is at another base."""
    answer = valid(vm_id)
    wrong = answer["lives"][0]["events"][8]["hop"]
    wrong["base"], wrong["size"] = OTHER_BASE, OTHER_SIZE
    wrong["same"] |= {"base": False, "size": False}
    return break_at(answer, "APERTURE_MISMATCH", "device eth0: its aperture is another", 8)


def no_aperture(vm_id: str) -> Json:
    """The second device never gets an aperture."""
    answer = valid(vm_id)
    events = answer["lives"][0]["events"]
    answer["lives"][0]["events"] = [each for each in events if each["index"] != 8]
    missing = [{"event": "ApertureCreated", "party": "device:eth0", "device_id": "eth0"}]
    detail = "device eth0 has a token, and never got its aperture"
    return break_at(answer, "APERTURE_MISSING", detail, None, missing=missing)


def no_parent(vm_id: str) -> Json:
    """A span has a parent that was not recorded: no step is to blame."""
    return break_at(
        valid(vm_id),
        "PARENT_MISSING",
        "a parent was not recorded",
        None,
        spans=[f"{TRACE}/{2:016x}"],
    )


def hostile(vm_id: str) -> Json:
    """Everything that a guest or an exporter may choose has markup in it."""
    answer = valid(vm_id, devices=(HOSTILE,))
    answer["vm"] |= {"kernel": HOSTILE, "kind": HOSTILE, "token": HOSTILE}
    answer["spans"][0] |= {"name": HOSTILE, "service": HOSTILE, "status": "error"}
    answer["spans"][0]["status_message"] = HOSTILE
    answer["lives"][0]["events"][3]["name"] = HOSTILE
    answer["lives"][0]["events"][3]["hop"]["token"] = HOSTILE
    answer["links"] = [{"name": HOSTILE, "url": "javascript:alert(1)", "trace_id": HOSTILE}]
    return break_at(answer, "TOKEN_MISSING", HOSTILE, 3)


def whole_span(trace_id: str, span_id: str) -> Json:
    """All of one span."""
    attributes = [
        {"key": "rpc.method", "value": {"stringValue": "CreateVm"}},
        {"key": HOSTILE, "value": {"stringValue": HOSTILE}},
    ]
    return {
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "owner"}}]},
        "scope": {"name": "porthole", "version": "0.1.0"},
        "span": {
            "traceId": trace_id,
            "spanId": span_id,
            "parentSpanId": "",
            "attributes": attributes,
            "events": [{"name": "VmCreated", "timeUnixNano": "1", "attributes": attributes}],
            "links": [],
        },
    }


def metrics() -> Json:
    """Metrics of a VM and its two devices, ten minutes of them."""
    times = [NOW_MS + 10000 * number for number in range(60)]

    def series(name: str, device: str, unit: str, step: int, **changes: Any) -> Json:
        return {
            "name": name,
            "unit": unit,
            "kind": "counter",
            "description": "",
            "service": "devicehost",
            "device_id": device,
            "class": "virtio-fs" if device else "",
            "tag": device,
            "attributes": {},
            "points": [[at, step * number * (number % 7 + 1)] for number, at in enumerate(times)],
        } | changes

    found = [
        series("porthole.pool.slots_used", "", "{slot}", 5),
        series("porthole.pool.slots_used_high_water", "", "{slot}", 6),
        series("porthole.pool.slots_total", "", "{slot}", 0, points=[[at, 32768] for at in times]),
        series("porthole.unheard_of", "", "By", 1),
    ]
    for device in ("src", "eth0"):
        found += [
            series("porthole.device.bytes_in", device, "By", 1 << 20),
            series("porthole.device.bytes_out", device, "By", 1 << 18),
            series("porthole.device.requests", device, "{request}", 17),
            series("porthole.device.translations_refused", device, "{address}", 0),
            series("porthole.device.windows_mapped", device, "{window}", 3),
            series("porthole.device.highest_slot", device, "{slot}", 4, kind="gauge"),
            series("porthole.device.exhaustions", device, "{episode}", 1),
        ]
    return {"series": found, "series_left_out": 0}


def about() -> Json:
    """What the dashboard is."""
    return {
        "version": "0.1.0",
        "instance": "one",
        "otlp": {"grpc": ["127.0.0.1:14317"], "http": ["http://127.0.0.1:14318"]},
        "token_needed": False,
        "links": ["Jaeger"],
    }
