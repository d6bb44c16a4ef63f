"""Downloads over HTTP: at most so many bytes, and for at most so long.

Owns what a server may make this command do: nothing but to read an answer. A redirect is followed
within the same server only, so no answer leads to another protocol or host, and no token goes
there. Must not know what is in an answer.
"""

from __future__ import annotations

import http.client
import queue
import threading
import time
import urllib.request
from typing import IO, TYPE_CHECKING, Final
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from services.handshake.errors import InvalidArgumentError, NotFoundError, UnavailableError
from services.rpc import inputs

if TYPE_CHECKING:
    from http.client import HTTPMessage

_CHUNK_BYTES: Final = 1 << 20
_LONGEST_REASON: Final = 200
"""Most characters of a server's text that an error shows."""


def download(url: str, limit_bytes: int, remedy: str, token: str = "") -> bytes:
    """Return the body of a URL's answer.

    Proxies are those of the environment (http_proxy, https_proxy, no_proxy).

    Args:
        url: An http or https URL.
        limit_bytes: Most bytes that it may have.
        remedy: The advice for one that is longer.
        token: Bearer token for the server; empty: none.

    Raises:
        UnavailableError: INPUT_UNREACHABLE: nobody answers, or with another status than 200.
        NotFoundError: TRACE_NOT_FOUND: the status is 404.
        InvalidArgumentError: INPUT_TOO_LARGE, or INPUT_TOO_SLOW after inputs.TIME_LIMIT_S.
    """
    # On a thread, because no time-out of a socket bounds the look-up of a name and slow headers.
    done: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    deadline_s = time.monotonic() + inputs.TIME_LIMIT_S
    received = bytearray()

    def work() -> None:
        try:
            _receive(url, limit_bytes, remedy, token, received, deadline_s)
            done.put(bytes(received))
        except Exception as error:
            done.put(_explained(url, error, len(received)))

    threading.Thread(target=work, name="download", daemon=True).start()
    try:
        result = done.get(timeout=inputs.TIME_LIMIT_S)
    except queue.Empty:
        raise inputs.too_slow(url, len(received)) from None
    if isinstance(result, Exception):
        raise result
    return result


def _receive(
    url: str, limit_bytes: int, remedy: str, token: str, received: bytearray, deadline_s: float
) -> None:
    # The opener knows HTTP only.
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    left_s = max(0.001, deadline_s - time.monotonic())
    with _opener().open(request, timeout=left_s) as answer:
        while chunk := answer.read1(_CHUNK_BYTES):
            received += chunk
            if len(received) > limit_bytes:
                raise inputs.too_large(url, limit_bytes, remedy)
            if time.monotonic() > deadline_s:
                raise TimeoutError
        if answer.length:  # announced, and not sent
            raise http.client.IncompleteRead(b"", answer.length)


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens URLs of HTTP; urllib's own would also open files, FTP and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameServer(),
    ):
        opener.add_handler(handler)
    return opener


class _SameServer(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme, host and port, at most three in a row."""

    max_redirections = 3
    max_repeats = 2

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the next request; an error names where else the redirect leads."""
        old, new = urlsplit(req.full_url), urlsplit(urljoin(req.full_url, newurl))
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            fp.close()
            raise UnavailableError(
                "INPUT_UNREACHABLE",
                f"{req.full_url}: the server redirects to {_short(newurl)}; if that has the trace, "
                "give it in place of this",
                url=req.full_url,
            )
        followed = super().redirect_request(req, fp, code, msg, headers, newurl)
        if followed is not None and (token := req.get_header("Authorization")):
            followed.add_unredirected_header("Authorization", token)
        return followed


def _explained(url: str, error: Exception, received_bytes: int) -> Exception:
    """Return the error for people; what is none of a network stays as it is."""
    match error:
        case HTTPError(code=404):
            return NotFoundError(
                "TRACE_NOT_FOUND",
                f"{url}: the server has no such trace ({_status(error)}); it may not have arrived "
                "yet, or its time there is over",
                url=url,
            )
        case HTTPError():
            return _unreachable(url, f"the server answers with {_status(error)}")
        case TimeoutError() | URLError(reason=TimeoutError()):
            return inputs.too_slow(url, received_bytes)
        case InvalidArgumentError() | UnavailableError():
            return error
        case URLError():
            return _unreachable(url, str(error.reason))
        case http.client.IncompleteRead():
            return _unreachable(url, f"the answer ends after {received_bytes} bytes, too early")
        case OSError() | http.client.HTTPException() | ValueError():
            return _unreachable(url, f"{type(error).__name__}: {error}")
    return error


def _status(error: HTTPError) -> str:
    with error:
        try:
            body = error.read(_LONGEST_REASON).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            body = ""
    said = " ".join(body.split())
    return f"{error.code} {error.reason}" + (f": {said}" if said else "")


def _unreachable(url: str, why: str) -> UnavailableError:
    return UnavailableError("INPUT_UNREACHABLE", f"{url}: {_short(why)}", url=url)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
