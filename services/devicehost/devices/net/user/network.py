"""The user-mode network of one adapter while it lives.

Owns the thread that starts passt, sees its end and starts it again; the state of the link; and the
stream that belongs to the present passt. A guest cannot make passt be started more often than the
pauses allow. Neither can the host's network, whose changes are looked at twice a second at most.
Must not know queues.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING, Final

from services.devicehost.devices.net import host_network
from services.devicehost.devices.net.user import installation as installations
from services.devicehost.devices.net.user.ports import Ports
from services.devicehost.devices.net.user.process import Passt
from services.devicehost.devices.net.user.settings import arguments, check, given, what_moved
from services.devicehost.devices.net.user.stream import (
    MAX_STREAM_FRAME_BYTES,
    Stream,
    StreamEndedError,
    stream_pair,
)
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.wire.virtio_net import (
    F_CSUM,
    F_GUEST_CSUM,
    HDR_F_DATA_VALID,
    HEADER,
    HEADER_BYTES,
    MAC_BYTES,
    NetHeader,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from services.devicehost.devices.net.host_network import HostView
    from services.devicehost.devices.net.user.settings import UserSettings
    from services.handshake.options import NetOptions

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 30.0
"""Between starts; each pause is twice the one before. The first is long enough for a guest to see
its link go, and so to ask for its addresses when it is back."""
LAST_WORDS_MS: Final = 500
"""How long a passt that was given up may take to end by itself, and to say why."""
STEADY_S: Final = 60.0
"""After a passt that has served for so long the pauses begin anew."""

SHORTEST_FRAME_BYTES: Final = 60
"""Of Ethernet, without its checksum."""

_FROM_PASST: Final = HEADER.pack(*NetHeader(flags=HDR_F_DATA_VALID))
"""passt's frames have all their checksums, and are no longer than its MTU allows."""

_LOG = logging.getLogger(__name__)


