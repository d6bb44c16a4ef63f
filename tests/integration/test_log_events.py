"""Every event of a real handshake reaches a collector as a log event too, with the same words."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from opentelemetry.proto.trace.v1.trace_pb2 import TracesData
from porthole.vmowner.v1 import vm_owner_pb2

from services.rpc.otlp_json import from_otlp_json
from tests.support.collector import Collector, serving
from tests.support.house import House

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

Event = tuple[str, str, str, int, tuple[str, ...]]
"""Trace, span, name, time and attributes."""


def words(attributes: Iterator[KeyValue]) -> tuple[str, ...]:
    return tuple(sorted(f"{pair.key}={pair.value}" for pair in attributes))


def span_events(path: Path) -> Iterator[Event]:
    for line in path.read_text().splitlines():
        for of_resource in from_otlp_json(json.loads(line), TracesData()).resource_spans:
            for of_scope in of_resource.scope_spans:
                for span in of_scope.spans:
                    for event in span.events:
                        yield (
                            *(span.trace_id.hex(), span.span_id.hex(), event.name),
                            event.time_unix_nano,
                            words(iter(event.attributes)),
                        )


async def test_events_of_a_handshake_are_log_events_too(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        async with AsyncExitStack() as stack:
            house = House(run_dir, {"PORTHOLE_OTLP_ENDPOINT": endpoint})
            await house.start(stack)
            vm = await house.create(vm_owner_pb2.VM_KIND_WSL2, fixed=True)
            await house.stub.TerminateVm(vm_owner_pb2.TerminateVmRequest(vm_id=vm.vm_id))
            await house.until_no_guests()
    sent = {
        (
            *(log.trace_id.hex(), log.span_id.hex(), log.event_name),
            log.time_unix_nano,
            words(iter(log.attributes)),
        )
        for log in collector.logs
    }
    assert len(sent) == len(collector.logs), "none twice"
    assert sent == set(span_events(house.trace_file))
    assert {name for _, _, name, _, _ in sent} >= {"GuestKernelInfo", "HandshakeVerdict"}
