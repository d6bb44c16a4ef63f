"""mini_init, as the host sees it: what it says in Hello, requests to it, and commands.

Owns the matching of answers to requests, and the sessions: a guest that says hello by itself has
(re)started or was connected anew, and knows nothing of what was asked before. Each request has a
deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError
from porthole.guest.v1 import guest_control_pb2, mini_init_pb2

from services.guest_init.channel.frames import MESSAGE_LIMIT_BYTES
from services.guest_init.channel.link import Link, unreachable
from services.guest_init.channel.run import Run
from services.guest_init.listeners import MAX_LISTENERS, Listener
from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from services.handshake.errors import PortholeError

logger = logging.getLogger(__name__)

REQUEST_DEADLINE_S: Final = 30.0
"""Longest that the guest may take for a request, besides the time that the request lets it wait."""

_LARGEST_ID: Final = (1 << 32) - 1
_TEXT_LIMIT: Final = 400
_LARGEST_PORT: Final = 0xFFFF


@dataclass(frozen=True, slots=True)
class Greeted:
    """A Hello, and when it came.

    Attributes:
        hello: The message.
        received_unix_ns: The host's time of its arrival.
    """

    hello: mini_init_pb2.Hello
    received_unix_ns: int


class MiniInit:
    """The process 1 of one guest, from `start` until `close`.

    Args:
        path: The socket of its channel.
    """

    def __init__(self, path: Path) -> None:
        self._link = Link(path, self)
        self._ids = itertools.cycle(range(1, _LARGEST_ID))
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._runs: dict[int, Run] = {}
        self._greeted: Greeted | None = None
        self._said_hello = asyncio.Event()
        self._greetings: set[asyncio.Task[None]] = set()
        self._complained = False
        self._session = 0
        self._listening: tuple[Listener, ...] | None = None
        self._news = asyncio.Event()

    def start(self) -> None:
        """Begin to connect."""
        self._link.start()

    async def close(self) -> None:
        """Disconnect; requests that are under way fail."""
        await self._link.close()
        for greeting in self._greetings:
            greeting.cancel()
        self._lose()

    async def first_hello(self) -> Greeted:
        """Wait until the guest has said hello; returns the latest Hello."""
        while self._greeted is None:
            await self._said_hello.wait()
        return self._greeted

    async def greet(self, wait_s: float) -> Greeted:
        """Ask for what the kernel publishes now.

        Args:
            wait_s: Longest wait, also for a guest that is still starting.

        Raises:
            DeadlineExceededError: GUEST_SILENT.
            UnavailableError: GUEST_UNREACHABLE: it was lost meanwhile.
        """
        try:
            async with asyncio.timeout(wait_s):
                if self._greeted is None:
                    return await self.first_hello()
                said_hello = self._said_hello
                said_hello.clear()
                await self._greet()
                await said_hello.wait()
        except TimeoutError:
            raise _silent(wait_s) from None
        if self._greeted is None:
            raise unreachable()
        return self._greeted

    async def request(self, message: mini_init_pb2.ToMiniInit, extra_s: float = 0) -> None:
        """Have a request carried out.

        Args:
            message: The request; its number is set here.
            extra_s: How long the guest may wait before it begins.

        Raises:
            FailedPreconditionError: GUEST_REQUEST_REFUSED, with the errno.
            InvalidArgumentError: GUEST_REQUEST_FIELD: it is too long.
            DeadlineExceededError: GUEST_SILENT.
            UnavailableError: GUEST_UNREACHABLE.
        """
        deadline_s = REQUEST_DEADLINE_S + extra_s
        try:
            async with asyncio.timeout(deadline_s):
                await self.first_hello()
                await self._answered(message, self._new_id())
        except TimeoutError:
            raise _silent(deadline_s) from None

    async def watch(self) -> AsyncIterator[tuple[Listener, ...]]:
        """Stream the ports on which programs of the guest listen; see Listeners.

        Raises:
            FailedPreconditionError: GUEST_REQUEST_REFUSED: this mini_init cannot tell.
            PortholeError: As of `request`.
        """
        before: tuple[Listener, ...] | None = None
        while True:
            # Taken first: with the answer may come the Hello of one that knows nothing of it.
            session = self._session
            watching = mini_init_pb2.WatchListening()
            await self.request(mini_init_pb2.ToMiniInit(watch_listening=watching))
            while session == self._session:
                news = self._news
                if self._listening is not None and self._listening != before:
                    before = self._listening
                    yield before
                await news.wait()

    async def run(self, command: guest_control_pb2.Command) -> Run:
        """Start a command.

        Raises:
            PortholeError: As of `request`.
        """
        await self._wait_for_guest()
        run_id = self._new_id()
        run = self._runs[run_id] = Run(run_id, self._send)
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                await self._answered(mini_init_pb2.ToMiniInit(run=command), run_id)
        except TimeoutError:
            await self.give_up(run)
            raise _silent(REQUEST_DEADLINE_S) from None
        except BaseException:
            await self.give_up(run)
            raise
        return run

    async def give_up(self, run: Run) -> None:
        """End a command if it runs, and drop what it says from now on."""
        if self._runs.pop(run.run_id, None) is not None:
            with contextlib.suppress(UnavailableError):
                await run.kill()

    def link_up(self) -> None:
        """Ask for Hello: a guest that is up says it only to whom it sees connect."""
        greeting = asyncio.create_task(self._greet_quietly())
        self._greetings.add(greeting)
        greeting.add_done_callback(self._greetings.discard)

    def link_down(self) -> None:
        """Fail what is under way."""
        self._lose()

    def link_message(self, message: bytes) -> None:
        """Take a message of the guest, which may be anything."""
        try:
            said = mini_init_pb2.FromMiniInit.FromString(message)
        except DecodeError:
            self._complain("a message that cannot be parsed")
            return
        match said.WhichOneof("message"):
            case "hello":
                self._take_hello(said)
            case "done":
                self._settle(said.request_id, None)
            case "failure":
                self._settle(said.request_id, _refusal(said.failure))
            case "output":
                self._take_output(said.output)
            case "credit":
                if run := self._runs.get(said.credit.run_id):
                    run.take_credit(said.credit.bytes)
            case "listening":
                self._listening = _listeners(said.listening)
                self._tell()
            case _:
                self._complain("a message that this version does not know")

    def _take_hello(self, said: mini_init_pb2.FromMiniInit) -> None:
        if said.request_id == 0 and self._greeted is not None:
            self._lose()  # it has started anew, and knows nothing of what was asked before
        self._greeted = Greeted(said.hello, time_ns())
        self._said_hello.set()

    def _take_output(self, output: mini_init_pb2.RunOutput) -> None:
        run = self._runs.get(output.run_id)
        if run is None:
            return  # of a command that was given up
        run.take_output(output)
        if run.over:
            del self._runs[output.run_id]

    def _settle(self, request_id: int, error: PortholeError | None) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is None or answer.done():
            self._complain("an answer that nobody waits for")
        elif error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _lose(self) -> None:
        self._session += 1
        self._listening = None
        self._tell()
        self._greeted = None
        self._said_hello.set()
        self._said_hello = asyncio.Event()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(unreachable())
        self._answers.clear()
        for run in self._runs.values():
            run.fail(unreachable())
        self._runs.clear()

    async def _wait_for_guest(self) -> None:
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                await self.first_hello()
        except TimeoutError:
            raise _silent(REQUEST_DEADLINE_S) from None

    async def _answered(self, message: mini_init_pb2.ToMiniInit, request_id: int) -> None:
        message.request_id = request_id
        answer = self._answers[request_id] = asyncio.get_running_loop().create_future()
        try:
            await self._send(message)
            await answer
        finally:
            self._answers.pop(request_id, None)
            if answer.done() and not answer.cancelled():
                answer.exception()  # it may have failed while the request was being sent

    async def _send(self, message: mini_init_pb2.ToMiniInit) -> None:
        raw = message.SerializeToString()
        if len(raw) > MESSAGE_LIMIT_BYTES:
            raise InvalidArgumentError(
                "GUEST_REQUEST_FIELD",
                f"a request of {len(raw)} bytes; it must have at most {MESSAGE_LIMIT_BYTES}",
                limit=MESSAGE_LIMIT_BYTES,
            )
        await self._link.send(raw)

    async def _greet(self) -> None:
        # With a number: a Hello without one is that of a guest that has started.
        greeting = mini_init_pb2.Greeting()
        await self._send(mini_init_pb2.ToMiniInit(request_id=self._new_id(), greeting=greeting))

    async def _greet_quietly(self) -> None:
        with contextlib.suppress(UnavailableError):  # the connection was lost at once
            await self._greet()

    def _new_id(self) -> int:
        return next(number for number in self._ids if number not in self._runs)

    def _complain(self, what: str) -> None:
        if not self._complained:
            logger.warning("the guest sends %s; it is ignored, and this is logged once", what)
            self._complained = True


def _listeners(message: mini_init_pb2.Listening) -> tuple[Listener, ...]:
    of_v6 = {port for port in message.ipv6_ports if 0 < port <= _LARGEST_PORT}
    of_v4 = {port for port in message.ipv4_ports if 0 < port <= _LARGEST_PORT}
    ports = sorted(of_v4 | of_v6)[:MAX_LISTENERS]
    # An IPv6 socket is taken to serve IPv4 as well, as it does by default.
    return tuple(Listener(port, ipv4=True, ipv6=port in of_v6) for port in ports)


def _refusal(failure: mini_init_pb2.Failure) -> FailedPreconditionError:
    name = errno.errorcode.get(failure.error_number, str(failure.error_number))
    return FailedPreconditionError(
        "GUEST_REQUEST_REFUSED",
        f"the guest refused the request: {failure.text[:_TEXT_LIMIT]} ({name})",
        errno=name,
    )


def _silent(seconds: float) -> DeadlineExceededError:
    return DeadlineExceededError(
        "GUEST_SILENT", f"the guest's process 1 did not answer within {seconds:g} s"
    )
