"""The effects of a front-end's commands on one device: guest memory, rings and their workers.

One thread executes commands; workers only report failure. Must not know bytes, sockets or gRPC, and
of the observer only its interface.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, Protocol

from services.devicehost.memory import Region, RegionTable
from services.devicehost.memory.regions import MAX_SLOTS
from services.devicehost.vhost_user.backend_channel import BackendChannel
from services.devicehost.vhost_user.connection import (
    TRANSPORT_FEATURES,
    Offer,
    protocol_features,
)
from services.devicehost.vhost_user.event_fds import check_event_fd
from services.devicehost.vhost_user.held_descriptors import HeldDescriptors
from services.devicehost.vhost_user.ring import Ring, RingContext
from services.devicehost.vhost_user.ring_states import RingState
from services.devicehost.vhost_user.worker import stop_deadline
from services.handshake.errors import FailedPreconditionError, PortholeError
from services.wire.vhost_user import (
    F_PROTOCOL_FEATURES,
    MemRegion,
    Request,
    VringState,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.devicehost.accounting import DeviceMeter
    from services.devicehost.memory import Access, GuestMemory
    from services.devicehost.vhost_user.messages import Command
    from services.devicehost.virtio.device import VirtioDevice


_LOG = logging.getLogger(__name__)


class Observer(Protocol):
    """Learns what happens to a device; each call may come from any thread."""

    def connected(self) -> None:
        """A front-end has connected."""

    def attached(self) -> None:
        """Guest memory is mapped, or can be mapped on demand."""

    def register_doorbell(self, queue: int) -> None:
        """A queue is about to get its kick descriptor.

        Raises:
            PermissionDeniedError: It may not.
        """

    def unregister_doorbell(self, queue: int) -> None:
        """A queue has given up its kick descriptor."""

    def first_request(self) -> None:
        """A queue has completed its first request since it started."""

    def failed(self, error: PortholeError) -> None:
        """The guest broke a rule, or the device failed; it serves nothing until it is reset."""

    def was_reset(self) -> None:
        """A failed device may serve again."""

    def kept_out(self, error: PortholeError) -> None:
        """Memory or a ring was refused, before a ring of this front-end was ever served."""

    def descriptors_closed(self, count: int, why: str) -> None:
        """So many descriptors of guest memory were closed, because they are not needed any more."""

    def disconnected(self, kept_out: PortholeError | None) -> None:
        """The front-end is gone, and guest memory is unmapped.

        Args:
            kept_out: Why no ring of this front-end was ever served, if memory or rings that it
                placed were refused; else None.
        """


class Backend:
    """One device as a front-end sees it."""

    def __init__(
        self,
        device: VirtioDevice,
        access: Access,
        meter: DeviceMeter,
        observer: Observer,
        *,
        offers_config: bool = True,
        table: RegionTable | None = None,
    ) -> None:
        """Put a device behind the protocol.

        Args:
            device: Serves the queues.
            access: How the device reaches guest memory.
            meter: Of the device.
            observer: Learns what happens.
            offers_config: Whether a front-end can ask for the configuration space.
            table: An empty table; None: one that accepts sealed memory only.
        """
        self._device = device
        self._access = access
        self._meter = meter
        self._observer = observer
        self._offers_config = offers_config
        self._table = RegionTable() if table is None else table
        self._held = HeldDescriptors(access, self._table, meter, observer.descriptors_closed)
        self._memory: GuestMemory | None = None
        self._rings = [Ring(index) for index in range(device.num_queues)]
        self._features = 0
        self._active: int | None = None
        self._channel = BackendChannel()
        self._failed = False
        self._has_served = False
        self._kept_out: PortholeError | None = None
        self._failing = threading.Lock()

    @property
    def offer(self) -> Offer:
        """What the device offers to a front-end now."""
        return Offer(
            features=TRANSPORT_FEATURES | self._device.features,
            protocol_features=protocol_features(
                keeps_descriptors=self._access.keeps_descriptors, offers_config=self._offers_config
            ),
            num_queues=self._device.num_queues,
            config=self._device.config,
            max_mem_slots=MAX_SLOTS,
        )

    def connect(self) -> None:
        """Report to the observer that a front-end has connected."""
        self._observer.connected()

    def execute(self, command: Command) -> VringState | None:
        """Carry out one command.

        Returns:
            The answer of GET_VRING_BASE; None for every other command.

        Raises:
            PortholeError: The command was refused; the device goes on as it was, unless the
                command's own documentation says otherwise.
        """
        try:
            return _ACTIONS[command.request](self, command)
        except PortholeError as error:
            if command.request in _PLACING and not self._has_served:
                self._kept_out = error
                self._observer.kept_out(error)
            raise
        finally:
            self._held.heard_from()

    def look_interval_ms(self) -> int | None:
        """Return when to call `look` if the front-end sends nothing; None: there is no need."""
        return self._held.look_interval_ms(self._rings)

    def look(self) -> None:
        """Close the descriptors of guest memory if no further ring is to be expected."""
        self._held.look(self._rings)

    def disconnect(self) -> None:
        """Stop the rings, unmap guest memory and reset the device: the front-end has gone."""
        self._reset_device()
        self._unmap()
        self._table.close()
        self._held.count()
        self._channel.close()
        self._features = 0
        kept_out = None if self._has_served else self._kept_out
        self._has_served, self._kept_out = False, None
        self._observer.disconnected(kept_out)

    def config_changed(self) -> None:
        """Tell the front-end, if it can be told, that the configuration space has changed.

        Any thread may call it; it waits for no front-end.
        """
        self._channel.config_changed()

    def ask_to_stop(self) -> None:
        """Ask all workers to end soon, without waiting for them; from any thread."""
        with self._failing:
            rings = self._rings
        for ring in rings:
            ring.ask_to_stop()

    def _set_features(self, command: Command) -> None:
        if self._any_is_served() and command.body != self._features:
            raise FailedPreconditionError(
                "FEATURES_FIXED",
                "features cannot change while rings are running; stop them with GET_VRING_BASE",
            )
        self._features = command.body

    def _set_mem_table(self, command: Command) -> None:
        """Take a new table; one that cannot be attached leaves the device without guest memory."""
        fds = [command.fds.pop(0) for _ in command.body]
        regions = [_region(body, fd) for body, fd in zip(command.body, fds, strict=True)]
        self._change_table(lambda: self._table.replace(regions))

    def _add_mem_reg(self, command: Command) -> None:
        region = _region(command.body, command.fds.pop())
        self._change_table(lambda: self._table.add(region))

    def _rem_mem_reg(self, command: Command) -> None:
        gone: MemRegion = command.body
        self._change_table(lambda: self._table.remove(gone.gpa, gone.size_bytes, gone.user_addr))

    def _change_table(self, change: Callable[[], None]) -> None:
        """Pause the rings, change the table, and attach to the guest memory that it then has."""
        self.ask_to_stop()
        deadline = stop_deadline()
        for ring in self._rings:
            ring.pause(deadline)
        try:
            change()
        except PortholeError:
            self._serve_what_can_be_served()
            raise
        self._unmap()
        if len(self._table):
            try:
                self._memory = self._access.attach(self._table, self._meter)
                self._held.attached()
                for ring in self._rings:
                    ring.pin(self._table, self._memory)
            except PortholeError:
                self._unmap()
                self._table.close()
                raise
            self._observer.attached()
        self._held.placed(self._rings)
        self._serve_what_can_be_served()

    def _unmap(self) -> None:
        for ring in self._rings:
            ring.unpin()
        if self._memory is not None:
            self._memory.release()
            self._memory = None

    def _set_vring_num(self, command: Command) -> None:
        self._ring(command).set_size(command.body.num)

    def _set_vring_base(self, command: Command) -> None:
        self._ring(command).set_base(command.body.num)

    def _get_vring_base(self, command: Command) -> VringState:
        ring = self._ring(command)
        base = ring.halt()
        self._observer.unregister_doorbell(ring.index)
        # A front-end also stops all rings to pause its guest, and starts them again later. So the
        # device keeps its state; only a device that has failed is reset.
        if self._failed and not self._any_is_served():
            self._settle()
        return VringState(ring.index, base)

    def _set_vring_addr(self, command: Command) -> None:
        self._ring(command).set_addr(command.body, self._table, self._memory)
        self._held.placed(self._rings)
        self._serve_what_can_be_served()

    def _set_vring_kick(self, command: Command) -> None:
        ring = self._ring(command)
        check_event_fd(ring.index, _fd(command), is_read=True)
        self._observer.register_doorbell(ring.index)
        ring.set_kick(_take_fd(command))
        self._serve_what_can_be_served()

    def _set_vring_call(self, command: Command) -> None:
        ring = self._ring(command)
        check_event_fd(ring.index, _fd(command), is_read=False)
        ring.set_call(_take_fd(command))

    def _set_vring_err(self, command: Command) -> None:
        ring = self._ring(command)
        check_event_fd(ring.index, _fd(command), is_read=False)
        ring.set_err(_take_fd(command))

    def _set_vring_enable(self, command: Command) -> None:
        ring = self._ring(command)
        if command.body.num:
            ring.enable()
        else:
            ring.disable()
        self._serve_what_can_be_served()

    def _set_backend_channel(self, command: Command) -> None:
        self._channel.replace(command.fds.pop())

    def _set_protocol_features(self, command: Command) -> None:
        self._channel.negotiated(command.body)

    def _set_config(self, command: Command) -> None:
        raise FailedPreconditionError(
            "CONFIG_READ_ONLY", "no field of the device's configuration space is writable"
        )

    def _reset_device(self, command: Command | None = None) -> None:
        """Disable and forget all rings, and make the device as new; memory stays attached."""
        self.ask_to_stop()
        deadline = stop_deadline()
        for ring in self._rings:
            ring.close(deadline)
            self._observer.unregister_doorbell(ring.index)
        with self._failing:
            self._rings = [Ring(ring.index) for ring in self._rings]
        self._settle()

    def _settle(self) -> None:
        """Reset the device and end its failure; no ring may be served."""
        self._forget_guest()
        with self._failing:
            was_failed, self._failed = self._failed, False
        if was_failed:
            self._observer.was_reset()

    def _forget_guest(self) -> None:
        if self._active is None:
            return
        self._active = None
        try:
            self._device.reset()
        except Exception:
            _LOG.exception("%s: reset failed; serving goes on", self._device.device_class)

    def _serve_what_can_be_served(self) -> None:
        """Start a worker for each ring that is started, enabled and reachable, and has none.

        Without F_PROTOCOL_FEATURES every ring is enabled ("Ring states").
        """
        memory = self._memory
        if memory is None:
            return
        always_enabled = not self._features & F_PROTOCOL_FEATURES
        for ring in self._rings:
            if not ring.reachable:
                continue
            if always_enabled and ring.state is RingState.STARTED_DISABLED:
                ring.enable()
            if ring.state is not RingState.STARTED_ENABLED:
                continue
            if self._active != self._features:
                self._forget_guest()
                self._device.activate(self._features)
                self._active = self._features
            with self._failing:
                if self._failed:
                    return
                ring.serve(
                    RingContext(
                        device=self._device,
                        memory=memory,
                        features=self._features,
                        counters=self._meter.queue(ring.index),
                        on_first_request=self._observer.first_request,
                        on_failure=self._fail,
                    )
                )
                self._has_served = True

    def _any_is_served(self) -> bool:
        return any(ring.state is RingState.SERVED for ring in self._rings)

    def _fail(self, error: PortholeError) -> None:
        """Stop all rings because of a failure, and report it; called by a worker's thread."""
        with self._failing:
            first, self._failed = not self._failed, True
            rings = self._rings
        for ring in rings:
            ring.ask_to_stop()
        if first:
            self._observer.failed(error)
        for ring in rings:
            ring.report_broken()

    def _ring(self, command: Command) -> Ring:
        index: int = command.body.queue
        return self._rings[index]


