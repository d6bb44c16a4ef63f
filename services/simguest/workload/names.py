"""Asking name servers for the addresses of a name (RFC 1035).

Owns the queries and answers of one stub resolver, over UDP: A, then AAAA, of one server after the
other. It runs in the network namespace of its thread. Must not know who wants the name.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import secrets
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_TIMEOUT_S: Final = 10.0

_PORT: Final = 53
_HEADER: Final = struct.Struct("!6H")
_QUESTION: Final = struct.Struct("!HH")
_RECORD: Final = struct.Struct("!HHIH")
_RECURSION_DESIRED: Final = 0x0100
_RESPONSE: Final = 0x8000
_RCODE: Final = 0x000F
_A: Final = 1
_AAAA: Final = 28
_IN: Final = 1
_POINTER: Final = 0xC0
"""The bits of a length that say that the rest of the name is elsewhere (section 4.1.4)."""
_MESSAGE_BYTES: Final = 65535
_NAME_BYTES: Final = 253
_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)


def resolve(name: str, servers: Sequence[str], timeout_s: float) -> list[str]:
    """Return the addresses of a name, those of IPv4 first.

    Args:
        name: A domain name; an address is its own.
        servers: Addresses of name servers, which are asked in this order until one answers.
        timeout_s: How long to wait for each answer, in seconds; 0 means 10 s.

    Raises:
        InvalidArgumentError: NAME_INVALID.
        UnavailableError: NAME_UNRESOLVED.
    """
    with contextlib.suppress(ValueError):
        return [str(ipaddress.ip_address(name))]
    if not _NAME.fullmatch(name) or len(name) > _NAME_BYTES:
        raise InvalidArgumentError(
            "NAME_INVALID",
            f"{name!r} is not the name of a host, which has at most {_NAME_BYTES} characters",
            name=name,
        )
    why = "the guest was told of no name server"
    for server in servers:
        try:
            found = [
                address
                for kind in (_A, _AAAA)
                for address in _ask(server, name, kind, timeout_s or DEFAULT_TIMEOUT_S)
            ]
        except (OSError, ValueError) as error:
            why = f"name server {server}: {error or 'no answer'}"
            continue
        if found:
            return found
        why = f"name server {server} knows no address of it"
        break
    raise UnavailableError("NAME_UNRESOLVED", f"{name} is not resolved: {why}", name=name)


def _ask(server: str, name: str, kind: int, timeout_s: float) -> list[str]:
    """Ask for the records of one kind.

    Raises:
        OSError: The server does not answer in time, or cannot be reached.
        ValueError: It answers with an error, or with what is no answer.
    """
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    number = secrets.randbelow(1 << 16)
    labels = name.rstrip(".").encode().split(b".")
    question = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    question += _QUESTION.pack(kind, _IN)
    limit = time.monotonic() + timeout_s
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect((server, _PORT))
        asking.send(_HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + question)
        while (left := limit - time.monotonic()) > 0:
            asking.settimeout(left)
            message = asking.recv(_MESSAGE_BYTES)
            if message[:2] == number.to_bytes(2, "big"):
                return _addresses(message, question, kind)
    raise TimeoutError(f"no answer within {timeout_s:g} s")


def _addresses(message: bytes, question: bytes, kind: int) -> list[str]:
    """Return the addresses in an answer, also those of a name that stands for the one asked for.

    Raises:
        ValueError: It is no answer to the question, or says that there is an error.
    """
    found = []
    try:
        _, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
        at = _HEADER.size + len(question)
        asked = message[_HEADER.size : at]
        if not flags & _RESPONSE or questions != 1 or asked.lower() != question.lower():
            raise ValueError("it answers another question")
        if flags & _RCODE:
            raise ValueError(f"error {flags & _RCODE} (RFC 1035, section 4.1.1)")
        for _ in range(answers):
            at = _after_name(message, at)
            its_kind, its_class, _, length = _RECORD.unpack_from(message, at)
            at += _RECORD.size
            data = message[at : at + length]
            at += length
            if (its_kind, its_class) == (kind, _IN):
                # ip_address refuses every other length.
                found.append(str(ipaddress.ip_address(data)))
    except (struct.error, IndexError) as error:
        raise ValueError("its answer ends too early") from error
    return found


def _after_name(message: bytes, at: int) -> int:
    while (length := message[at]) != 0:
        if length & _POINTER:
            return at + 2
        at += 1 + length
    return at + 1
