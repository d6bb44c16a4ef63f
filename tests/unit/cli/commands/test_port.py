from __future__ import annotations

import pytest
import typer

from services.cli.arguments import parse_listening, parse_mapping
from services.cli.tables import listening
from services.cli.views import PortView
from services.handshake.ports import PortKey, PortMapping, PortProtocol

TCP, UDP = PortProtocol.TCP, PortProtocol.UDP


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080:80", PortMapping(PortKey(TCP, "", 8080), 80)),
        ("0:80/tcp", PortMapping(PortKey(TCP, "", 0), 80)),
        ("0.0.0.0:53:5353/udp", PortMapping(PortKey(UDP, "0.0.0.0", 53), 5353)),
        ("[::1]:8080:80", PortMapping(PortKey(TCP, "::1", 8080), 80)),
        ("::1:8080:65535", PortMapping(PortKey(TCP, "::1", 8080), 65535)),
    ],
)
def test_a_mapping(text: str, wanted: PortMapping) -> None:
    assert parse_mapping(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("8080", PortKey(TCP, "", 8080)),
        ("127.0.0.1:8080/udp", PortKey(UDP, "127.0.0.1", 8080)),
        ("[::]:1", PortKey(TCP, "::", 1)),
    ],
)
def test_where_the_host_listens(text: str, wanted: PortKey) -> None:
    assert parse_listening(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "80",
        "8080:",
        "8080:0",
        "8080:65536",
        ":80",
        "-1:80",
        "8080:80/sctp",
        "8080:0000809",
        "8080:\u0661",
    ],
)
def test_what_is_no_mapping_is_quoted(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="'") as refused:
        parse_mapping(text)
    assert repr(text) in refused.value.message


@pytest.mark.parametrize("text", ["", "0", "65536", "http", "80/x", "8080:80", "1" * 5000])
def test_what_is_no_port_of_the_host_is_quoted(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_listening(text)


@pytest.mark.parametrize(
    ("address", "shown"), [("127.0.0.1", "127.0.0.1:8080/tcp"), ("::1", "[::1]:8080/tcp")]
)
def test_what_is_listed_can_be_removed(address: str, shown: str) -> None:
    assert listening(PortView("tcp", address, 8080, 80, "listening")) == shown
    assert parse_listening(shown) == PortKey(TCP, address, 8080)
