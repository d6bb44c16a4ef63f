"""The dashboard whole: its parts, how they are joined, and the order of start and end.

Must not know settings or signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from services.dashboard.access import Access
from services.dashboard.api.app import Sources, dashboard_app
from services.dashboard.api.documents import row_document
from services.dashboard.api.feed import Feed
from services.dashboard.api.page import PageFiles
from services.dashboard.judging.schedule import Judged, Schedule
from services.dashboard.judging.workers import PROCESSES, Workers
from services.dashboard.listeners import WebListener
from services.dashboard.receiver.files import take_file
from services.dashboard.receiver.intake import Intake
from services.dashboard.receiver.servicer import OPTIONS, servicers
from services.dashboard.receiver.web import otlp_app
from services.dashboard.records import Judgement, Verdict
from services.dashboard.store import Limits, Reader, Writer
from services.handshake.errors import PortholeError
from services.rpc.server import ServerHandle, start_server
from services.rpc.version import SOFTWARE_VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path
    from typing import Self

logger = logging.getLogger(__name__)

METRICS_AGAIN_S: Final = 2.0
"""Least time between two reports that points of a VM have come."""

TRIES: Final = 3
"""How often the judging of a VM may fail until it is given up."""

_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a dashboard is to be.

    Attributes:
        database: The file.
        limits: How much is kept.
        settle_s: How long no span of a VM comes until broken rules are final.
        token: What every request over TCP needs; empty: nothing.
        listen: Addresses of the page.
        otlp_grpc: Addresses of OTLP over gRPC.
        otlp_http: Addresses of OTLP over HTTP.
        links: Addresses of traces elsewhere, by name.
        files: Files whose spans are kept before anything is received.
    """

    database: Path
    limits: Limits
    settle_s: float
    token: str
    listen: tuple[str, ...]
    otlp_grpc: tuple[str, ...]
    otlp_http: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


