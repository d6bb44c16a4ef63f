"""The load of the dashboard's benchmark is handshakes that are valid."""

from __future__ import annotations

import json

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from bench.dashboard import handshake, renumbered
from services.handshake.trace.checker import verify
from services.handshake.trace.otlp import parse_otlp_lines
from services.rpc.otlp_json import to_otlp_json


def test_every_handshake_is_valid_and_of_a_vm_of_its_own() -> None:
    one = handshake()
    batch = b"".join(renumbered(one, number) for number in range(3))
    request = ExportTraceServiceRequest.FromString(batch)
    verdicts = verify(parse_otlp_lines(json.dumps(to_otlp_json(request)) + "\n", "load"))
    assert [verdict.violations for verdict in verdicts] == [(), (), ()]
    assert len({verdict.vm_id for verdict in verdicts}) == 3
