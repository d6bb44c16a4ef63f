"""The application: paths, and what answers them.

Owns the statuses of errors, and the headers of all answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from services.dashboard.access import COOKIE
from services.dashboard.api import parameters
from services.dashboard.api.documents import links, metrics_document, row_document
from services.dashboard.api.page import INDEX, PageFiles
from services.dashboard.judging.details import rules_table
from services.dashboard.otlp import span_document
from services.handshake.errors import InvalidArgumentError, NotFoundError, PortholeError
from services.handshake.trace.table import RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from services.dashboard.access import Access
    from services.dashboard.api.feed import Feed
    from services.dashboard.records import VmRow
    from services.dashboard.store import Reader

logger = logging.getLogger(__name__)

RETRY_S: Final = 2
"""Time after which a refused reader may try again."""

HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of all answers. There is none that lets pages of other sites read one."""

_OPEN_PATHS: Final = frozenset({"/healthz"})
_STATUSES: Final = (
    (InvalidArgumentError, 400),
    (NotFoundError, 404),
    (PortholeError, 503),
)
_TRACE_ID_BYTES: Final = 16
_SPAN_ID_BYTES: Final = 8


class Describer(Protocol):
    """What computes the details of a VM: the judging processes."""

    async def describe(self, vm_id: str, *, settled: bool) -> tuple[VmRow, dict[str, Any]] | None:
        """Return the row and the details of a VM; None: it is not known."""

    async def trace(self, vm_id: str) -> bytes | None:
        """Return all spans of a VM as lines of OTLP JSON; None: it is not known."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where answers come from.

    Attributes:
        reader: The store.
        describer: The judging processes.
        feed: The changes.
        has_settled: Whether no span of a VM has come for a while.
        failing: Whether nothing can be written at the moment.
        about: What `/about` says, but for `used_bytes`.
        hello: The first event of each stream.
        links: Addresses of traces elsewhere, by name.
    """

    reader: Reader
    describer: Describer
    feed: Feed
    has_settled: Callable[[str], bool]
    failing: Callable[[], bool]
    about: Callable[[], dict[str, Any]]
    hello: Mapping[str, str]
    links: Mapping[str, str]


