"""The API, on a store and a judge in this process."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from services.dashboard.access import COOKIE, Access
from services.dashboard.api.app import Sources, dashboard_app
from services.dashboard.api.feed import READERS, Feed
from services.dashboard.api.page import PageFiles
from services.dashboard.judging import worker
from services.dashboard.otlp import read_points
from services.dashboard.store import Limits, Reader, Writer
from services.handshake.trace.checker import verify
from services.handshake.trace.otlp import parse_otlp_lines
from services.handshake.trace.table import CLAUSES
from tests.support.asgi import Answer, request
from tests.support.handshake_traces import NEW, TOKEN, without, wsl2, wslc
from tests.support.otlp_requests import (
    metrics_document,
    metrics_request,
    spans_of,
    vm_id,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "0123456789abcdef"


class InProcess:
    """The judge, without processes of its own."""

    async def describe(self, vm_id: str, *, settled: bool) -> Any:
        return worker.describe_vm(vm_id, settled=settled)

    async def trace(self, vm_id: str) -> bytes | None:
        return worker.trace_lines(vm_id)


class Api:
    def __init__(self, folder: Path) -> None:
        path = folder / "d.sqlite"
        self.writer = Writer(path, Limits(10**12, 1 << 30))
        self.reader = Reader(path)
        self.feed = Feed()
        self.failing = False
        self.page = folder / "page"
        self.page.mkdir()
        (self.page / "index.html").write_text("<!doctype html>")
        (self.page / "app.js").write_text("export {};")
        self.sources = Sources(
            reader=self.reader,
            describer=InProcess(),
            feed=self.feed,
            has_settled=lambda _: True,
            failing=lambda: self.failing,
            about=lambda: {"version": "v"},
            hello={"version": "v", "instance": "i"},
            links={"Jaeger": "http://j/trace/{trace_id}?vm={vm_id}"},
        )

    def app(self, token: str = "") -> Any:
        return dashboard_app(self.sources, Access(token), PageFiles(self.page))

    def add(self, number: int, steps: Any) -> None:
        self.writer.put_spans(spans_of(steps, number)).result(10)
        judged = worker.judge_vm(vm_id(number), settled=True)
        assert judged is not None
        self.writer.put_judgement(judged.vm_id, judged.judgement, judged.seen).result(10)

    async def get(self, path: str, token: str = "", **headers: str) -> Answer:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await request(self.app(token), path, headers=given)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    made = Api(tmp_path)
    monkeypatch.setattr(worker, "_reader", made.reader)
    yield made
    made.reader.close()
    made.writer.close()


async def test_the_list(api: Api) -> None:
    api.add(1, wsl2())
    api.add(2, without(wslc(), "ApertureCreated"))
    answer = await api.get("/api/v1/vms")
    assert answer.status == 200
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    found = answer.json()
    assert found["counts"] == {
        "valid": 1,
        "broken": 1,
        "open": 0,
        "unstarted": 0,
        "unjudged": 0,
    }
    assert found["next"] is None
    row = dict(found["vms"][0])
    assert row.pop("last_ms") > 1_700_000_000_000
    assert row == {
        "vm_id": vm_id(1),
        "kind": "WSL2",
        "kernel": NEW,
        "verdict": "valid",
        "rules": [],
        "problem": "",
        "token": TOKEN,
        "devices": 3,
        "lives": 1,
        "spans": len(spans_of(wsl2()).spans),
        "services": ["devicehost", "guest-init", "owner"],
        "started_ms": 1000,
        "ended_ms": 17000,
        "latched_us": 3_000_000,
        "revision": 1,
    }
    only = await api.get("/api/v1/vms?verdict=broken&rule=APERTURE_MISSING&kernel=6.")
    assert [vm["vm_id"] for vm in only.json()["vms"]] == [vm_id(2)]


async def test_pages(api: Api) -> None:
    for number in range(3):
        api.add(number, wslc())
    found: list[str] = []
    page: str | None = ""
    for _ in range(3):
        answer = (await api.get(f"/api/v1/vms?limit=1&page={page}")).json()
        found += [vm["vm_id"] for vm in answer["vms"]]
        page = answer["next"]
    assert page is None
    assert found == [vm_id(0), vm_id(1), vm_id(2)]


async def test_one_vm(api: Api) -> None:
    api.add(2, without(wslc(), "ApertureCreated"))
    found = (await api.get(f"/api/v1/vms/{vm_id(2)}")).json()
    assert found["vm"] == (await api.get("/api/v1/vms")).json()["vms"][0]
    assert found["lives"][0]["violations"][0]["rule"] == "APERTURE_MISSING"
    trace_id = f"{3:032x}"
    assert found["links"] == [
        {
            "name": "Jaeger",
            "url": f"http://j/trace/{trace_id}?vm={vm_id(2)}",
            "trace_id": trace_id,
        }
    ]
    assert "trace_ids" not in found


async def test_an_id_of_a_vm_may_have_any_characters(api: Api) -> None:
    strange = "a/b c?\u00e9%<script>"
    [span, *rest] = spans_of(wslc(), 1).spans
    put = [replace(span, vm_ids=(strange,)), *(replace(each, vm_ids=()) for each in rest)]
    spans = replace(spans_of(wslc(), 1), spans=tuple(put))
    api.writer.put_spans(spans).result(10)
    path = f"/api/v1/vms/{quote(strange, safe='')}"
    assert (await api.get(path)).json()["vm"]["vm_id"] == strange
    assert (await api.get(path + "/metrics")).json()["series"] == []
    span_path = f"{path}/spans/{span.trace_id.hex()}/{span.span_id.hex()}"
    assert (await api.get(span_path)).status == 200


async def test_one_span(api: Api) -> None:
    api.add(1, wslc())
    span = (await api.get(f"/api/v1/vms/{vm_id(1)}")).json()["spans"][0]
    found = (await api.get(f"/api/v1/vms/{vm_id(1)}/spans/{span['id']}")).json()
    assert found["span"]["spanId"] == span["span_id"]
    assert found["scope"] == {"name": "porthole"}
    assert found["resource"]["attributes"]


async def test_the_trace_can_be_verified(api: Api) -> None:
    api.add(1, wslc())
    answer = await api.get(f"/api/v1/vms/{vm_id(1)}/trace")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    [verdict] = verify(parse_otlp_lines(answer.body.decode(), "t"))
    assert (verdict.vm_id, verdict.violations) == (vm_id(1), ())


async def test_metrics(api: Api) -> None:
    api.add(1, wslc())
    body = metrics_request(
        metrics_document(1, [(10, 5), (20, float("inf"))], attributes={"x": "y"}, kind="gauge")
    )
    api.writer.put_points(read_points(body, as_json=False)).result(10)
    found = (await api.get(f"/api/v1/vms/{vm_id(1)}/metrics?name=porthole&since=1&until=21")).json()
    assert found == {
        "series": [
            {
                "name": "porthole.device.bytes",
                "unit": "By",
                "kind": "gauge",
                "description": "bytes",
                "service": "devicehost",
                "device_id": "d",
                "class": "",
                "tag": "",
                "attributes": {"x": "y"},
                "points": [[10, 5], [20, None]],
            }
        ],
        "series_left_out": 0,
    }


async def test_choices_rules_and_about(api: Api) -> None:
    api.add(2, without(wslc(), "ApertureCreated"))
    found = (await api.get("/api/v1/filters")).json()
    assert (found["kinds"], found["kernels"]) == (["WSLC"], [NEW])
    assert [(rule["rule"], rule["vms"]) for rule in found["rules"]] == [("APERTURE_MISSING", 1)]
    rules = (await api.get("/api/v1/rules")).json()["rules"]
    assert [rule["rule"] for rule in rules] == [clause.rule for clause in CLAUSES]
    about = (await api.get("/api/v1/about")).json()
    assert about["version"] == "v"
    assert about["used_bytes"] > 0


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/api/v1/vms?verdict=x", 400, "PARAMETER_INVALID"),
        ("/api/v1/vms?x=1", 400, "PARAMETER_UNKNOWN"),
        ("/api/v1/vms?page=x", 400, "PAGE_SYNTAX"),
        ("/api/v1/filters?x=1", 400, "PARAMETER_UNKNOWN"),
        ("/api/v1/vms/nobody", 404, "VM_NOT_FOUND"),
        ("/api/v1/vms/nobody/trace", 404, "VM_NOT_FOUND"),
        ("/api/v1/vms/nobody/metrics", 404, "VM_NOT_FOUND"),
        ("/api/v1/vms/nobody/spans/00/00", 404, "SPAN_NOT_FOUND"),
        (f"/api/v1/vms/nobody/spans/{'a' * 32}/{'b' * 16}", 404, "SPAN_NOT_FOUND"),
        ("/api/v1/nothing", 404, "PATH_NOT_FOUND"),
        ("/nothing", 404, "PATH_NOT_FOUND"),
    ],
)
async def test_the_status_of_an_error(api: Api, path: str, status: int, reason: str) -> None:
    answer = await api.get(path)
    assert (answer.status, answer.reason) == (status, reason)


async def test_a_method_that_is_not_allowed(api: Api) -> None:
    answer = await request(api.app(), "/api/v1/vms", method="POST")
    assert (answer.status, answer.reason) == (405, "METHOD_NOT_ALLOWED")


async def test_the_page(api: Api) -> None:
    for path in ("/", "/vm/any/thing"):
        answer = await api.get(path)
        assert (answer.status, answer.body) == (200, b"<!doctype html>")
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
    script = await api.get("/page/app.js")
    assert script.headers["content-type"].startswith("text/javascript")
    again = await api.get("/page/app.js", if_none_match=script.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    for path in ("/page/nothing.js", "/page/../api/app.py", "/page/%2e%2e/settings.py", "/page/"):
        assert (await api.get(path)).status == 404


async def test_a_browser_keeps_files_until_one_of_them_changes(api: Api) -> None:
    (api.page / "index.html").write_text('<script src="/page/app.js"></script>')
    [before] = re.findall(r'src="(/page/[0-9a-f]{16}/app\.js)"', (await api.get("/")).body.decode())
    assert "no-cache" in (await api.get("/")).headers["cache-control"]
    kept = await api.get(before)
    assert "immutable" in kept.headers["cache-control"]
    assert (await api.get("/page/app.js")).body == kept.body
    (api.page / "app.js").write_text("other")
    assert (await api.get(before)).status == 404
    [after] = re.findall(r'src="(/page/[0-9a-f]{16}/app\.js)"', (await api.get("/")).body.decode())
    assert after != before
    assert (await api.get(after)).body == b"other"


async def test_another_name_is_refused(api: Api) -> None:
    for path in ("/", "/api/v1/vms", "/page/app.js"):
        answer = await api.get(path, host="evil.example")
        assert (answer.status, answer.reason) == (403, "HOST_UNKNOWN")


async def test_the_token(api: Api) -> None:
    for path in ("/api/v1/vms", "/api/v1/events", "/api/v1/nothing", "/api/"):
        answer = await api.get(path, SECRET)
        assert (answer.status, answer.reason) == (401, "ACCESS_TOKEN_MISSING")
    # The page asks its reader for the token.
    assert (await api.get("/", SECRET)).status == 200
    assert (await api.get("/vm/a", SECRET, cookie=f"{COOKIE}=stale-0123456789")).status == 200
    bearer = await api.get("/api/v1/vms", SECRET, authorization=f"Bearer {SECRET}")
    assert bearer.status == 200
    opened = await api.get(f"/?token={SECRET}", SECRET, host="dashboard.example")
    assert (opened.status, opened.headers["location"]) == (303, "/")
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    shown = await api.get("/", SECRET, cookie=cookie.partition(";")[0])
    assert shown.status == 200
    deep = await api.get(f"/vm/a?x=1&token={SECRET}&y=%26", SECRET)
    assert deep.headers["location"] == "/vm/a?x=1&y=%26"
    assert (await api.get("/?token=wrong", SECRET)).reason == "ACCESS_TOKEN_WRONG"


async def test_a_redirect_stays_on_this_dashboard(api: Api) -> None:
    for path in ("//evil.example/", "/%5Cevil.example/", "/%5c/evil.example", "///evil.example"):
        opened = await api.get(f"{path}?token={SECRET}", SECRET)
        place = opened.headers["location"]
        assert (opened.status, place[0]) == (303, "/")
        # A browser reads two of these as the beginning of another host.
        assert place[1] not in "/\\"


async def test_health_needs_nothing(api: Api) -> None:
    assert (await api.get("/healthz", SECRET, host="x.example")).json() == {"status": "ok"}
    api.failing = True
    assert (await api.get("/healthz")).status == 503


async def test_events_are_bounded(api: Api) -> None:
    for _ in range(READERS):
        await anext(aiter(api.feed.read({}, again=False)))
    api.feed._readers.update(object() for _ in range(READERS))  # type: ignore[misc]
    answer = await api.get("/api/v1/events")
    assert (answer.status, answer.reason) == (503, "STREAMS_EXHAUSTED")
    assert answer.headers["retry-after"] == "2"


async def test_text_of_a_guest_is_data(api: Api) -> None:
    api.add(1, wslc())
    answer = await api.get(f"/api/v1/vms/{vm_id(1)}")
    assert answer.headers["content-type"] == "application/json"
    json.loads(answer.body)
