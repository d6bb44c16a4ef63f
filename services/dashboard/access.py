"""Who may ask: the token, and the names under which this machine's own programs ask.

A listener that others reach needs a token. One on loopback needs none, but a page of another site
may have its name resolve to loopback, so the name in the request must be one of loopback's. Must
not know HTTP or gRPC servers.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final

from services.handshake.errors import PortholeError
from services.rpc.address import TcpAddress, parse_address

if TYPE_CHECKING:
    from collections.abc import Mapping

COOKIE: Final = "porthole_dashboard"
"""The cookie that has the token, for the page."""

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~-]{16,256}")
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_BEARER: Final = "bearer "


def is_token(text: str) -> bool:
    """Return whether a text can be a token: long, and the same in an address and in a cookie."""
    return _TOKEN.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not answered.

    Attributes:
        status: Status of HTTP.
        reason: Machine-readable reason.
        message: One sentence.
    """

    status: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask.

    Attributes:
        token: What every request has to have; empty: none.
    """

    token: str = ""

    def refusal(self, headers: Mapping[str, str], given: str = "") -> Refusal | None:
        """Return why a request is refused; None: it is not.

        Args:
            headers: Its headers or metadata, with names in lower case.
            given: A token that is in its address.
        """
        if not self.token:
            return self._name_refusal(headers.get("host", ""))
        shown = [given, _bearer(headers), _cookie(headers)]
        if any(self._is_token(each) for each in shown):
            return None
        if any(shown):
            return Refusal(401, "ACCESS_TOKEN_WRONG", "the token is not that of this dashboard")
        return Refusal(
            401,
            "ACCESS_TOKEN_MISSING",
            "send the header 'Authorization: Bearer TOKEN', or open /?token=",
        )

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.token.encode())

    def _name_refusal(self, host: str) -> Refusal | None:
        # A Unix socket has no name; curl and others send "localhost", or what they were told.
        name = host.rpartition(":")[0] if _has_port(host) else host
        if not host or name.lower() in _LOOPBACK_NAMES or _is_loopback(name):
            return None
        return Refusal(
            403,
            "HOST_UNKNOWN",
            "the name in the request is none of this machine's own; ask for 127.0.0.1, or start "
            "the dashboard with a token",
        )


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and not host.endswith("]")


def _is_loopback(name: str) -> bool:
    try:
        address = parse_address(f"{name}:0")
    except PortholeError:
        return False
    return isinstance(address, TcpAddress) and address.is_loopback


def _bearer(headers: Mapping[str, str]) -> str:
    value = headers.get("authorization", "")
    return value[len(_BEARER) :].strip() if value.lower().startswith(_BEARER) else ""


def _cookie(headers: Mapping[str, str]) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""
