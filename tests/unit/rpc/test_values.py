"""Values at the edge: addresses, conversions, statuses that a peer made up."""

from __future__ import annotations

from contextlib import suppress

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from porthole.handshake.v1 import device_pb2
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities as Message

from services.handshake import events
from services.handshake.capabilities import GuestCapabilities
from services.handshake.errors import InvalidArgumentError, NotFoundError, PortholeError
from services.handshake.pool import Gpa, SwiotlbPool
from services.rpc.address import parse_address, require_local
from services.rpc.convert import (
    capabilities_to_proto,
    device_class_from_proto,
    device_class_to_proto,
    device_state_from_proto,
    device_state_to_proto,
    duration_to_proto,
    timeout_from_proto,
)
from services.rpc.status import DETAILS_KEY, DOMAIN, error_from_rpc, status_of

u64 = st.integers(1, (1 << 64) - 1)
pools = st.builds(SwiotlbPool, st.builds(Gpa, u64), u64)


@pytest.mark.parametrize(
    "text", ["unix:/run/porthole/owner.sock", "127.0.0.1:0", "[::1]:65535", "owner.example:4317"]
)
def test_an_address_is_read_back(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("unix:///run/owner.sock", "unix:/run/owner.sock"),
        ("tcp://127.0.0.1:7000", "127.0.0.1:7000"),
        ("tcp://[::1]:7000", "[::1]:7000"),
        ("dns:///owner.example:7000", "owner.example:7000"),
        ("dns:owner.example:7000", "owner.example:7000"),
        ("ipv4:127.0.0.1:7000", "127.0.0.1:7000"),
        ("ipv6:[::1]:7000", "[::1]:7000"),
        ("dns:7000", "dns:7000"),
    ],
)
def test_a_url_is_an_address(url: str, text: str) -> None:
    assert str(parse_address(url)) == text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.9", "[::1]", "localhost"])
def test_an_address_on_loopback_is_local(host: str) -> None:
    require_local(parse_address(f"{host}:7000"))


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "[::]",
        "10.0.0.1",
        "128.0.0.1",
        "[::ffff:10.0.0.1]",
        "[fe80::1]",
        "127.1",
        "0",
        "localhost.example",
        "owner.example",
    ],
)
def test_any_other_host_is_not_local(host: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        require_local(parse_address(f"{host}:7000"))
    assert caught.value.reason == "ADDRESS_NOT_LOOPBACK"
    for fact in (f"{host}:7000", "127.0.0.0/8", "[::1]", "listen on 127.0.0.1:7000"):
        assert fact in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix:relative",
        "unix:/dir/",
        "/path",
        "host",
        "host:",
        ":1",
        "h:65536",
        "a b:1",
        "unix://host/path",
        "unix:///",
        "unix:////path",
        "tcp:host:1",
        "tcp://host",
        "tcp://host:1/",
        "tcp://user@host:1",
        "http://host:1",
    ],
)
def test_a_text_that_is_no_address(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_address(text)
    assert caught.value.reason == "ADDRESS_SYNTAX"
    assert repr(text) in caught.value.message


def test_the_limit_of_a_socket_path_is_in_bytes() -> None:
    parse_address("unix:/" + "a" * 106)
    with pytest.raises(InvalidArgumentError, match="has 108 bytes"):
        parse_address("unix:/" + "a" * 107)
    with pytest.raises(InvalidArgumentError, match="has 121 bytes"):
        parse_address("unix:/" + "ä" * 60)


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    with suppress(InvalidArgumentError):
        assert parse_address(text)


@given(st.builds(GuestCapabilities, st.none() | pools, st.text(), st.none() | st.booleans()))
def test_capabilities_on_the_wire(capabilities: GuestCapabilities) -> None:
    message = Message.FromString(capabilities_to_proto(capabilities).SerializeToString())
    pool = message.swiotlb_pool
    seccomp = message.seccomp_user_notification
    assert message.HasField("swiotlb_pool") == (capabilities.pool is not None)
    assert (
        GuestCapabilities(
            SwiotlbPool(Gpa(pool.base), pool.size_bytes)
            if message.HasField("swiotlb_pool")
            else None,
            message.kernel_release,
            seccomp if message.HasField("seccomp_user_notification") else None,
        )
        == capabilities
    )


@pytest.mark.parametrize("name", [events.FS, events.NET])
def test_device_classes(name: str) -> None:
    assert device_class_from_proto(device_class_to_proto(name)) == name


@pytest.mark.parametrize("value", [0, 99])
def test_an_unknown_device_class_lists_the_known_ones(value: int) -> None:
    with pytest.raises(InvalidArgumentError, match=r"virtio-fs \(1\), virtio-net \(2\)") as caught:
        device_class_from_proto(value)
    assert caught.value.reason == "DEVICE_CLASS_UNKNOWN"


@pytest.mark.parametrize("number", device_pb2.DeviceState.values())
def test_device_states(number: int) -> None:
    assert device_state_to_proto(device_state_from_proto(number)) == number


def test_a_device_state_of_the_future() -> None:
    assert device_state_from_proto(99) == "unspecified"


@given(st.floats(0, 3600))
def test_durations(seconds: float) -> None:
    assert timeout_from_proto(duration_to_proto(seconds)) == pytest.approx(seconds, abs=1e-9)


@pytest.mark.parametrize(
    "duration", [Duration(seconds=-1), Duration(nanos=-1), Duration(seconds=3600, nanos=1)]
)
def test_a_timeout_that_makes_no_sense(duration: Duration) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        timeout_from_proto(duration)
    assert caught.value.reason == "TIMEOUT_RANGE"


def failure(code: grpc.StatusCode, details: bytes | None, text: str = "t") -> PortholeError:
    trailing = grpc.aio.Metadata(*([(DETAILS_KEY, details)] if details is not None else []))
    return error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, text))


