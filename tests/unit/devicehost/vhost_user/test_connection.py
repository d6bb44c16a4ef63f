"""The protocol without any I/O: messages in, commands and replies out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.devicehost.memory import Aperture
from services.devicehost.vhost_user.connection import (
    TRANSPORT_FEATURES,
    Connection,
    Offer,
    protocol_features,
)
from services.devicehost.vhost_user.messages import SHAPES, Command, ProtocolError
from services.handshake.errors import FailedPreconditionError
from services.wire import vhost_user as wire
from services.wire.vhost_user import Header, Request

ALL_FEATURES = protocol_features(keeps_descriptors=True, offers_config=True)
OFFER = Offer(TRANSPORT_FEATURES | 1, ALL_FEATURES, 3, lambda: b"0123456789", max_mem_slots=32)
NEED_REPLY = wire.VERSION | wire.FLAG_NEED_REPLY
SIZES = {
    Request.SET_FEATURES: 8,
    Request.SET_PROTOCOL_FEATURES: 8,
    Request.SET_VRING_NUM: 8,
    Request.SET_VRING_ADDR: 40,
    Request.SET_VRING_BASE: 8,
    Request.GET_VRING_BASE: 8,
    Request.SET_VRING_KICK: 8,
    Request.SET_VRING_CALL: 8,
    Request.SET_VRING_ERR: 8,
    Request.SET_VRING_ENABLE: 8,
    Request.ADD_MEM_REG: 40,
    Request.REM_MEM_REG: 40,
}
NO_PAYLOAD = [
    request
    for request in SHAPES
    if request not in (*SIZES, Request.SET_MEM_TABLE, Request.GET_CONFIG, Request.SET_CONFIG)
]


def send(
    connection: Connection,
    request: int,
    payload: bytes = b"",
    fds: list[int] | None = None,
    flags: int = wire.VERSION,
) -> Command | bytes | None:
    return connection.receive(Header(request, flags, len(payload)), payload, fds or [])


def negotiated(offer: Offer = OFFER) -> Connection:
    connection = Connection(offer)
    send(connection, Request.SET_PROTOCOL_FEATURES, wire.U64.pack(offer.protocol_features))
    return connection


def number(answer: Command | bytes | None) -> int:
    assert isinstance(answer, bytes)
    (value,) = wire.U64.unpack(answer[wire.HEADER_BYTES :])
    assert isinstance(value, int)
    return value


def test_what_is_offered() -> None:
    connection = negotiated()
    assert number(send(connection, Request.GET_FEATURES)) == OFFER.features
    assert number(send(connection, Request.GET_PROTOCOL_FEATURES)) == OFFER.protocol_features
    assert number(send(connection, Request.GET_QUEUE_NUM)) == 3
    assert number(send(connection, Request.GET_MAX_MEM_SLOTS)) == 32


def test_a_device_with_an_aperture_offers_no_memory_slots() -> None:
    features = protocol_features(keeps_descriptors=Aperture.keeps_descriptors, offers_config=True)
    connection = negotiated(Offer(TRANSPORT_FEATURES, features, 1, bytes, max_mem_slots=32))
    with pytest.raises(ProtocolError):
        send(connection, Request.GET_MAX_MEM_SLOTS)


@pytest.mark.parametrize("request_", list(SIZES))
@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_payload_of_the_wrong_length_closes_the_connection(
    request_: Request, off_by: int
) -> None:
    with pytest.raises(ProtocolError) as caught:
        send(negotiated(), request_, bytes(SIZES[request_] + off_by), flags=NEED_REPLY)
    assert caught.value.reason == "MESSAGE_PAYLOAD"


@pytest.mark.parametrize("request_", NO_PAYLOAD)
def test_a_payload_where_none_belongs_closes_the_connection(request_: Request) -> None:
    with pytest.raises(ProtocolError):
        send(negotiated(), request_, b"\0")


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (Request.SET_VRING_KICK, wire.U64.pack(0), []),
        (Request.SET_VRING_KICK, wire.U64.pack(0), [1, 2]),
        (Request.SET_VRING_CALL, wire.U64.pack(wire.VRING_NO_FD), [1]),
        (Request.SET_BACKEND_REQ_FD, b"", []),
        (Request.ADD_MEM_REG, bytes(40), []),
        (Request.ADD_MEM_REG, bytes(40), [1, 2]),
        (Request.REM_MEM_REG, bytes(40), [1, 2]),
        (Request.SET_MEM_TABLE, wire.pack_mem_table([wire.MemRegion(0, 0, 0, 0)]), []),
        (Request.GET_FEATURES, b"", [1]),
        (Request.SET_FEATURES, bytes(8), [1]),
    ],
)
def test_too_many_or_too_few_descriptors_close_the_connection(
    request_: Request, payload: bytes, fds: list[int]
) -> None:
    with pytest.raises(ProtocolError) as caught:
        send(negotiated(), request_, payload, fds)
    assert caught.value.reason == "MESSAGE_DESCRIPTORS"


@pytest.mark.parametrize("flags", [0, 2, 3, wire.VERSION | wire.FLAG_REPLY])
def test_wrong_flags_close_the_connection(flags: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        send(negotiated(), Request.GET_FEATURES, flags=flags)
    assert caught.value.reason == "MESSAGE_FLAGS"


@pytest.mark.parametrize("request_", [0, 6, 26, 31, 39, 44, 0xFFFF_FFFF])
def test_an_unknown_request_is_answered_with_an_error_or_closes_the_connection(
    request_: int,
) -> None:
    connection = negotiated()
    assert number(send(connection, request_, b"whatever", flags=NEED_REPLY)) == 1
    with pytest.raises(ProtocolError) as caught:
        send(connection, request_, b"whatever")
    assert caught.value.reason == "MESSAGE_UNKNOWN"


def test_without_reply_ack_an_error_closes_the_connection() -> None:
    with pytest.raises(ProtocolError):
        send(Connection(OFFER), 44, flags=NEED_REPLY)


def test_features_that_were_not_offered_are_refused() -> None:
    connection = negotiated()
    assert (
        number(send(connection, Request.SET_FEATURES, wire.U64.pack(1 << 34), flags=NEED_REPLY))
        == 1
    )
    with pytest.raises(ProtocolError) as caught:
        send(connection, Request.SET_PROTOCOL_FEATURES, wire.U64.pack(1 << 1))
    assert caught.value.reason == "FEATURE_NOT_OFFERED"
    assert connection.protocol_features == OFFER.protocol_features


@pytest.mark.parametrize(
    "request_",
    [r for r, shape in SHAPES.items() if shape.answers is False and r in SIZES and SIZES[r] == 8],
)
def test_every_queue_index_is_checked(request_: Request) -> None:
    if request_ in (Request.SET_FEATURES, Request.SET_PROTOCOL_FEATURES):
        return
    payload = wire.VringState(3, 0).pack()
    fds = [0] if SHAPES[request_].fds == (0, 1) else []
    answer = send(negotiated(), request_, payload, fds, flags=NEED_REPLY)
    assert number(answer) == 1


def test_a_request_of_a_feature_that_was_not_negotiated_is_refused() -> None:
    connection = Connection(OFFER)
    with pytest.raises(ProtocolError) as caught:
        send(connection, Request.ADD_MEM_REG, bytes(40), [0])
    assert caught.value.reason == "FEATURE_NOT_NEGOTIATED"


def test_queue_num_may_be_asked_with_what_was_only_offered() -> None:
    assert number(send(Connection(OFFER), Request.GET_QUEUE_NUM)) == 3


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [(0, 10, b"0123456789"), (8, 4, b"89\0\0"), (200, 56, bytes(56)), (0, 0, b"")],
)
def test_config_is_read(offset: int, size: int, expected: bytes) -> None:
    asked = wire.Config(offset, size, 0, bytes(size))
    answer = send(negotiated(), Request.GET_CONFIG, asked.pack())
    assert isinstance(answer, bytes)
    assert Header.parse(answer).size == len(asked.pack())
    assert wire.Config.parse(answer[wire.HEADER_BYTES :]) == asked._replace(data=expected)


def test_config_past_its_end_is_answered_with_an_empty_payload() -> None:
    asked = wire.Config(250, 7, 0, bytes(7))
    answer = send(negotiated(), Request.GET_CONFIG, asked.pack())
    assert isinstance(answer, bytes)
    assert Header.parse(answer).size == 0


@pytest.mark.parametrize("payload", [b"\0" * 11, wire.CONFIG.pack(0, 4, 0), bytes(12 + 257)])
def test_config_requests_that_lie_about_their_length_close_the_connection(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        send(negotiated(), Request.GET_CONFIG, payload)


def test_outcomes_are_told_only_to_who_wants_to_know() -> None:
    connection = negotiated()
    quiet = send(connection, Request.SET_VRING_NUM, wire.VringState(0, 8).pack())
    curious = send(
        connection, Request.SET_VRING_NUM, wire.VringState(0, 8).pack(), flags=NEED_REPLY
    )
    assert isinstance(quiet, Command)
    assert isinstance(curious, Command)
    assert connection.answer(quiet, None) is None
    assert number(connection.answer(curious, None)) == 0
    assert number(connection.refusal_reply(curious, FailedPreconditionError("X", "no"))) == 1
    with pytest.raises(ProtocolError, match="no"):
        connection.refusal_reply(quiet, FailedPreconditionError("X", "no"))


@given(
    request=st.integers(0, 50),
    flags=st.integers(0, 15),
    payload=st.binary(max_size=64),
    fds=st.integers(0, 8),
)
def test_whatever_comes_is_a_command_a_reply_or_a_protocol_error(
    request: int, flags: int, payload: bytes, fds: int
) -> None:
    connection = negotiated()
    try:
        answer = send(connection, request, payload, [0] * fds, flags)
    except ProtocolError:
        return
    assert answer is None or isinstance(answer, Command | bytes)
