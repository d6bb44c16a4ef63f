"""Addresses, errors and pauses, without calls; they agree with those of the services."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from porthole.client import AsyncVmOwner, VmOwner, channels
from porthole.client.addresses import target
from porthole.client.attempts import Attempts
from porthole.client.errors import (
    DOMAIN,
    InvalidArgumentError,
    NotFoundError,
    PortholeError,
    UnavailableError,
    error_from,
)
from porthole.client.methods import FINAL, IDEMPOTENT, ONCE, READ_BOOTED, WATCH
from porthole.errors.v1.error_reason_pb2 import ErrorReason
from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake import errors as theirs
from services.rpc import channel as services_channel
from services.rpc import status
from services.rpc.address import numeric, parse_address


def as_services_do(address: str) -> str:
    try:
        return str(numeric(parse_address(address)))
    except theirs.InvalidArgumentError as error:
        return error.reason


def as_clients_do(address: str) -> str:
    try:
        return target(address)
    except InvalidArgumentError as error:
        return error.reason


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("unix:///run/porthole/owner.sock", "unix:/run/porthole/owner.sock"),
        ("unix:/run/porthole/owner.sock", "unix:/run/porthole/owner.sock"),
        ("unix:/run//porthole/./owner.sock", "unix:/run/porthole/owner.sock"),
        ("tcp://127.0.0.1:7777", "127.0.0.1:7777"),
        ("tcp://localhost:7777", "127.0.0.1:7777"),
        ("[::1]:7777", "[::1]:7777"),
        ("dns:///owner.example:7777", "owner.example:7777"),
        ("http://127.0.0.1:7777", "ADDRESS_SYNTAX"),
        ("127.0.0.1", "ADDRESS_SYNTAX"),
        ("127.0.0.1:65536", "ADDRESS_SYNTAX"),
        ("unix:owner.sock", "ADDRESS_SYNTAX"),
        ("unix://host/owner.sock", "ADDRESS_SYNTAX"),
        ("unix:/run/", "ADDRESS_SYNTAX"),
        ("", "ADDRESS_SYNTAX"),
        ("unix:/" + "a" * 106, "unix:/" + "a" * 106),
        ("unix:/" + "a" * 107, "SOCKET_PATH_TOO_LONG"),
    ],
)
def test_an_address_is_what_services_take_it_for(address: str, expected: str) -> None:
    assert as_clients_do(address) == expected
    assert as_services_do(address) == expected


def test_channels_are_set_up_as_those_of_services() -> None:
    assert channels.OPTIONS == services_channel.OPTIONS


@given(st.from_regex(r"\A(unix:|tcp://|dns:|ipv6:)?[a-z0-9/\[\]:.]{0,12}\Z") | st.text(max_size=12))
def test_any_address_is_what_services_take_it_for(address: str) -> None:
    with suppress(UnicodeEncodeError):  # a lone surrogate is no path
        assert as_clients_do(address) == as_services_do(address)


class Failed:
    """A failed call, made up."""

    def __init__(self, code: grpc.StatusCode, *pairs: tuple[str, str | bytes]) -> None:
        self._code = code
        self._pairs = pairs

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return None

    def trailing_metadata(self) -> Any:
        return self._pairs or None


NOT_FOUND = status.status_of(theirs.NotFoundError("VM_NOT_FOUND", "no VM", vm_id="a"))


def test_the_domain_is_that_of_the_services() -> None:
    assert DOMAIN == status.DOMAIN


@pytest.mark.parametrize(
    "details",
    [
        b"\xff\xff",
        NOT_FOUND.SerializeToString().replace(DOMAIN.encode(), b"x" * len(DOMAIN)),
        NOT_FOUND.SerializeToString().replace(b"ErrorInfo", b"RetryInfo"),
        status.status_of(theirs.UnavailableError("VM_NOT_FOUND", "")).SerializeToString(),
        "text",
    ],
    ids=["garbage", "another domain", "another detail", "another status", "text"],
)
def test_details_that_are_not_ours_are_no_reason(details: str | bytes) -> None:
    error = error_from(
        Failed(grpc.StatusCode.NOT_FOUND, ("grpc-status-details-bin", details)), "peer"
    )
    assert (type(error), error.reason) == (NotFoundError, "PEER_FAILED")
    assert error.message == "peer: NOT_FOUND"
    assert error.code is grpc.StatusCode.NOT_FOUND


def test_details_among_other_metadata_are_found() -> None:
    pairs = (("a", "b"), ("grpc-status-details-bin", NOT_FOUND.SerializeToString()))
    error = error_from(Failed(grpc.StatusCode.NOT_FOUND, *pairs), "peer")
    assert (error.reason, error.metadata) == ("VM_NOT_FOUND", {"vm_id": "a"})


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


GONE = UnavailableError("PEER_UNAVAILABLE", "")


@pytest.mark.parametrize(("spread", "factor"), [(1.0, 1.0), (0.0, 0.5)])
def test_pauses_double_up_to_a_bound(spread: float, factor: float) -> None:
    attempts = Attempts(IDEMPOTENT, 60, clock=Clock(), spread=lambda: spread)
    pauses = [attempts.pause_after(GONE) for _ in range(8)]
    assert pauses == [factor * pause for pause in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0)]


def test_no_pause_outlasts_the_deadline() -> None:
    clock = Clock()
    attempts = Attempts(IDEMPOTENT, 1, clock=clock, spread=lambda: 1.0)
    assert attempts.left_s == 1
    clock.now_s += 0.949
    assert attempts.pause_after(GONE) == 0.05
    clock.now_s += 0.5
    assert attempts.pause_after(GONE) is None
    assert attempts.left_s == 0
    attempts.begin_anew()
    assert attempts.left_s == 1
    assert attempts.pause_after(GONE) == 0.05


def test_only_a_lost_answer_of_what_is_safe_has_a_pause() -> None:
    assert Attempts(ONCE).pause_after(GONE) is None
    assert Attempts(IDEMPOTENT).pause_after(NotFoundError("VM_NOT_FOUND", "")) is None
    assert Attempts(IDEMPOTENT).pause_after(PortholeError("PEER_FAILED", "")) is None


def test_the_reasons_that_decide_are_those_of_the_services() -> None:
    assert FINAL | READ_BOOTED.awaited | WATCH.awaited <= set(ErrorReason.keys())


def test_both_clients_have_every_method_with_the_same_parameters() -> None:
    service = vm_owner_pb2.DESCRIPTOR.services_by_name["VmOwner"]
    snake = {re.sub(r"(?<!^)(?=[A-Z])", "_", each.name).lower() for each in service.methods}
    for name in (snake - {"list_vms"}) | {"vms", "play_session", "close"}:
        ours, twin = getattr(VmOwner, name), getattr(AsyncVmOwner, name)
        assert inspect.signature(ours).parameters == inspect.signature(twin).parameters
        assert inspect.getdoc(ours) == inspect.getdoc(twin)
