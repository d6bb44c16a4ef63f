from __future__ import annotations

import pytest
import typer

from services.cli.commands.port import parse_listening, parse_mapping
from services.cli.requests import PortRequest
from services.cli.tables import listening
from services.cli.views import PortView


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("8080:80", PortRequest("tcp", "", 8080, 80)),
        ("0:80/tcp", PortRequest("tcp", "", 0, 80)),
        ("0.0.0.0:53:5353/udp", PortRequest("udp", "0.0.0.0", 53, 5353)),
        ("[::1]:8080:80", PortRequest("tcp", "::1", 8080, 80)),
        ("::1:8080:65535", PortRequest("tcp", "::1", 8080, 65535)),
    ],
)
def test_a_mapping(text: str, request_: PortRequest) -> None:
    assert parse_mapping(text) == request_


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("8080", PortRequest("tcp", "", 8080)),
        ("127.0.0.1:8080/udp", PortRequest("udp", "127.0.0.1", 8080)),
        ("[::]:1", PortRequest("tcp", "::", 1)),
    ],
)
def test_where_the_host_listens(text: str, request_: PortRequest) -> None:
    assert parse_listening(text) == request_


@pytest.mark.parametrize(
    "text", ["80", "8080:", "8080:0", "8080:65536", ":80", "-1:80", "8080:80/sctp", "8080:\u0661"]
)
def test_what_is_no_mapping_is_quoted(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="'") as refused:
        parse_mapping(text)
    assert repr(text) in refused.value.message


@pytest.mark.parametrize("text", ["", "0", "65536", "http", "80/x", "1" * 5000])
def test_what_is_no_port_of_the_host_is_quoted(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_listening(text)


@pytest.mark.parametrize(
    ("address", "shown"), [("127.0.0.1", "127.0.0.1:8080/tcp"), ("::1", "[::1]:8080/tcp")]
)
def test_what_is_listed_can_be_removed(address: str, shown: str) -> None:
    assert listening(PortView("tcp", address, 8080, 80, "listening")) == shown
    assert parse_listening(shown) == PortRequest("tcp", address, 8080)
