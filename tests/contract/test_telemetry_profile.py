"""The files of the telemetry profile fit each other, the cluster and the metrics that there are.

The images cannot be fetched here, so what reads these files is not run, but for Prometheus
(tests/integration/test_telemetry_profile.py).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from docs.document_metrics import SECTIONS
from services.rpc.metrics import Kind
from tests.support.prometheus_names import metric_names, prometheus_name, series_names
from tests.support.telemetry_profile import (
    DASHBOARDS,
    DEPLOY,
    TELEMETRY,
    alerts,
    queries,
    read,
)

SCHEMA = json.loads(Path(__file__).with_name("grafana_dashboard.schema.json").read_text())
COLLECTOR = read(TELEMETRY / "collector.yaml")
JAEGER = read(TELEMETRY / "jaeger.yaml")
PROMETHEUS = read(TELEMETRY / "prometheus.yml")
CLUSTER = read(DEPLOY / "compose.yaml")
PROFILE = read(DEPLOY / "compose.telemetry.yaml")
SOURCES = read(TELEMETRY / "grafana/provisioning/datasources/porthole.yaml")["datasources"]

EXPORTED = series_names(metric for _, listed in SECTIONS.values() for metric in listed)
# What Prometheus itself says of a target.
OF_PROMETHEUS = {"up"}

# The components that we know, of contrib 0.160 and Jaeger 2.21.
KNOWN = {
    "receivers": {"otlp"},
    "processors": {"memory_limiter", "batch"},
    "exporters": {"otlp_grpc", "prometheus", "jaeger_storage_exporter"},
    "extensions": {"jaeger_storage", "jaeger_query"},
}
SECTIONS_OF_A_COLLECTOR = {*KNOWN, "service"}
SENDERS = {"guest", "devicehost", "vm_owner", "handshake"}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_of_grafana(dashboard: Path) -> None:
    document = json.loads(dashboard.read_text())
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs), panel["title"]
    used = set(re.findall(r"\$(?!__)(\w+)", dashboard.read_text()))
    assert used - {"defs"} == {variable["name"] for variable in document["templating"]["list"]}


def test_there_are_two_dashboards_with_pages_of_their_own() -> None:
    assert [path.stem for path in DASHBOARDS] == ["devices", "handshakes"]
    assert len({json.loads(path.read_text())["uid"] for path in DASHBOARDS}) == 2


def test_dashboards_ask_data_sources_that_are_provisioned() -> None:
    provisioned = {(source["type"], source["uid"]) for source in SOURCES}
    asked = {
        (found["type"], found["uid"])
        for path in DASHBOARDS
        for found in _all(json.loads(path.read_text()), "datasource")
    }
    assert asked == {("prometheus", "prometheus")}
    assert asked <= provisioned


@pytest.mark.parametrize(
    "expression",
    [*(query.expression for query in queries()), *alerts().values()],
    ids=[*(f"{query.dashboard}-{query.panel}" for query in queries()), *alerts()],
)
def test_only_metrics_that_exist_are_asked_for(expression: str) -> None:
    names = metric_names(expression)
    assert names
    assert names - EXPORTED - OF_PROMETHEUS == set()


def test_labels_are_attributes_of_the_metrics() -> None:
    attributes = {
        re.sub(r"\W", "_", attribute)
        for _, listed in SECTIONS.values()
        for metric in listed
        for attribute in metric.attributes
    }
    expressions = [*(query.expression for query in queries()), *alerts().values()]
    labels = {
        label
        for expression in expressions
        for listed in re.findall(r"\bby \(([^)]*)\)", expression)
        for label in listed.split(", ")
    } | {
        label for expression in expressions for label in re.findall(r'(\w+)(?:=|!=)~?"', expression)
    }
    assert labels - attributes == {"job", "le"}


def test_the_names_in_an_expression() -> None:
    expression = """histogram_quantile(0.95, sum by (le, kind) (rate(a_b_bucket{x="c_d"}[5m])))
      / on (kind) group_left (tag) e_total offset 10m > 0 or absent(f:g) unless h_i"""
    assert metric_names(expression) == {"a_b_bucket", "e_total", "f:g", "h_i"}


@pytest.mark.parametrize(
    ("name", "unit", "kind", "translated"),
    [
        ("porthole.device.requests", "{request}", Kind.COUNTER, "porthole_device_requests_total"),
        # The unit is in the name already.
        ("porthole.device.bytes_in", "By", Kind.COUNTER, "porthole_device_bytes_in_total"),
        ("porthole.disk.read", "By", Kind.COUNTER, "porthole_disk_read_bytes_total"),
        ("porthole.device.bound_used", "{item}", Kind.GAUGE, "porthole_device_bound_used"),
        ("porthole.device.fill", "1", Kind.GAUGE, "porthole_device_fill_ratio"),
        ("porthole.device.odd", "1", Kind.COUNTER, "porthole_device_odd_total"),
        ("porthole.vm.count", "{vm}", Kind.UP_DOWN_COUNTER, "porthole_vm_count"),
        ("rpc.server.call.duration", "s", Kind.HISTOGRAM, "rpc_server_call_duration_seconds"),
    ],
)
def test_names_are_translated_as_the_collector_does(
    name: str, unit: str, kind: Kind, translated: str
) -> None:
    assert prometheus_name(name, unit, kind) == translated


@pytest.mark.parametrize("configuration", [COLLECTOR, JAEGER], ids=["collector", "jaeger"])
def test_what_a_pipeline_names_is_defined_known_and_used(configuration: Any) -> None:
    assert set(configuration) <= SECTIONS_OF_A_COLLECTOR
    service = configuration["service"]
    assert set(service) <= {"extensions", "pipelines"}
    used: dict[str, set[str]] = {kind: set() for kind in KNOWN}
    used["extensions"] = set(service.get("extensions", []))
    for name, pipeline in service["pipelines"].items():
        assert name in {"traces", "metrics", "logs"}
        assert set(pipeline) == {"receivers", "processors", "exporters"}
        for kind, components in pipeline.items():
            used[kind] |= set(components)
    for kind, known in KNOWN.items():
        defined = set(configuration.get(kind, {}))
        assert used[kind] == defined, kind
        assert {name.partition("/")[0] for name in defined} <= known, kind


def test_jaeger_reads_where_it_writes() -> None:
    [storage] = JAEGER["extensions"]["jaeger_storage"]["backends"]
    assert JAEGER["extensions"]["jaeger_query"]["storage"]["traces"] == storage
    assert JAEGER["exporters"]["jaeger_storage_exporter"]["trace_storage"] == storage


def test_addresses_are_those_where_others_listen() -> None:
    receiver = COLLECTOR["receivers"]["otlp"]["protocols"]["grpc"]
    assert receiver["transport"] == "unix"
    for name in SENDERS:
        sent = PROFILE["services"][name]["environment"]["PORTHOLE_OTLP_ENDPOINT"]
        assert sent == f"unix:{receiver['endpoint']}"
    assert PROFILE["services"]["collector_socket"]["command"] == ["rm", "-f", receiver["endpoint"]]
    # Where the senders of the cluster reach the dashboard without the profile.
    direct = CLUSTER["services"]["vm_owner"]["environment"]["PORTHOLE_OTLP_ENDPOINT"]
    exporters = COLLECTOR["exporters"]
    assert exporters["otlp_grpc/dashboard"]["endpoint"] == direct.replace("unix:", "unix://")
    jaeger = JAEGER["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    assert exporters["otlp_grpc/jaeger"]["endpoint"] == jaeger.replace("0.0.0.0", "jaeger")
    [job] = PROMETHEUS["scrape_configs"]
    scraped = exporters["prometheus"]["endpoint"].replace("0.0.0.0", "collector")
    assert job["static_configs"] == [{"targets": [scraped]}]
    page = JAEGER["extensions"]["jaeger_query"]["http"]["endpoint"].replace("0.0.0.0", "jaeger")
    urls = {source["type"]: source["url"] for source in SOURCES}
    assert urls == {"jaeger": f"http://{page}", "prometheus": "http://prometheus:9090"}
    for name, port in (("jaeger", 16686), ("prometheus", 9090), ("grafana", 3000)):
        [published] = PROFILE["services"][name]["ports"]
        assert re.fullmatch(
            rf"127\.0\.0\.1:\$\{{PORTHOLE_{name.upper()}_PORT:-{port}\}}:{port}", published
        )
    link = PROFILE["services"]["dashboard"]["environment"]["PORTHOLE_DASHBOARD_TRACE_LINK"]
    assert link == "Jaeger=http://127.0.0.1:${PORTHOLE_JAEGER_PORT:-16686}/trace/{trace_id}"


def test_a_service_gets_what_its_configuration_needs() -> None:
    assert {"guest", "devicehost", "vm_owner", "handshake"} <= set(CLUSTER["services"])
    volumes = {*CLUSTER["volumes"], *PROFILE["volumes"]}
    for name, service in PROFILE["services"].items():
        if name not in CLUSTER["services"]:
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
            assert re.fullmatch(r"porthole/dashboard|[a-z/-]+:v?\d+\.\d+\.\d+", service["image"])
        for mounted in service.get("volumes", []):
            source, target, *mode = mounted.split(":")
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), mounted
                assert mode == ["ro"], mounted
            else:
                assert source in volumes, mounted
            assert target.startswith("/"), mounted
        for network in service.get("networks", []):
            assert network in PROFILE["networks"], name
        for needed in service.get("depends_on", {}):
            assert needed in {*CLUSTER["services"], *PROFILE["services"]}, name
    # Files that are named in a command or a configuration are mounted there.
    for name, file in (("collector", "collector.yaml"), ("jaeger", "jaeger.yaml")):
        service = PROFILE["services"][name]
        assert service["command"] == [f"--config=/etc/porthole/{file}"]
        assert f"./telemetry/{file}:/etc/porthole/{file}:ro" in service["volumes"]
    mounts = PROFILE["services"]["prometheus"]["volumes"]
    assert (
        "--config.file=/etc/porthole/prometheus.yml" in PROFILE["services"]["prometheus"]["command"]
    )
    for file in ("prometheus.yml", *PROMETHEUS["rule_files"]):
        assert f"./telemetry/{file}:/etc/porthole/{file}:ro" in mounts
    [provider] = read(TELEMETRY / "grafana/provisioning/dashboards/porthole.yaml")["providers"]
    assert (
        f"./telemetry/grafana/dashboards:{provider['options']['path']}:ro"
        in (PROFILE["services"]["grafana"]["volumes"])
    )


def test_only_the_collector_can_put_a_socket_where_services_send() -> None:
    """The guest, which is not trusted, has the directory read-only, as without the profile."""
    writing = {
        name
        for name, service in PROFILE["services"].items()
        if any(
            mounted.startswith("telemetry:") and not mounted.endswith(":ro")
            for mounted in service.get("volumes", [])
        )
    }
    assert writing == {"collector", "collector_socket"}
    assert PROFILE["services"]["collector"]["networks"] == ["telemetry"]
    assert PROFILE["networks"]["telemetry"] == {"internal": True}


def test_each_alert_has_a_line_that_says_what_to_do_and_a_test() -> None:
    document = (DEPLOY.parent / "docs" / "telemetry.md").read_text()
    [group] = read(TELEMETRY / "alerts.yml")["groups"]
    tested = {
        check["alertname"]
        for test in read(TELEMETRY / "alerts_test.yml")["tests"]
        for check in test["alert_rule_test"]
        if check["exp_alerts"]
    }
    assert tested == set(alerts())
    for rule in group["rules"]:
        assert f"### {rule['alert']}\n" in document
        assert rule["annotations"]["runbook"] == f"docs/telemetry.md#{rule['alert'].lower()}"


def _all(document: Any, key: str) -> list[Any]:
    """Return every value of a member, at any depth."""
    if isinstance(document, list):
        return [found for item in document for found in _all(item, key)]
    if not isinstance(document, dict):
        return []
    return [value for name, value in document.items() if name == key] + [
        found for value in document.values() for found in _all(value, key)
    ]
