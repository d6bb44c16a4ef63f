"""What a metric is: its definition, from which its instrument and docs/metrics.md are made.

Owns how a definition becomes an instrument. The definitions themselves stand where their values are
known, each once. Must not know any of them, or where metrics go.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation


class Kind(StrEnum):
    """The kinds of instruments."""

    COUNTER = "counter"
    """A sum that only grows."""
    UP_DOWN_COUNTER = "up-down counter"
    """A sum that also falls; it may be added up over its attributes."""
    GAUGE = "gauge"
    """A value that is not added up."""
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """The definition of a metric.

    Attributes:
        name: Its name.
        kind: Kind of its instrument.
        unit: In UCUM: s, By, 1, or the thing counted in braces.
        description: What it says.
        attributes: Names of all attributes that a value may have.
        bounds: Upper bounds of a histogram's buckets, in its unit.
    """

    name: str
    kind: Kind
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


def counter(meter: Meter, metric: Metric) -> Counter:
    """Return the instrument of a counter that is added to."""
    return meter.create_counter(metric.name, unit=metric.unit, description=metric.description)


def histogram(meter: Meter, metric: Metric) -> Histogram:
    """Return the instrument of a histogram."""
    return meter.create_histogram(
        metric.name,
        unit=metric.unit,
        description=metric.description,
        explicit_bucket_boundaries_advisory=list(metric.bounds),
    )


def observe(meter: Meter, metric: Metric, read: Callable[[], Iterable[Observation]]) -> None:
    """Make the instrument of a metric whose values are read when metrics are exported.

    Args:
        meter: The meter of this process.
        metric: The definition, of any kind but a histogram.
        read: Returns the values; it is called on the exporter's thread.
    """

    def observations(_: CallbackOptions) -> Iterable[Observation]:
        return read()

    create = getattr(meter, _OBSERVED[metric.kind])
    create(metric.name, [observations], unit=metric.unit, description=metric.description)


_OBSERVED: Final = {
    Kind.COUNTER: "create_observable_counter",
    Kind.UP_DOWN_COUNTER: "create_observable_up_down_counter",
    Kind.GAUGE: "create_observable_gauge",
}
