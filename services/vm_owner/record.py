"""The record of one VM: its state, pool, token, capabilities and warnings, and its watchers.

Owns the rules of applying capabilities and latching a pool (handshake.md section 4), and when the
owner judges the VM's handshake. Must not know machines, device hosts or protobuf.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from services.handshake import events
from services.handshake.capabilities import parse_kernel_release
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.handshake.pool import (
    check_pool,
    format_token,
    pool_from_announcement,
    reserved_pool_bytes,
)
from services.handshake.trace.judgement import EVENTS_KEPT, judge_owner
from services.vm_owner import warnings
from services.vm_owner.event_stream import EventStream, Subscription
from services.vm_owner.operations import Operation, require
from services.vm_owner.reports import latched_differences, refreshed
from services.vm_owner.states import VmEvent, VmState, vm_life
from services.vm_owner.watch_items import PoolLatched

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.handshake.capabilities import KernelVersion
    from services.handshake.errors import PortholeError
    from services.handshake.events import Event
    from services.handshake.pool import SwiotlbPool
    from services.vm_owner.manifest import Manifest
    from services.vm_owner.reports import Report
    from services.vm_owner.warnings import VmWarning
    from services.vm_owner.watch_items import DeviceChange, DeviceExhausted, WatchItem
    from services.vm_owner.wslconfig import WslConfig


class VmKind(StrEnum):
    """The kind of a VM: WSL2, whose guest reports itself, or WSLC, whose session does."""

    WSL2 = "WSL2"
    WSLC = "WSLC"


@dataclass(frozen=True, slots=True)
class VmFacts:
    """The facts of a VM that are fixed when it is created.

    Attributes:
        low_ram_bytes: RAM below 4 GiB.
        requested_bytes: Size of the pool that the kernel is asked for; 0: none.
        divides_pool: Whether the machine places the pool and divides it among devices (strict
            isolation); then the kernel command line is without it here.
        config: The configuration that applies.
        traceparent: W3C context that is the parent of all spans of this VM; empty: none.
    """

    vm_id: str
    kind: VmKind
    ram_bytes: int
    low_ram_bytes: int
    requested_bytes: int
    kernel_command_line: str
    config: WslConfig
    traceparent: str
    divides_pool: bool = False

    def created_event(self) -> events.Event:
        """Return the event that this VM exists, with what the size of its pool follows from."""
        sizing = events.Sizing(
            ram_bytes=self.ram_bytes,
            virtio=self.config.virtio,
            device_bounces=self.config.device_bounces,
            configured_bytes=self.config.swiotlb_bytes,
            requested_bytes=self.requested_bytes,
        )
        return events.vm_created(self.vm_id, self.kind, sizing)


class VmRecord:
    """The record of one VM.

    Args:
        facts: The facts that are fixed at its creation.
        manifest: Explains a missing pool.
        emit: Adds an event to the trace.
        configured: Warnings about its configuration.
        on_verdict: Called with what follows from its events when it is RUNNING, and at its end.

    Attributes:
        warnings: Its last warnings, at most WARNINGS_KEPT.
        report: What is in force of the guest's reports, without a pool that was refused; None
            before the first report.
        pool: The latched pool; None: none.
        token: The device option of the latched pool; None: none.
        ram_base: The address at which the guest's RAM begins, which its machine knows.
    """

    def __init__(
        self,
        facts: VmFacts,
        manifest: Manifest,
        emit: Callable[[Event], None],
        configured: Iterable[VmWarning] = (),
        on_verdict: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.facts = facts
        self._emit = emit
        self._on_verdict = on_verdict
        self._emitted: list[Event] = []
        self.warnings: list[VmWarning] = list(configured)
        self.report: Report | None = None
        self.pool: SwiotlbPool | None = None
        self.token: str | None = None
        self.ram_base = 0
        self._manifest = manifest
        self._life = vm_life(facts.vm_id)
        self._stream: EventStream[WatchItem] = EventStream()

    @property
    def vm_id(self) -> str:
        """UUID of the VM."""
        return self.facts.vm_id

    @property
    def state(self) -> VmState:
        """The state of the VM."""
        return self._life.state

    def emit(self, event: Event) -> None:
        """Add an event to the trace, and to what the verdict follows from."""
        if len(self._emitted) <= EVENTS_KEPT:
            self._emitted.append(event)
        self._emit(event)

    def emit_end(self) -> None:
        """Judge the handshake, and add the end of the VM to the trace."""
        if self._has_booted:
            self._on_verdict(judge_owner(self.vm_id, events.ENDED, self._emitted))
        self._emit(events.vm_terminated(self.vm_id))
        self._emitted.clear()

    @property
    def _has_booted(self) -> bool:
        return any(event.name == events.GUEST_BOOTED for event in self._emitted)

    def require(self, operation: Operation) -> None:
        """Refuse an operation that the present state does not allow.

        Raises:
            FailedPreconditionError: The reason is that of operations.REFUSALS.
        """
        require(operation, self.vm_id, self.state)

    def require_session(self, operation: Operation) -> None:
        """Refuse an operation of a session, which a WSLC VM has and a WSL2 VM does not.

        Raises:
            FailedPreconditionError: WRONG_VM_KIND.
        """
        kind = self.facts.kind
        if kind is not VmKind.WSLC:
            raise FailedPreconditionError(
                "WRONG_VM_KIND",
                f"{operation} is refused: VM {self.vm_id} is a {kind} VM, whose guest reports by "
                "itself; GetVm has its capabilities",
                vm_id=self.vm_id,
                kind=kind,
            )

    def fire(self, event: VmEvent) -> None:
        """Change the state and publish it.

        Raises:
            FailedPreconditionError: ILLEGAL_EVENT; nothing has changed.
        """
        before = self.state
        if self._life.fire(event) is not before:
            if self.state is VmState.RUNNING:
                self._on_verdict(judge_owner(self.vm_id, events.RUNNING, self._emitted))
            self._stream.publish(self.state)
        if self.state is VmState.TERMINATED:
            self._stream.close()

    def warn(self, warning: VmWarning) -> None:
        """Keep a warning and publish it; the oldest beyond WARNINGS_KEPT goes."""
        self.warnings.append(warning)
        del self.warnings[: -warnings.WARNINGS_KEPT]
        self._stream.publish(warning)

    def warn_once(self, warning: VmWarning) -> bool:
        """Warn, unless there is a warning of the same id; return whether this was the first.

        A guest that repeats its report must not fill the owner's memory with warnings.
        """
        if any(known.id == warning.id for known in self.warnings):
            return False
        self.warn(warning)
        return True

    def publish(self, item: DeviceChange | DeviceExhausted) -> None:
        """Publish an item about a device to the watchers."""
        self._stream.publish(item)

    def watch(self, after: int = 0) -> Subscription[WatchItem]:
        """Watch the VM: its present state, warnings and pool, then all that follows.

        Args:
            after: See EventStream.subscribe.
        """
        snapshot: list[WatchItem] = [self.state, *self.warnings]
        if self.pool is not None:
            snapshot.append(PoolLatched(self.pool))
        return self._stream.subscribe(snapshot, after)

    def apply_capabilities(self, report: Report) -> bool:
        """Apply a guest's report: latch it, if it has a pool and that is valid.

        The VM is RUNNING afterwards, also when the pool was refused; it then runs without one. Once
        a report is latched, one with other latched fields changes nothing (reports.FIELD_RULES).

        Returns:
            Whether a report had been latched before; all its latched fields are the same.

        Raises:
            InvalidArgumentError: The pool was refused; the reason is one of
                services.handshake.pool.
            FailedPreconditionError: SWIOTLB_ALREADY_LATCHED for another pool,
                CAPABILITIES_ALREADY_LATCHED for another latched field, or the state does not allow
                it.
        """
        self.require(Operation.APPLY_CAPABILITIES)
        try:
            pool = self._checked_pool(report)
        except InvalidArgumentError as refusal:
            self._refuse(report, refusal)
            raise
        if self.pool is not None and pool != self.pool:
            raise self._conflict(report, pool, self.pool)
        if self.pool is not None and self.report is not None:
            self.report = self._refreshed(self.report, report)
            return True
        self.report = report
        if pool is not None:
            self._latch(pool)
        else:
            self._miss_pool(report)
        self.fire(VmEvent.APPLY_CAPABILITIES)
        return False

    def _refreshed(self, latched: Report, report: Report) -> Report:
        differences = latched_differences(latched, report)
        if differences:
            names = ", ".join(differences)
            raise FailedPreconditionError(
                "CAPABILITIES_ALREADY_LATCHED",
                f"VM {self.vm_id} has latched its guest's capabilities; these differ in {names}, "
                "and change nothing. They are latched once in the life of a VM",
                vm_id=self.vm_id,
                fields=names,
            )
        return refreshed(latched, report)

    def _checked_pool(self, report: Report) -> SwiotlbPool | None:
        self._trace(report)
        pool = pool_from_announcement(report.base, report.size_bytes)
        if pool is not None:
            check_pool(pool, self.facts.low_ram_bytes, self.ram_base)
        return pool

    def _trace(self, report: Report) -> None:
        vm_id = self.vm_id
        if self.facts.kind is VmKind.WSLC:
            self.emit(
                events.wslc_apply(vm_id, report.base, report.size_bytes, report.kernel_release)
            )
        else:
            version = self._kernel_version(report.kernel_release)
            self.emit(events.guest_kernel_info(vm_id, report.as_announced(), version))

    def _kernel_version(self, release: str) -> KernelVersion | None:
        if not release:
            return None
        try:
            return parse_kernel_release(release)
        except InvalidArgumentError as refusal:
            self.warn_once(warnings.kernel_release_unreadable(refusal))
            return None

    def _latch(self, pool: SwiotlbPool) -> None:
        # Formatted once: all device hosts and devices get this very string.
        self.pool, self.token = pool, format_token(pool)
        self.emit(events.pool_latched(self.vm_id, pool, self.token))
        self._stream.publish(PoolLatched(pool))
        requested_bytes = self.facts.requested_bytes
        if pool.size_bytes != reserved_pool_bytes(requested_bytes):
            self.emit(events.pool_not_as_requested(self.vm_id, pool, requested_bytes))
            self.warn(warnings.pool_not_as_requested(pool, requested_bytes))

    def _miss_pool(self, report: Report) -> None:
        due = self.facts.kind is VmKind.WSL2 and self.facts.requested_bytes > 0
        if due:
            warning = warnings.kernel_unsupported(report.kernel_release, self._manifest)
            if self.warn_once(warning):
                self.emit(events.kernel_unsupported(self.vm_id, warning.text))

    def _refuse(self, report: Report, refusal: InvalidArgumentError) -> None:
        self._trace_refusal(report, refusal)
        if self.pool is not None:
            return
        self.report = report.without_pool()
        self.warn_once(warnings.pool_refused(refusal))
        self.fire(VmEvent.APPLY_CAPABILITIES)

    def _conflict(
        self, report: Report, pool: SwiotlbPool | None, latched: SwiotlbPool
    ) -> FailedPreconditionError:
        conflict = FailedPreconditionError(
            "SWIOTLB_ALREADY_LATCHED",
            f"VM {self.vm_id} has latched pool {latched}; {pool or 'no pool'} differs and "
            "changes nothing. A pool is latched once in the life of a VM",
            vm_id=self.vm_id,
            latched=str(latched),
        )
        self._trace_refusal(report, conflict)
        return conflict

    def _trace_refusal(self, report: Report, refusal: PortholeError) -> None:
        self.emit(
            events.pool_refused(
                self.vm_id, report.base, report.size_bytes, refusal.reason, refusal.message
            )
        )
