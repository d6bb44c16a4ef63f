"""The way to a collector: what arrives, what is dropped and counted, and what is waited for."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_CUMULATIVE,
    AGGREGATION_TEMPORALITY_DELTA,
)
from opentelemetry.sdk.trace.export import SpanExportResult

from services.handshake.events import Event
from services.rpc import tracing
from services.rpc.collector import (
    EXPORT_DEADLINE_S,
    FLUSH_S,
    RECENT_FAILURE_S,
    CollectorLink,
    Loss,
    end_within,
    queue_spans,
)
from services.rpc.exporters import Destination, LinkedSpanExporter
from services.rpc.providers import make_providers, metrics_interval_s
from services.rpc.settings import ServiceSettings
from tests.support.collector import Collector, refusing, serving, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    from services.rpc.providers import Providers


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


@pytest.fixture
def link(clock: Clock) -> CollectorLink:
    """A link with room for three spans."""
    return CollectorLink(3, clock)


def yes() -> bool:
    return True


def no() -> bool:
    return False


def lost(link: CollectorLink) -> tuple[int, int]:
    spans = link.losses().spans
    return spans[Loss.QUEUE_FULL], spans[Loss.NOT_DELIVERED]


def test_a_collector_of_which_nothing_is_known_is_worth_waiting_for(link: CollectorLink) -> None:
    assert link.answers()


@pytest.mark.parametrize("send", [CollectorLink.send_metrics, None])
def test_after_a_failure_it_is_not_for_a_while(
    link: CollectorLink, clock: Clock, send: Callable[..., bool] | None
) -> None:
    def export(outcome: Callable[[], bool]) -> None:
        if send is not None:
            send(link, outcome)
        else:
            link.send_spans(0, outcome)

    export(no)
    assert not link.answers()
    clock.now_s += RECENT_FAILURE_S - 1
    assert not link.answers()
    clock.now_s += 1
    assert link.answers()
    export(no)
    export(yes)
    assert link.answers()


def test_while_an_export_has_no_answer_it_is_not(link: CollectorLink, clock: Clock) -> None:
    seen = []

    def send() -> bool:
        seen.append(link.answers())
        clock.now_s += FLUSH_S
        seen.append(link.answers())
        return True

    link.send_metrics(send)
    assert [*seen, link.answers()] == [True, False, True]


def test_a_refusal_of_log_events_says_nothing_of_the_rest(link: CollectorLink) -> None:
    assert link.send_metrics(yes)
    link.send_events(2, no)
    assert link.answers()
    assert (link.losses().events, lost(link)) == (2, (0, 0))


def test_while_log_events_have_no_answer_the_collector_has_none(
    link: CollectorLink, clock: Clock
) -> None:
    answers: list[bool] = []

    def send() -> bool:
        clock.now_s += FLUSH_S
        answers.append(link.answers())
        return True

    link.send_events(1, send)
    assert answers == [False]
    assert link.answers()
    assert not link.losses()


def test_refused_log_events_are_sent_less_and_less_often(link: CollectorLink, clock: Clock) -> None:
    asked: list[float] = []
    began_s = clock.now_s

    def refuse() -> bool:
        asked.append(clock.now_s - began_s)
        return False

    while clock.now_s < began_s + 20_000:
        link.send_events(1, refuse)
        clock.now_s += 10
    assert asked == [0, 30, 90, 210, 450, 930, 1890, 3810, 7410, 11010, 14610, 18210]
    assert link.losses().events == 2000, "those that were not sent are lost too"
    clock.now_s += 3600
    link.send_events(1, yes)
    link.send_events(1, refuse)
    clock.now_s += 30
    link.send_events(1, refuse)
    assert asked[-1] - asked[-2] == 30, "an answer ends that"


def test_a_collector_that_was_given_up_gets_no_log_events(link: CollectorLink) -> None:
    link.abandon()

    def never() -> bool:
        raise AssertionError

    link.send_events(1, never)
    assert link.losses().events == 1


def test_an_export_that_raises_has_failed(link: CollectorLink) -> None:
    def send() -> bool:
        raise ValueError

    assert link.admit_span()
    with pytest.raises(ValueError, match=r"^$"):
        link.send_spans(1, send)
    assert not link.answers()
    assert lost(link) == (0, 1)


def test_spans_wait_until_they_are_sent_and_further_ones_are_dropped(
    link: CollectorLink, caplog: pytest.LogCaptureFixture
) -> None:
    assert [link.admit_span() for _ in range(5)] == [True, True, True, False, False]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert lost(link) == (2, 0)
    assert link.send_spans(2, yes)
    assert [link.admit_span() for _ in range(3)] == [True, True, False]
    assert not link.send_spans(3, no)
    assert lost(link) == (3, 3)


def test_what_waits_when_the_collector_is_given_up_is_lost_and_counted_once(
    link: CollectorLink,
) -> None:
    closed = []
    link.on_abandon(lambda: closed.append("closed"))
    link.admit_span()
    link.admit_span()
    link.abandon()
    link.abandon()
    assert closed == ["closed"]
    assert not link.answers()
    assert lost(link) == (0, 2)
    assert not link.send_spans(2, yes)
    assert lost(link) == (0, 2)
    assert not link.admit_span()
    assert lost(link) == (0, 3)
    assert not link.send_metrics(yes)
    assert link.losses().metric_exports == 1


def test_all_providers_end_at_the_same_time(link: CollectorLink) -> None:
    meeting = threading.Barrier(2)
    met: list[int] = []
    end_within(60, link, [lambda: met.append(meeting.wait()), lambda: met.append(meeting.wait())])
    assert len(met) == 2
    assert link.answers()


def test_a_provider_that_does_not_end_is_given_up_after_the_budget(link: CollectorLink) -> None:
    order = []
    given_up = threading.Event()
    link.on_abandon(given_up.set)

    def end() -> None:
        order.append("ends")
        given_up.wait()
        order.append("given up")

    end_within(0.01, link, [end])
    assert order == ["ends", "given up"]


def test_a_provider_that_ends_never_holds_up_the_process(link: CollectorLink) -> None:
    never = threading.Event()
    end_within(0.01, link, [never.wait])  # the thread is a daemon
    assert not link.answers()
    never.set()


def test_after_a_failure_nothing_is_waited_for(link: CollectorLink) -> None:
    order = []
    link.on_abandon(lambda: order.append("given up"))
    link.send_metrics(no)
    end_within(60, link, [lambda: order.append("ends")])
    assert order == ["given up", "ends"]


def test_a_provider_that_fails_to_end_does_not_stop_the_others(link: CollectorLink) -> None:
    ended = threading.Event()

    def fail() -> None:
        raise OSError

    end_within(60, link, [fail, ended.set])
    assert ended.is_set()


@pytest.mark.parametrize(
    ("text", "spans"), [("7", 7), ("", 2048), ("0", 2048), ("-1", 2048), ("many", 2048)]
)
def test_the_environment_bounds_the_queue(
    monkeypatch: pytest.MonkeyPatch, text: str, spans: int
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", text)
    assert queue_spans() == spans


@pytest.mark.parametrize(("text", "seconds"), [("60000", 60), ("", 10), ("0", 10), ("often", 10)])
def test_the_environment_says_how_often_metrics_are_sent(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", text)
    assert metrics_interval_s() == seconds


@pytest.fixture
def ends_in_bounds() -> Iterator[None]:
    """Fail when the test took as long as one export may: it has waited for an answer."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < EXPORT_DEADLINE_S