class Guarded:
    """An application whose API needs access, and whose answers have HEADERS."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refusal(Request(scope))
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if request.url.path in _OPEN_PATHS:
            return None
        given = request.query_params.get("token", "")
        of_api = request.url.path.startswith("/api/")
        refusal = self._access.refusal(request.headers, given)
        if refusal is not None:
            if refusal.status == 401 and not given and not of_api:
                return None  # the page has nothing to hide, and a field for the token
            headers = {"www-authenticate": "Bearer"} if refusal.status == 401 else {}
            return _error(refusal.status, refusal.reason, refusal.message, headers)
        if given and self._access.token and not of_api:
            # The token leaves the address, which browsers keep. Two slashes would begin a host.
            others = [pair for pair in request.query_params.multi_items() if pair[0] != "token"]
            path = "/" + request.url.path.lstrip("/\\")
            answer = RedirectResponse(f"{path}?{urlencode(others)}" if others else path, 303)
            answer.set_cookie(COOKIE, given, httponly=True, samesite="strict", path="/")
            return answer
        return None


def dashboard_app(sources: Sources, access: Access, page: PageFiles) -> ASGIApp:
    """Return the application.

    Args:
        sources: Where answers come from.
        access: Who may ask.
        page: The files of the page.
    """
    api = _Api(sources)

    async def index(request: Request) -> Response:
        return page.answer(INDEX, request)

    async def file(request: Request) -> Response:
        return page.answer(request.path_params["name"], request)

    app = Starlette(
        routes=[
            Route("/", index),
            Route("/vm/{vm_id:path}", index),
            Route("/page/{name:path}", file),
            Route("/healthz", api.health),
            Mount("/api/v1", routes=api.routes()),
        ],
        exception_handlers={
            PortholeError: _porthole_error,
            HTTPException: _http_error,
            sqlite3.Error: _database_error,
            Exception: _other_error,
        },
    )
    return Guarded(app, access)


class _Api:
    """What is below /api/v1."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._reader = sources.reader

    def routes(self) -> list[Route]:
        """Return the paths. The id of a VM may have slashes, so the longest paths come first."""
        return [
            Route("/vms", self.vms),
            Route("/vms/{vm_id:path}/spans/{trace_id}/{span_id}", self.span),
            Route("/vms/{vm_id:path}/trace", self.trace),
            Route("/vms/{vm_id:path}/metrics", self.metrics),
            Route("/vms/{vm_id:path}", self.vm),
            Route("/filters", self.filters),
            Route("/rules", self.rules),
            Route("/events", self.events),
            Route("/about", self.about),
        ]

    async def vms(self, request: Request) -> Response:
        """The list."""
        page = await asyncio.to_thread(
            self._reader.list_vms, parameters.filters(request.query_params)
        )
        return JSONResponse(
            {
                "vms": [row_document(row) for row in page.rows],
                "next": parameters.page_text(page.after) if page.after else None,
                "counts": page.counts,
            }
        )

    async def vm(self, request: Request) -> Response:
        """One VM."""
        parameters.check_names(request.query_params, ())
        vm_id = request.path_params["vm_id"]
        found = await self._sources.describer.describe(
            vm_id, settled=self._sources.has_settled(vm_id)
        )
        if found is None:
            raise _no_vm(vm_id)
        row, details = found
        trace_ids = details.pop("trace_ids")
        return JSONResponse(
            {
                "vm": row_document(row),
                **details,
                "links": links(self._sources.links, vm_id, trace_ids),
            }
        )

    async def span(self, request: Request) -> Response:
        """All of one span."""
        parameters.check_names(request.query_params, ())
        vm_id = request.path_params["vm_id"]
        trace_id = parameters.id_bytes(request.path_params["trace_id"], _TRACE_ID_BYTES)
        span_id = parameters.id_bytes(request.path_params["span_id"], _SPAN_ID_BYTES)
        found = None
        if trace_id is not None and span_id is not None:
            found = await asyncio.to_thread(self._reader.span, vm_id, trace_id, span_id)
        if found is None:
            raise NotFoundError("SPAN_NOT_FOUND", "this VM has no such span")
        document = span_document(found.source_body, found.body)
        [scope_spans] = document["scopeSpans"]
        return JSONResponse(
            {
                "resource": document.get("resource", {}),
                "scope": scope_spans.get("scope", {}),
                "span": scope_spans["spans"][0],
            }
        )

    async def trace(self, request: Request) -> Response:
        """All spans, as lines."""
        parameters.check_names(request.query_params, ())
        vm_id = request.path_params["vm_id"]
        lines = await self._sources.describer.trace(vm_id)
        if lines is None:
            raise _no_vm(vm_id)
        return Response(lines, media_type="application/x-ndjson")

    async def metrics(self, request: Request) -> Response:
        """The metrics of a VM."""
        given = request.query_params
        parameters.check_names(given, ("since", "until", "name", "points"))
        vm_id = request.path_params["vm_id"]
        times = parameters.time_ms(given, "since"), parameters.time_ms(given, "until")
        name = parameters.text_of(given, "name")
        points = parameters.number(given, "points", parameters.POINTS)

        def read() -> bytes | None:
            if self._reader.row(vm_id) is None:
                return None
            document = metrics_document(self._reader, vm_id, name, times, points)
            return json.dumps(document, allow_nan=False).encode()

        body = await asyncio.to_thread(read)
        if body is None:
            raise _no_vm(vm_id)
        return Response(body, media_type="application/json")

    async def filters(self, request: Request) -> Response:
        """What is worth choosing."""
        parameters.check_names(request.query_params, ())
        kinds, kernels, rules = await asyncio.to_thread(self._reader.choices)
        return JSONResponse(
            {
                "kinds": kinds,
                "kernels": kernels,
                "rules": [
                    {
                        "rule": rule,
                        "section": RULES[rule].section,
                        "says": RULES[rule].says,
                        "vms": number,
                    }
                    for rule, number in rules
                    if rule in RULES  # an older dashboard may have written others
                ],
            }
        )

    async def rules(self, request: Request) -> Response:
        """The checker's table."""
        parameters.check_names(request.query_params, ())
        return JSONResponse({"rules": rules_table()})

    async def events(self, request: Request) -> Response:
        """The stream of changes."""
        parameters.check_names(request.query_params, ())
        again = "last-event-id" in request.headers
        return StreamingResponse(
            self._sources.feed.read(dict(self._sources.hello), again=again),
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
            media_type="text/event-stream",
        )

    async def about(self, request: Request) -> Response:
        """This dashboard."""
        parameters.check_names(request.query_params, ())
        used = await asyncio.to_thread(self._reader.used_bytes)
        return JSONResponse({**self._sources.about(), "used_bytes": used})

    async def health(self, _request: Request) -> Response:
        """Whether it works."""
        if self._sources.failing():
            return JSONResponse({"status": "failing"}, 503)
        return JSONResponse({"status": "ok"})


def _no_vm(vm_id: str) -> NotFoundError:
    return NotFoundError("VM_NOT_FOUND", f"no span of VM {vm_id!r} is kept", vm_id=vm_id)


def _error(
    status: int, reason: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    given = dict(headers or {})
    if status == 503:
        given["retry-after"] = str(RETRY_S)
    return JSONResponse({"error": {"reason": reason, "message": message}}, status, given)


async def _porthole_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, PortholeError):
        raise error
    status = next(status for kind, status in _STATUSES if isinstance(error, kind))
    return _error(status, error.reason, error.message)


async def _http_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    reason = "PATH_NOT_FOUND" if error.status_code == 404 else "METHOD_NOT_ALLOWED"
    return _error(error.status_code, reason, error.detail, error.headers)


async def _database_error(request: Request, error: Exception) -> Response:
    logger.error("%s: %s", request.url.path, error)
    return _error(503, "DATABASE_BUSY", "the dashboard cannot read its file at the moment")


async def _other_error(request: Request, error: Exception) -> Response:
    logger.error("%s failed", request.url.path, exc_info=error)
    return _error(500, "INTERNAL", "internal error; the log of the dashboard has the details")