def _region(body: MemRegion, fd: int) -> Region:
    return Region(body.gpa, body.size_bytes, body.user_addr, body.mmap_offset, fd)


def _fd(command: Command) -> int | None:
    return command.fds[0] if command.fds else None


def _take_fd(command: Command) -> int | None:
    return command.fds.pop() if command.fds else None


_PLACING: Final = (Request.SET_MEM_TABLE, Request.ADD_MEM_REG, Request.SET_VRING_ADDR)
"""The commands that say where guest memory and rings are."""

_ACTIONS: Final[dict[Request, Callable[[Backend, Command], VringState | None]]] = {
    Request.SET_FEATURES: Backend._set_features,
    Request.SET_PROTOCOL_FEATURES: Backend._set_protocol_features,
    Request.RESET_OWNER: Backend._reset_device,
    Request.SET_MEM_TABLE: Backend._set_mem_table,
    Request.SET_VRING_NUM: Backend._set_vring_num,
    Request.SET_VRING_ADDR: Backend._set_vring_addr,
    Request.SET_VRING_BASE: Backend._set_vring_base,
    Request.GET_VRING_BASE: Backend._get_vring_base,
    Request.SET_VRING_KICK: Backend._set_vring_kick,
    Request.SET_VRING_CALL: Backend._set_vring_call,
    Request.SET_VRING_ERR: Backend._set_vring_err,
    Request.SET_VRING_ENABLE: Backend._set_vring_enable,
    Request.SET_BACKEND_REQ_FD: Backend._set_backend_channel,
    Request.SET_CONFIG: Backend._set_config,
    Request.RESET_DEVICE: Backend._reset_device,
    Request.ADD_MEM_REG: Backend._add_mem_reg,
    Request.REM_MEM_REG: Backend._rem_mem_reg,
}
