"""The names of metrics in Prometheus, as the Collector's exporter translates them, and its page.

Owns the rules of that translation (strategy UnderscoreEscapingWithSuffixes) and of the text that is
scraped, as far as our units and instruments need them. Must not know which metrics there are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from services.rpc.metrics import Kind, Metric

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_UNITS: Final = {"s": "seconds", "By": "bytes", "1": ""}

_TEXT: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
_SELECTOR: Final = re.compile(r"\{[^}]*\}|\[[^]]*\]")
_LABELS: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_NAME: Final = re.compile(r"(?<![\w.:$])[a-zA-Z_:][\w:]*(?!\s*\()(?![\w:])")
_WORDS: Final = frozenset({"and", "or", "unless", "offset", "bool", "inf", "nan"})


def metric_names(expression: str) -> set[str]:
    """Return the names of the metrics in a PromQL expression."""
    left = _LABELS.sub(" ", _SELECTOR.sub(" ", _TEXT.sub(" ", expression)))
    return {name for name in _NAME.findall(left) if name.lower() not in _WORDS}


def prometheus_name(name: str, unit: str, kind: Kind) -> str:
    """Return the name of a metric, which for a histogram has a further suffix for each series."""
    parts = re.findall(r"[a-zA-Z0-9:]+", name)
    suffix = "" if unit.startswith("{") else _UNITS[unit]
    if suffix and suffix not in parts:
        parts.append(suffix)
    if kind is Kind.COUNTER:
        parts = [*(part for part in parts if part != "total"), "total"]
    if unit == "1" and kind is Kind.GAUGE:
        parts = [*(part for part in parts if part != "ratio"), "ratio"]
    return "_".join(parts)


def series_names(metrics: Iterable[Metric]) -> set[str]:
    """Return the names of all series of these metrics."""
    names = set()
    for metric in metrics:
        name = prometheus_name(metric.name, metric.unit, metric.kind)
        if metric.kind is Kind.HISTOGRAM:
            names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
        else:
            names.add(name)
    return names


def kind_of(metric: Any) -> Kind:
    """Return the kind of the instrument of an exported metric, a value of its OTLP JSON."""
    if "histogram" in metric:
        return Kind.HISTOGRAM
    if "gauge" in metric:
        return Kind.GAUGE
    return Kind.COUNTER if metric["sum"].get("isMonotonic") else Kind.UP_DOWN_COUNTER


def page(exports: Iterable[Any]) -> str:
    """Return the text that is scraped: the last value of each series.

    Args:
        exports: Export requests of metrics, as values of their OTLP JSON, oldest first.
    """
    values: dict[str, str] = {}
    for export in exports:
        for resource in export["resourceMetrics"]:
            of_process = _attributes(resource["resource"])
            labels = {
                "job": f"{of_process['service.namespace']}/{of_process['service.name']}",
                "instance": of_process["service.instance.id"],
            }
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    values |= dict(_series(metric, labels))
    return "".join(f"{series} {value}\n" for series, value in values.items())


def _series(metric: Any, labels: dict[str, str]) -> Iterator[tuple[str, str]]:
    kind = kind_of(metric)
    name = prometheus_name(metric["name"], metric["unit"], kind)
    data = metric.get("sum") or metric.get("gauge") or metric.get("histogram")
    for point in data["dataPoints"]:
        own = {re.sub(r"\W", "_", key): value for key, value in _attributes(point).items()}
        if kind is not Kind.HISTOGRAM:
            yield _line(name, labels | own), str(point.get("asInt", point.get("asDouble")))
            continue
        total = 0
        for bound, count in zip(
            [*point["explicitBounds"], "+Inf"], point["bucketCounts"], strict=True
        ):
            total += int(count)
            yield _line(f"{name}_bucket", labels | own | {"le": str(bound)}), str(total)
        yield _line(f"{name}_sum", labels | own), str(point["sum"])
        yield _line(f"{name}_count", labels | own), str(point["count"])


def _attributes(owner: Any) -> dict[str, str]:
    return {
        item["key"]: str(next(iter(item["value"].values()))) for item in owner.get("attributes", [])
    }


def _line(name: str, labels: dict[str, str]) -> str:
    quoted = (
        f'{key}="{value}"'
        for key, value in sorted(
            (key, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n"))
            for key, value in labels.items()
        )
    )
    return f"{name}{{{','.join(quoted)}}}"
