"""Spans and metrics as lines of OTLP JSON, appended to a file.

Each line is one write with O_APPEND, so that several processes can share a file and no line is
torn.
"""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from services.rpc.otlp_json import to_otlp_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from google.protobuf.message import Message
    from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger(__name__)


class LineFile:
    """A file to which whole lines are appended. Its directory is made if it does not exist.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, request: Message) -> bool:
        """Append one export request; on failure returns False and logs an error."""
        line = json.dumps(to_otlp_json(request), separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            logger.error("telemetry is lost: cannot write %s: %s", self._path, error.strerror)
            return False
        if written != len(line):
            logger.error(
                "telemetry is lost: %s took %d of %d bytes", self._path, written, len(line)
            )
            return False
        return True

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class FileSpanExporter(SpanExporter):
    """Appends every batch of spans as one line."""

    def __init__(self, file: LineFile) -> None:
        self._file = file

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append one line."""
        done = self._file.write(encode_spans(spans))
        return SpanExportResult.SUCCESS if done else SpanExportResult.FAILURE

    def shutdown(self) -> None:
        """Close the file."""
        self._file.close()


class FileMetricExporter(MetricExporter):
    """Appends every collection of metrics as one line."""

    def __init__(self, file: LineFile) -> None:
        super().__init__()
        self._file = file

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **_: Any
    ) -> MetricExportResult:
        """Append one line."""
        done = self._file.write(encode_metrics(metrics_data))
        return MetricExportResult.SUCCESS if done else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Do nothing: every line is written when it is exported."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        """Close the file."""
        self._file.close()