def test_an_error_keeps_kind_reason_and_metadata() -> None:
    status = status_of(NotFoundError("VM_UNKNOWN", "t", vm_id="7"))
    error = failure(grpc.StatusCode.NOT_FOUND, status.SerializeToString())
    assert isinstance(error, NotFoundError)
    assert (error.reason, error.metadata) == ("VM_UNKNOWN", {"vm_id": "7"})


def _foreign(domain: str, **metadata: str) -> bytes:
    status = status_pb2.Status(code=5, message="t")
    info = error_details_pb2.ErrorInfo(reason="R", domain=domain, metadata=metadata)
    status.details.add().Pack(info)
    return bytes(status.SerializeToString())


@pytest.mark.parametrize(
    "details",
    [
        None,
        b"",
        b"\xff\xff",
        _foreign("example.com"),
        status_pb2.Status(code=3, message="t").SerializeToString(),
        status_pb2.Status(code=5, message="other").SerializeToString(),
        status_pb2.Status(
            code=5,
            message="t",
            details=[
                AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")
            ],
        ).SerializeToString(),
    ],
)
def test_a_peer_that_contradicts_itself_is_still_an_error_of_its_code(
    details: bytes | None,
) -> None:
    error = failure(grpc.StatusCode.NOT_FOUND, details)
    assert isinstance(error, NotFoundError)
    assert error.reason == "PEER_FAILED"


def test_metadata_of_a_peer_cannot_stand_in_for_arguments() -> None:
    error = failure(grpc.StatusCode.NOT_FOUND, _foreign(DOMAIN, reason="X", message="Y"))
    assert (error.reason, error.message) == ("R", "t")
    assert error.metadata == {"reason": "X", "message": "Y"}


@given(st.text(), st.dictionaries(st.text(max_size=9), st.text(), max_size=30))
def test_whatever_an_error_quotes_fits_into_trailing_metadata(
    message: str, metadata: dict[str, str]
) -> None:
    error = InvalidArgumentError("REASON", message)
    error.metadata = metadata
    assert len(status_of(error).SerializeToString()) < 4096


def test_text_that_is_no_utf8_is_written_out() -> None:
    status = status_of(InvalidArgumentError("REASON", "name '\udcff'", name="\udcff"))
    assert status.message == "name '\\udcff'"
