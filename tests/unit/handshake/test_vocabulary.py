"""Capabilities, events and errors: the values that every service shares."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import suppress
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake import errors, events
from services.handshake.capabilities import (
    ComponentVersion,
    GuestCapabilities,
    KernelVersion,
    component_version,
    parse_kernel_release,
)
from services.handshake.errors import InvalidArgumentError, PortholeError
from services.handshake.pool import Gpa, SwiotlbPool
from services.handshake.trace.recorded import Span, TraceEvent
from services.handshake.trace.vocabulary import VOCABULARY

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, PortholeError)
]
POOL = SwiotlbPool(Gpa(0x3C000000), 67108864)


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.18.26.3-microsoft-standard-WSL2", (6, 18, 26)),
        ("5.15.167", (5, 15, 167)),
        ("6.1.0-rc1+\n", (6, 1, 0)),
        ("0.0.0", (0, 0, 0)),
    ],
)
def test_a_kernel_release(release: str, version: tuple[int, int, int]) -> None:
    assert parse_kernel_release(release) == KernelVersion(*version)


@pytest.mark.parametrize(
    "release", ["", "6.18", "6.18.x", "v6.18.26", " 6.18.26", "9" * 5000 + ".1.1"]
)
def test_a_text_that_is_no_kernel_release_is_named(release: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_kernel_release(release)
    assert caught.value.reason == "KERNEL_RELEASE_SYNTAX"
    assert repr(release) in caught.value.message


@pytest.mark.parametrize(
    ("release", "version"),
    [
        ("6.18.26.3-microsoft-standard-WSL2", ComponentVersion((6, 18, 26, 3))),
        ("6.18.26.3-1", ComponentVersion((6, 18, 26, 3), 1)),
        ("6.18.26.3-1-microsoft", ComponentVersion((6, 18, 26, 3), 1)),
        ("1.2.29-0", ComponentVersion((1, 2, 29, 0), 0)),
        ("6.1.0-18-amd64", ComponentVersion((6, 1, 0, 0), 18)),
        ("6.18.0-rc1+\n", ComponentVersion((6, 18, 0, 0))),
        ("6.18.26.3-1.fc42", ComponentVersion((6, 18, 26, 3), 1)),
        ("6.18.26.3-1st", ComponentVersion((6, 18, 26, 3))),
        ("6.18.26.3.7-1", ComponentVersion((6, 18, 26, 3))),
        ("5.15.167", ComponentVersion((5, 15, 167, 0))),
    ],
)
def test_the_whole_version_of_a_component(release: str, version: ComponentVersion) -> None:
    assert component_version(release) == version


@pytest.mark.parametrize("release", ["1.2.3." + "4" * 5000, "1.2.3-" + "4" * 5000, "1.2", ""])
def test_a_text_that_is_no_component_version_is_named(release: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        component_version(release)
    assert caught.value.reason == "KERNEL_RELEASE_SYNTAX"
    assert repr(release) in caught.value.message


@pytest.mark.parametrize(
    ("release", "reaches"),
    [
        ("6.18.26.1-1", False),
        ("6.18.26.2-9", False),
        ("6.18.26.3-0", False),
        ("6.18.26.3-1", True),
        ("6.18.26.3-10", True),
        ("6.18.26.3", True),
        ("6.18.26.10-0", True),
        ("6.18.26", False),
        ("6.18.27", True),
        ("6.9.99.9-9", False),
    ],
)
def test_whole_versions_are_compared(release: str, reaches: bool) -> None:
    assert component_version(release).at_least(component_version("6.18.26.3-1")) is reaches


def test_versions_are_ordered_by_number() -> None:
    assert parse_kernel_release("6.9.30-x") < parse_kernel_release("6.18.26.3-1")
    assert str(KernelVersion(6, 18, 26)) == "6.18.26"


@given(st.text())
def test_any_text_is_a_release_or_refused(release: str) -> None:
    with suppress(InvalidArgumentError):
        assert isinstance(parse_kernel_release(release), KernelVersion)


def test_capabilities_default_to_not_reported() -> None:
    assert GuestCapabilities() == GuestCapabilities(None, "", None)
    assert "pool" in {field.name for field in dataclasses.fields(GuestCapabilities)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_error_is_a_canonical_status(kind: type[PortholeError]) -> None:
    assert kind.kind in grpc.StatusCode.__members__
    error = kind("SOME_REASON", "value 7 is above 5; use less", bound=5)
    assert (error.reason, str(error)) == ("SOME_REASON", "value 7 is above 5; use less")
    assert error.metadata == {"bound": "5"}


def test_only_an_error_that_may_pass_by_itself_is_retryable() -> None:
    retryable = {kind.kind for kind in KINDS if kind.retryable}
    assert retryable == {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}


DEVICE: tuple[str, str, str, str] = ("vm", "id", events.FS, "src")
MADE = [
    events.vm_created("vm", "WSL2", events.Sizing(1 << 30, True, True, None, 0)),
    events.guest_booted("vm", 0),
    events.guest_kernel_info("vm", GuestCapabilities(POOL, "6.1.2"), KernelVersion(6, 1, 2)),
    events.guest_kernel_info("vm", GuestCapabilities(), None),
    events.wslc_read("vm", GuestCapabilities(POOL)),
    events.wslc_apply("vm", 0, 4096, "6.1.2"),
    events.pool_latched("vm", POOL, "swiotlb=0x3c000000,67108864"),
    events.pool_not_as_requested("vm", POOL, 0),
    events.pool_refused("vm", 1, 2, "REASON", "detail"),
    events.kernel_unsupported("vm", "text"),
    events.device_host_unsupported("vm", "text"),
    events.device_added(*DEVICE, "src;vm_id=vm", "swiotlb-token"),
    events.aperture_created(*DEVICE, POOL),
    events.windows_enabled(*DEVICE),
    events.first_request(*DEVICE),
    events.link_changed(*DEVICE, up=False, why="passt has ended"),
    events.device_removed(*DEVICE),
    events.networking_fallback("vm", "nat", "TAP_UNAVAILABLE", "text"),
    events.networking_configured("vm", "nat", "none", ()),
    events.port(events.PORT_MAPPED, "vm", "tcp", "127.0.0.1", 8080, 80),
    events.port(events.PORT_UNMAPPED, "vm", "tcp", "127.0.0.1", 8080, 80),
    events.guest_init_ended("vm", "signal SIGKILL"),
    events.handshake_verdict("vm", events.RUNNING, ()),
    events.vm_terminated("vm"),
]


@pytest.mark.parametrize("event", MADE, ids=lambda event: event.name)
def test_emitted_events_are_those_that_the_checker_demands(event: events.Event) -> None:
    demanded: dict[str, Any] = {events.VM_ID: str, **VOCABULARY[event.name]}
    assert {key: type(value) for key, value in event.attributes.items()} == demanded


def test_the_checker_knows_every_event() -> None:
    assert {event.name for event in MADE} == set(VOCABULARY)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))
def test_numbers_of_events_fit_into_opentelemetry(base: int, size_bytes: int) -> None:
    attributes = events.wslc_apply("vm", base, size_bytes, "").attributes
    for key, value in ((events.POOL_BASE, base), (events.POOL_SIZE_BYTES, size_bytes)):
        shown = attributes[key]
        assert isinstance(shown, int)
        assert shown == min(value, (1 << 63) - 1)


def test_a_version_has_at_most_nine_digits() -> None:
    assert parse_kernel_release("999999999.0.0") == KernelVersion(999999999, 0, 0)
    with pytest.raises(InvalidArgumentError) as caught:
        parse_kernel_release("1000000000.0.0")
    assert caught.value.metadata == {"release": "1000000000.0.0"}


@pytest.mark.parametrize(
    ("version", "seccomp", "shown"),
    [
        (KernelVersion(6, 1, 2), True, [6, 1, 2, True]),
        (KernelVersion(6, 1, 2), False, [6, 1, 2, False]),
        (None, None, [0, 0, 0, False]),
    ],
)
def test_a_report_carries_the_version_and_seccomp(
    version: KernelVersion | None, seccomp: bool | None, shown: list[int]
) -> None:
    capabilities = GuestCapabilities(seccomp_user_notification=seccomp)
    attributes = events.guest_kernel_info("vm", capabilities, version).attributes
    keys = (events.KERNEL_MAJOR, events.KERNEL_MINOR, events.KERNEL_PATCH, events.SECCOMP)
    assert [attributes[key] for key in keys] == shown


def test_an_attribute_that_is_missing_or_of_another_type_is_read_as_nothing() -> None:
    wrong: dict[str, events.Attribute] = {
        events.VM_ID: 7,
        events.POOL_BASE: True,
        events.POOL_SIZE_BYTES: "1",
        events.VIRTIO: 1,
    }
    for attributes in ({}, wrong):
        event = TraceEvent("name", attributes, Span("t", "s"), 1)
        assert (event.vm_id, event.numbers) == ("", (0, 0))
        assert event.truth(events.VIRTIO) is False
