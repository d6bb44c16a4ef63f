"""The addresses of traces: from what people copy out of a browser to what a query API answers.

Owns the paths of Jaeger, Tempo and the dashboard. Must not know HTTP, or what an answer holds.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from services.handshake.errors import InvalidArgumentError

_TRACE_ID: Final = re.compile(r"[0-9a-fA-F]{1,32}")

_JAEGER_PAGE: Final = re.compile(r"(?P<base>.*)/trace/(?P<id>[0-9a-fA-F]{1,32})/?")
_DASHBOARD_PAGE: Final = re.compile(r"(?P<base>.*)/vm/(?P<id>[^/.]+)/?")

_UNADJUSTED: Final = "raw=true"
"""Jaeger moves the times of spans to what it thinks the clocks of hosts were, unless asked not to.
Tempo ignores it."""


def is_url(text: str) -> bool:
    """Return whether an input is a URL and no file."""
    return bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text))


def query_url(text: str, trace_id: str = "") -> str:
    """Return the URL that answers with a trace.

    Args:
        text: One of: the page of a trace in Jaeger (`…/trace/ID`), the page of a VM in the
            dashboard (`…/vm/ID`), the base of Jaeger or Tempo with `trace_id`, any other URL.
        trace_id: The trace, in hexadecimal; empty: the URL names what it is about.

    Raises:
        InvalidArgumentError: INPUT_URL when it is none, names no trace, or has a password.
    """
    try:
        url = urlsplit(text)
        _ = url.port
    except ValueError as error:
        raise _refusal(text, str(error)) from None
    if url.scheme.lower() not in ("http", "https") or not url.hostname:
        raise _refusal(text, "only http:// and https:// with a host are read")
    if url.username is not None or url.password is not None:
        raise _refusal(
            url._replace(netloc=url.netloc.rpartition("@")[2]).geturl(),
            "a password in an address shows up in logs; use PORTHOLE_TRACE_TOKEN",
        )
    if any(char <= " " or char == "\x7f" for char in text) or not text.isascii():
        raise _refusal(text, "blanks and others than ASCII have to be percent-encoded")
    if trace_id:
        if not _TRACE_ID.fullmatch(trace_id):
            raise _refusal(trace_id, "a trace id has at most 32 hexadecimal digits")
        return _api(url, f"{url.path.rstrip('/')}/api/traces/{trace_id.lower()}", _UNADJUSTED)
    if page := _JAEGER_PAGE.fullmatch(url.path):
        return _api(url, f"{page['base']}/api/traces/{page['id']}", _UNADJUSTED)
    if url.path.strip("/") == "":
        raise _refusal(text, "it names no trace; add --trace-id, or the path of a trace")
    if "/api/" not in url.path and (page := _DASHBOARD_PAGE.fullmatch(url.path)):
        return _api(url, f"{page['base']}/api/v1/vms/{page['id']}/trace", "")
    return url._replace(fragment="").geturl()


def _api(url: SplitResult, path: str, query: str) -> str:
    return url._replace(path=path, query=query, fragment="").geturl()


def _refusal(text: str, why: str) -> InvalidArgumentError:
    return InvalidArgumentError("INPUT_URL", f"{text}: {why}", url=text)