def providers_for(run_dir: Path, endpoint: str, is_command: bool = False) -> Providers:
    settings = ServiceSettings(run_dir=run_dir, otlp_endpoint=endpoint)
    made = make_providers("unit", settings, is_command)
    assert made is not None
    return made


def end_a_span(providers: Providers, name: str) -> None:
    providers.tracer_provider.get_tracer("unit").start_span(name).end()


def test_everything_has_arrived_when_telemetry_is_shut_down(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        tracing.setup("unit", ServiceSettings(run_dir=run_dir, otlp_endpoint=endpoint))
        with tracing.operation("CreateVm"):
            tracing.emit(Event("VmCreated"))
        tracing.meter().create_counter("porthole.requests").add(1)
        tracing.shutdown()
    assert collector.spans == ["CreateVm"]
    assert "porthole.requests" in collector.metrics


def test_opentelemetrys_own_variable_names_the_collector(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{endpoint}")
        tracing.setup("unit", ServiceSettings(run_dir=run_dir))
        with tracing.operation("CreateVm"):
            pass
        tracing.shutdown()
    assert collector.spans == ["CreateVm"]


def test_a_protocol_that_is_not_served_is_said(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with refusing() as endpoint:
        providers_for(run_dir, endpoint).end(0)
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf is not served" in caplog.text


def test_a_span_is_sent_while_the_process_works(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        end_a_span(providers, "Early")
        assert collector.asked.wait(60)
        providers.end(60)
    assert collector.spans == ["Early"]


@pytest.mark.usefixtures("ends_in_bounds")
@pytest.mark.parametrize("collector", [refusing, silent])
def test_a_collector_that_does_not_answer_does_not_hold_up_the_end(
    run_dir: Path,
    collector: Callable[[], AbstractContextManager[str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with collector() as endpoint:
        providers = providers_for(run_dir, endpoint)
        end_a_span(providers, "Unheard")
        providers.end(FLUSH_S)
    assert providers.link is not None
    assert lost(providers.link) == (0, 1)
    assert "spans lost: 1 not_delivered" in caplog.text


@pytest.mark.usefixtures("ends_in_bounds")
@pytest.mark.parametrize("budgets", [(0.05,), (60, 0.01)], ids=["service", "command"])
def test_a_collector_that_takes_an_export_and_never_answers_is_given_up(
    run_dir: Path, budgets: tuple[float, ...]
) -> None:
    collector = Collector()
    collector.may_answer.clear()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        end_a_span(providers, "Unheard")
        assert collector.asked.wait(60)
        providers.end(*budgets)
        assert not collector.may_answer.is_set()
        assert providers.link is not None
        assert lost(providers.link) == (0, 1)


def test_a_slow_collector_gets_everything_within_the_budget(run_dir: Path) -> None:
    collector = Collector()
    collector.may_answer.clear()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        end_a_span(providers, "Slow")
        ending = threading.Thread(target=providers.end, args=(60,))
        ending.start()
        assert collector.asked.wait(60)
        assert ending.is_alive()
        collector.may_answer.set()
        ending.join(60)
    assert collector.spans == ["Slow"]


def test_a_command_waits_for_a_collector_that_has_answered_before(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint, is_command=True)
        end_a_span(providers, "Greeting")
        assert providers.link is not None
        while "Greeting" not in collector.spans:
            time.sleep(0.01)
        collector.asked.clear()
        collector.may_answer.clear()
        end_a_span(providers, "Heard")
        ending = threading.Thread(target=providers.end, args=(60, 0.01))
        ending.start()
        assert collector.asked.wait(60)
        ending.join(0.1)
        assert ending.is_alive()
        collector.may_answer.set()
        ending.join(60)
    assert collector.spans == ["Greeting", "Heard"]


def test_after_a_failed_export_nothing_is_sent_at_the_end(run_dir: Path) -> None:
    collector = Collector(fails=True)
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        link = providers.link
        assert link is not None
        end_a_span(providers, "Refused")
        while link.answers():
            time.sleep(0.01)
        end_a_span(providers, "Unheard")
        providers.end(60)
        assert collector.exports == 1
        assert lost(link) == (0, 2)


def test_a_command_knows_whether_its_collector_answers_before_its_span_ends(run_dir: Path) -> None:
    collector = Collector()
    collector.may_answer.clear()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint, is_command=True)
        spans = providers.tracer_provider.get_tracer("unit")
        with spans.start_as_current_span("vm create"), spans.start_as_current_span("CreateVm"):
            assert collector.asked.wait(60)
            assert collector.spans == []
            collector.may_answer.set()
        providers.end(60)
    assert collector.spans == ["CreateVm", "vm create"]
    assert collector.exports == 2, "one greeting, and one for both spans"


def test_a_command_sends_no_metrics(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint, is_command=True)
        providers.meter_provider.get_meter("unit").create_counter("porthole.requests").add(1)
        end_a_span(providers, "CreateVm")
        providers.end(60)
    assert (collector.spans, collector.metrics) == (["CreateVm"], [])


_IMPORTS = """
import sys
from pathlib import Path
from services.rpc.exporters import Destination, LinkedSpanExporter
from services.rpc.providers import make_providers
from services.rpc.settings import ServiceSettings

settings = ServiceSettings(run_dir=Path(sys.argv[1]), otlp_endpoint=sys.argv[2])
providers = make_providers("unit", settings)
tracer = providers.tracer_provider.get_tracer("unit")
with tracer.start_as_current_span("Boot"):
    print("opentelemetry.exporter" in sys.modules)
providers.end(60)
print("opentelemetry.exporter" in sys.modules)
"""


def test_a_service_imports_exporters_when_it_sends(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        done = subprocess.run(
            [sys.executable, "-c", _IMPORTS, run_dir, endpoint], stdout=subprocess.PIPE, check=True
        )
    assert done.stdout.split() == [b"False", b"True"]
    assert collector.spans == ["Boot"]


def test_a_setting_that_no_exporter_takes_loses_spans_and_is_said_once(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zip")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    collector = Collector()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        for _ in range(3):
            end_a_span(providers, "Unheard")
        providers.end(60)
    assert providers.link is not None
    assert lost(providers.link) == (0, 3)
    (said,) = [r.getMessage() for r in caplog.records if "collector gets no" in r.getMessage()]
    assert "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION" in said


def test_what_is_given_up_while_its_exporter_is_made_sends_nothing() -> None:
    link = CollectorLink()
    making, may_be_made = threading.Event(), threading.Event()
    made: list[OTLPSpanExporter] = []

    class Slow(Destination):
        def spans(self) -> OTLPSpanExporter:
            making.set()
            assert may_be_made.wait(60)
            made.append(super().spans())
            return made[0]

    collector = Collector()
    with serving(collector) as endpoint:
        exporter = LinkedSpanExporter(link, Slow(endpoint, True, EXPORT_DEADLINE_S), True)
        exporter.greet()
        assert making.wait(60)
        link.abandon()
        may_be_made.set()
        assert exporter.export(()) is SpanExportResult.FAILURE
        assert made[0].export(()) is SpanExportResult.FAILURE, "it has been shut down"
    assert collector.exports == 0


@pytest.mark.parametrize(
    ("preference", "temporality"),
    [(None, AGGREGATION_TEMPORALITY_CUMULATIVE), ("delta", AGGREGATION_TEMPORALITY_DELTA)],
)
def test_the_preferred_temporality_counts(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    preference: str | None,
    temporality: int,
) -> None:
    if preference is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", preference)
    collector = Collector()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        providers.meter_provider.get_meter("unit").create_counter("porthole.requests").add(1)
        providers.end(60)
    assert collector.temporalities["porthole.requests"] == temporality


def test_losses_are_metrics_once_the_collector_is_back(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "1")
    collector = Collector()
    collector.may_answer.clear()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        end_a_span(providers, "Waits")
        end_a_span(providers, "Dropped")
        collector.may_answer.set()
        providers.end(60)
    assert collector.spans == ["Waits"]
    assert "porthole.telemetry.spans_lost" in collector.metrics


def emit_in_a_span(providers: Providers, name: str, **attributes: str | int) -> None:
    with providers.tracer_provider.get_tracer("unit").start_as_current_span("Span") as span:
        span.add_event(name, attributes)


def test_an_event_of_a_span_is_a_log_event_as_well(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        tracing.setup("unit", ServiceSettings(run_dir=run_dir, otlp_endpoint=endpoint))
        with tracing.operation("CreateVm") as span:
            before_ns = time.time_ns()
            tracing.emit(Event("GuestKernelInfo", {"vm": "a", "swiotlb_base": 1 << 31}))
            after_ns = time.time_ns()
        with tracing.operation("GetVm"):
            pass
        tracing.shutdown()
    (log,) = collector.logs
    context = span.get_span_context()
    assert log.event_name == "GuestKernelInfo"
    assert {a.key: a.value.string_value or a.value.int_value for a in log.attributes} == {
        "vm": "a",
        "swiotlb_base": 1 << 31,
    }
    assert int.from_bytes(log.trace_id, "big") == context.trace_id
    assert int.from_bytes(log.span_id, "big") == context.span_id
    assert before_ns <= log.time_unix_nano == log.observed_time_unix_nano <= after_ns
    assert log.severity_number == 9, "INFO"


def test_spans_without_events_send_no_logs(run_dir: Path) -> None:
    collector = Collector()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        end_a_span(providers, "Quiet")
        providers.end(60)
    assert (collector.spans, collector.log_exports) == (["Quiet"], 0)


def test_log_events_can_be_switched_off(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_LOGS_EXPORTER", "none")
    collector = Collector()
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        emit_in_a_span(providers, "VmCreated")
        providers.end(60)
    assert (collector.spans, collector.log_exports) == (["Span"], 0)


def test_a_collector_that_takes_no_logs_gets_spans_and_is_waited_for(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    collector = Collector(fails_logs=True)
    with serving(collector) as endpoint:
        providers = providers_for(run_dir, endpoint)
        for _ in range(3):
            emit_in_a_span(providers, "VmCreated")
        providers.end(60)
    assert collector.spans == ["Span"] * 3
    assert collector.log_exports == 1, "it is not asked again at once"
    assert providers.link is not None
    assert providers.link.answers(), "it has taken everything else"
    assert lost(providers.link) == (0, 0)
    assert providers.link.losses().events == 3
    assert "porthole.telemetry.log_events_lost" in collector.metrics