class Dashboard:
    """A running dashboard; an async context manager.

    Attributes:
        page_addresses: Where the page is; port 0 is replaced by the port that it got.
        grpc_addresses: Where OTLP over gRPC is taken.
        http_addresses: Where OTLP over HTTP is taken.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._feed = Feed()
        self._workers = Workers(plan.database)
        self._schedule = Schedule(self._judge, plan.settle_s)
        self._instance = uuid.uuid4().hex
        self._failures: dict[str, int] = {}
        self._metrics_at: dict[str, float] = {}
        self._stack = contextlib.AsyncExitStack()
        self._writer: Writer
        self._reader: Reader
        self._intake: Intake
        self.page_addresses: tuple[str, ...] = ()
        self.grpc_addresses: tuple[str, ...] = ()
        self.http_addresses: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        """Open the file, and begin to serve and to receive.

        Raises:
            FailedPreconditionError: DATABASE_IN_USE, DATABASE_UNUSABLE, ADDRESS_IN_USE,
                ADDRESS_UNUSABLE; nothing runs then.
            InvalidArgumentError: A file of spans is none; see `take_file`.
            OSError: The database cannot be made, or a file of spans cannot be read.
        """
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Refuse what comes, write what waits, and close the file."""
        await self._stack.aclose()

    async def _start(self) -> None:
        plan, loop = self._plan, asyncio.get_running_loop()

        def removed(gone: frozenset[str], touched: frozenset[str]) -> None:
            loop.call_soon_threadsafe(self._removed, gone, touched)

        self._writer = Writer(plan.database, plan.limits, removed)
        self._stack.push_async_callback(asyncio.to_thread, self._writer.close)
        self._reader = Reader(plan.database)
        self._stack.callback(self._reader.close)
        self._stack.callback(self._workers.close)
        self._schedule.touch(await asyncio.to_thread(self._reader.unjudged))
        for _ in range(PROCESSES):
            judging = asyncio.create_task(self._schedule.run())
            self._stack.push_async_callback(_cancel, judging)
        self._intake = Intake(self._writer, self._schedule.touch, self._points_came)
        for path in plan.files:
            await take_file(self._intake, path)

        files, sources = PageFiles(), self._sources()
        for access, listen in self._groups(plan.listen):
            page = WebListener(dashboard_app(sources, access, files), listen)
            self.page_addresses += await self._serve(page)
        # Streams of events end first, because they would end by themselves only with their readers.
        self._stack.callback(self._feed.close)
        for access, listen in self._groups(plan.otlp_http):
            receiver = WebListener(otlp_app(self._intake, access), listen)
            self.http_addresses += await self._serve(receiver)
        for access, listen in self._groups(plan.otlp_grpc):
            handle = await start_server(
                listen,
                servicers(self._intake, access),
                options=OPTIONS,
                authenticated=bool(access.token),
            )
            self._stack.push_async_callback(_stop, handle)
            self.grpc_addresses += handle.addresses

    def _groups(self, addresses: tuple[str, ...]) -> Iterator[tuple[Access, tuple[str, ...]]]:
        """Yield addresses of one kind, and who may ask there.

        A Unix socket is its own access: whoever may connect is who the permissions of its file let.
        """
        ports = tuple(each for each in addresses if not is_socket(each))
        sockets = tuple(each for each in addresses if is_socket(each))
        if ports:
            yield Access(self._plan.token), ports
        if sockets:
            yield Access(), sockets

    async def _serve(self, listener: WebListener) -> tuple[str, ...]:
        self._stack.push_async_callback(listener.stop)
        await listener.start()
        return listener.addresses

    def _sources(self) -> Sources:
        return Sources(
            reader=self._reader,
            describer=self._workers,
            feed=self._feed,
            has_settled=self._schedule.has_settled,
            failing=lambda: self._writer.failing,
            about=self._about,
            hello={"version": SOFTWARE_VERSION, "instance": self._instance},
            links=self._plan.links,
        )

    def _about(self) -> dict[str, Any]:
        received = self._intake.received
        return {
            "version": SOFTWARE_VERSION,
            "instance": self._instance,
            "otlp": {
                "grpc": list(self.grpc_addresses),
                "http": [http_url(address) for address in self.http_addresses],
            },
            "token_needed": bool(self._plan.token),
            "keep_days": self._plan.limits.keep_ms / 86_400_000,
            "keep_bytes": self._plan.limits.keep_bytes,
            "settle_s": self._plan.settle_s,
            "received": {
                "spans": received.spans,
                "points": received.points,
                "rejected": received.rejected,
            },
            "to_be_judged": self._schedule.waiting,
            "links": list(self._plan.links),
        }

    async def _judge(self, vm_id: str, settled: bool) -> Judged:
        try:
            judged = await self._workers.judge(vm_id, settled=settled)
        except PortholeError as error:
            self._failures[vm_id] = self._failures.get(vm_id, 0) + 1
            if self._failures[vm_id] < TRIES:
                raise
            judgement = Judgement(Verdict.UNJUDGED, problem=error.message)
            seen, work_s = 0, 0.0
        else:
            if judged is None:
                return Judged(None, 0.0)
            judgement, seen, work_s = judged.judgement, judged.seen, judged.work_s
        row = await asyncio.wrap_future(self._writer.put_judgement(vm_id, judgement, seen))
        self._failures.pop(vm_id, None)
        if row is not None:
            self._feed.publish("vm", vm_id, row_document(row))
        return Judged(judgement.verdict, work_s)

    def _points_came(self, vm_ids: frozenset[str]) -> None:
        now = time.monotonic()
        if len(self._metrics_at) > _REMEMBERED:
            self._metrics_at.clear()
        for vm_id in vm_ids:
            if now - self._metrics_at.get(vm_id, -METRICS_AGAIN_S) >= METRICS_AGAIN_S:
                self._metrics_at[vm_id] = now
                self._feed.publish("metrics", vm_id, {"vm_id": vm_id})

    def _removed(self, gone: frozenset[str], touched: frozenset[str]) -> None:
        self._schedule.forget(gone)
        self._schedule.touch(touched)
        for vm_id in gone:
            self._failures.pop(vm_id, None)
        if gone:
            self._feed.publish("gone", min(gone), {"vm_ids": sorted(gone)})


def http_url(address: str) -> str:
    """Return the address of a listener as browsers and exporters write it."""
    return address if is_socket(address) else f"http://{address}"


def is_socket(address: str) -> bool:
    """Return whether an address is that of a Unix socket."""
    return address.startswith("unix:")


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _stop(handle: ServerHandle) -> None:
    await handle.stop()