class UserNetwork:
    """A user-mode network: an opened back end of an adapter, as a Tap is.

    One thread reads, one writes, both of them the adapter's; `close` is called when neither runs.

    Attributes:
        mtu: Bytes of payload per frame.
        ports: What the host forwards to the guest.
        features: Checksums: passt does not look at those of the guest, and its own are right. With
            frames of 64 KiB there is nothing to segment.
        is_gone: False: passt is started again.
        has_link: True: it is opened once passt serves.
    """

    features = F_CSUM | F_GUEST_CSUM
    is_gone = False
    has_link = True

    def __init__(
        self,
        settings: UserSettings,
        program: str,
        options: NetOptions,
        on_link: Callable[[bool, str], None],
    ) -> None:
        """Start passt, and wait until it serves.

        Args:
            settings: What the network is to be.
            program: passt: a path, or a name that is looked for on PATH.
            options: Of the adapter; they have the guest's addresses, also of its hardware.
            on_link: Called with each change of the link from now on, and why, on the network's
                thread, with no lock held.

        Raises:
            InvalidArgumentError: USER_NETWORK_VALUE.
            FailedPreconditionError: PASST_MISSING, PASST_TOO_OLD or PASST_FAILED.
        """
        check(settings)
        if options.queues > 1:
            raise InvalidArgumentError(
                "USER_NETWORK_VALUE",
                f"queues={options.queues}: a user-mode network has one pair of queues; leave the "
                "option out",
                queues=options.queues,
                bound=1,
            )
        self._installation = installations.find(program)
        self._settings, self._options = settings, options
        self._hello = announcement(options.client_mac or bytes(MAC_BYTES))
        self._name = options.name
        self._on_link = on_link
        self.mtu = settings.mtu
        self.ports = Ports(self._installation, options.name, self._restart)
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._why_down = ""
        self._receiving: Stream | None = None
        self._sending: Stream | None = None
        self._stopped = threading.Event()
        with contextlib.ExitStack() as undo:
            try:
                self._host = undo.enter_context(contextlib.closing(host_network.watch()))
                self._stop_fd, self._lost_fd, self._up_fd = (_event(undo) for _ in range(3))
            except OSError as error:
                raise FailedPreconditionError(
                    "PASST_FAILED", f"the host's network cannot be watched: {error}"
                ) from error
            undo.pop_all()
        self._has_started = threading.Event()
        self._failures: list[FailedPreconditionError] = []
        self._thread = threading.Thread(target=self._run, name=f"passt-{options.name}", daemon=True)
        self._thread.start()
        self._has_started.wait()
        for failure in self._failures:
            self.close()
            raise failure

    @property
    def queues(self) -> tuple[UserNetwork]:
        """Return this: it has one queue."""
        return (self,)

    def negotiate(self, features: int) -> None:
        """Do nothing: passt's frames are complete."""

    def use(self, pairs: int) -> None:
        """Do nothing: there is one pair."""

    @property
    def read_fd(self) -> int:
        """What to sleep on when no frame waits: readable when one does, or the link is back."""
        return self._up_fd if self._receiving is None else self._receiving.fd

    @property
    def write_fd(self) -> int:
        """What to sleep on after `flush` has returned False: writable when there is room."""
        return self._up_fd if self._sending is None else self._sending.fd

    def receiving(self) -> Stream | None:
        """Return the stream that frames come from, for the native loop; None: there is no link."""
        self._receiving = self._present(self._receiving)
        return self._receiving

    def sending(self) -> Stream | None:
        """Return the stream that frames go to, for the native loop; None: there is no link."""
        self._sending = self._present(self._sending)
        return self._sending

    def fail(self, stream: object, number: int) -> None:
        """Give up the stream with which the native loop has failed.

        Args:
            stream: What `receiving` or `sending` returned.
            number: The errno of the loop; EPROTO for a length that no frame has.
        """
        if isinstance(stream, Stream):
            self._take_down(stream, stream.why_it_ended(number))

    def read(self, buffer: memoryview) -> int:
        """Take one frame, behind a virtio-net header.

        Args:
            buffer: HEADER_BYTES and MAX_STREAM_FRAME_BYTES, or more.

        Returns:
            Bytes written to `buffer`; 0 when no frame waits, or there is no link.
        """
        stream = self.receiving()
        if stream is None:
            return 0
        try:
            length = stream.read_frame(buffer[HEADER_BYTES:])
        except StreamEndedError as error:
            self._take_down(stream, str(error))
            return 0
        if not length:
            return 0
        buffer[:HEADER_BYTES] = _FROM_PASST
        return HEADER_BYTES + length

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send one frame; after this comes `flush`, and no other frame until it returns True.

        Args:
            parts: The header, which asks for nothing, and then the frame.

        Raises:
            OSError: It was not taken: there is no link (ENETDOWN), or it is longer than passt takes
                (EMSGSIZE).
        """
        stream = self.sending()
        frame = parts[1:]
        if stream is None:
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))
        if sum(len(part) for part in frame) > MAX_STREAM_FRAME_BYTES:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        self._note_source(frame)
        try:
            stream.write_frame(frame)
        except StreamEndedError as error:
            self._take_down(stream, str(error))

    def _note_source(self, frame: Sequence[bytes | memoryview]) -> None:
        """Know the guest's own MAC address, for the next passt; the first frame comes by here."""
        start = frame[0] if len(frame[0]) >= 2 * MAC_BYTES else b"".join(frame)
        source = bytes(start[MAC_BYTES : 2 * MAC_BYTES])
        if not source[0] & 1:  # no group of stations (IEEE 802.3, section 3.2.3)
            self._hello = announcement(source)

    def flush(self) -> bool:
        """Send what is left of a frame; return whether another one may be sent."""
        stream = self._sending
        if stream is None or not stream.has_unsent:
            return True
        try:
            return stream.flush()
        except StreamEndedError as error:
            self._take_down(stream, str(error))
            return True

    def close(self) -> None:
        """End passt."""
        with self._lock:
            self._stopped.set()
            stream = self._stream
        if stream is not None:
            stream.shut_down()  # so passt ends by itself
        os.eventfd_write(self._stop_fd, 1)
        self._thread.join()
        for used in (self._receiving, self._sending):
            if used is not None:
                used.release()
        self._receiving = self._sending = None
        self._host.close()
        for fd in (self._stop_fd, self._lost_fd, self._up_fd):
            os.close(fd)

    def _present(self, used: Stream | None) -> Stream | None:
        """Return the stream of the present passt, in use; what was used before is released."""
        with self._lock:
            present = self._stream
            if present is used:
                return used
            if present is not None:
                present.acquire()
        if used is not None:
            used.release()
        return present

    def _take_down(self, stream: Stream, why: str) -> None:
        """Give up a stream, and with it its passt; from any thread, harmless when repeated."""
        with self._lock:
            if self._stream is not stream:
                return
            self._stream = None
            self._why_down = why
            os.eventfd_read(self._up_fd)
        stream.shut_down()
        os.eventfd_write(self._lost_fd, 1)

    def _restart(self, why: str) -> None:
        """Give up the present passt; from any thread."""
        with self._lock:
            stream = self._stream
        if stream is not None:
            self._take_down(stream, why)

    def _run(self) -> None:
        pause_s = 0.0
        try:
            while not self._stopped.is_set():
                began = time.monotonic()
                try:
                    why = self._run_once()
                except FailedPreconditionError as error:
                    if not self._has_started.is_set():
                        self._failures.append(error)
                        return
                    why = error.message
                if self._stopped.is_set():
                    return
                steady = time.monotonic() - began >= STEADY_S
                pause_s = FIRST_PAUSE_S if steady else _longer(pause_s)
                _LOG.warning(
                    "adapter %s has no link: %s. It is started again in %.1f s",
                    *(self._name, why, pause_s),
                )
                select.select([self._stop_fd], [], [], pause_s)
        finally:
            self._has_started.set()

    def _run_once(self) -> str:
        """Run one passt until it ends or is given up; return why.

        Raises:
            FailedPreconditionError: PASST_FAILED.
        """
        try:
            stream, theirs = stream_pair()
            try:
                stream.write_frame([self._hello])
                was_given = self._given(host_network.look())
                settings = self._settings.with_resolver(was_given.name_servers)
                passt = Passt(self._installation, arguments(settings, self._options), theirs)
                return self._serve(stream, passt, was_given)
            finally:
                stream.release()
        except OSError as error:
            raise FailedPreconditionError("PASST_FAILED", f"passt: {error}") from error

    def _given(self, view: HostView) -> HostView:
        return given(self._settings, self._options, view)

    def _serve(self, stream: Stream, passt: Passt, was_given: HostView) -> str:
        was_up = False
        try:
            if not passt.await_ready(self._stop_fd):
                return "stopped"
            self.ports.attached(passt.control)
            self._put_up(stream)
            was_up = True
            why = self._watch(stream, passt, was_given)
        finally:
            self._take_down(stream, "passt has ended")
            self.ports.detached()
            passt.end()
        if was_up and not self._stopped.is_set():
            self._on_link(False, why)
        return why

    def _put_up(self, stream: Stream) -> None:
        with self._lock:
            self._stream = stream
            os.eventfd_write(self._up_fd, 1)
        if self._has_started.is_set():
            _LOG.info("adapter %s has its link again", self._name)
            self._on_link(True, "passt was started again")
        self._has_started.set()

    def _watch(self, stream: Stream, passt: Passt, was_given: HostView) -> str:
        """Read what passt says until it ends or is given up, or the network is closed.

        It is given up when what the guest was given of the host's network is not right any more:
        passt takes that when it starts.

        Returns:
            Why it serves no longer.
        """
        poll = select.poll()
        for fd in (passt.log_fd, self._lost_fd, self._stop_fd, self._host.fd):
            poll.register(fd, select.POLLIN)
        lost, timeout_ms = "", None
        while ready := {fd for fd, _ in poll.poll(timeout_ms)}:
            if self._lost_fd in ready:  # before the end of passt, which follows from it
                os.eventfd_read(self._lost_fd)
                if self._stream is not stream:
                    # It ends by itself now, unless it is stuck.
                    lost, timeout_ms = f"{self._why_down}; ", LAST_WORDS_MS
            if passt.log_fd in ready and not passt.read_log():
                return f"{lost}passt {passt.how_it_ended()}"
            if self._stop_fd in ready:
                return "stopped"
            if self._host.fd in ready:
                view = self._host.take()
                # Of a host that is on no network a guest would be given nothing better.
                moved = what_moved(was_given, self._given(view)) if view.is_connected else ""
                if moved:
                    self._take_down(stream, f"the host's network has changed: {moved}")
        return f"{lost}passt does not end{passt.last_words()}"


def announcement(mac: bytes) -> bytes:
    """Return a frame of the guest that passt looks at no further than its source.

    passt learns the guest's MAC address from its frames, and until then sends what comes for it to
    no address. A guest that waits for connections may have nothing to say.
    """
    broadcast, experimental = b"\xff" * MAC_BYTES, b"\x88\xb5"  # RFC 9542, section 3.2
    return (broadcast + mac + experimental).ljust(SHORTEST_FRAME_BYTES, b"\0")


def _event(undo: contextlib.ExitStack) -> int:
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    undo.callback(os.close, fd)
    return fd


def _longer(pause_s: float) -> float:
    return min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
