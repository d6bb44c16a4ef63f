"""docs/metrics.md has every metric of the code, and each is defined once."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docs.document_metrics import SECTIONS, document
from services.rpc import metrics
from services.rpc.metrics import Kind

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "metrics.md"
# UCUM, as far as it is needed here: seconds, bytes, no dimension, and annotations.
UNIT = re.compile(r"s|By|1|\{[a-z]+\}")
DEFINED = [metric for _, listed in SECTIONS.values() for metric in listed]


def calls_in(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call):
            called = node.func
            names.add(called.attr if isinstance(called, ast.Attribute) else ast.unparse(called))
    return names


def test_the_document_is_that_of_the_code() -> None:
    assert document() == DOCUMENT.read_text(), "run `make schemas`"


def test_whoever_defines_a_metric_is_in_the_document() -> None:
    generator = (ROOT / "docs" / "document_metrics.py").read_text()
    imported = {
        f"{node.module}.{name.name}".replace(".", "/") + ".py"
        for node in ast.walk(ast.parse(generator))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    defining = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "services").rglob("*.py")
        if "Metric" in calls_in(file)
    }
    assert defining
    assert defining - imported == set()


def test_instruments_are_made_of_definitions_only() -> None:
    making = {
        file.relative_to(ROOT)
        for file in (ROOT / "services").rglob("*.py")
        if any(
            re.fullmatch(r"create_(observable_\w+|counter|up_down_counter|histogram|gauge)", name)
            for name in calls_in(file)
        )
    }
    assert making == {Path(metrics.__file__).relative_to(ROOT)}


def test_units_are_ucum_and_a_name_means_one_thing() -> None:
    kinds: dict[str, tuple[Kind, str]] = {}
    for metric in DEFINED:
        assert UNIT.fullmatch(metric.unit), metric
        assert bool(metric.bounds) == (metric.kind is Kind.HISTOGRAM), metric
        seen = kinds.setdefault(metric.name, (metric.kind, metric.unit))
        assert seen == (metric.kind, metric.unit), metric


def test_what_operators_ask_for_is_there() -> None:
    """State and kind, outcome and duration, calls, devices, pools, what runs out."""
    asked = {
        "porthole.vm.count",
        "porthole.handshake.duration",
        "porthole.handshake.verdicts",
        "rpc.server.call.duration",
        "rpc.client.call.duration",
        "porthole.device.requests",
        "porthole.device.bytes_in",
        "porthole.device.bytes_out",
        "porthole.device.exhaustions",
        "porthole.pool.slots_used",
        "porthole.pool.slots_used_high_water",
    }
    assert asked - {metric.name for metric in DEFINED} == set()
