"""The kernel of a Linux guest, as its mini_init reports it.

Owns what is made of a Hello: capabilities, and the span of the time that mini_init took.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from porthole.guest.v1 import mini_init_pb2
from porthole.handshake.v1 import guest_capabilities_pb2

from services.guest_init.guest import Reading
from services.handshake.errors import InvalidArgumentError
from services.rpc import tracing
from services.rpc.convert import capabilities_from_proto

if TYPE_CHECKING:
    from services.guest_init.channel.mini_init import Greeted, MiniInit

logger = logging.getLogger(__name__)

SPAN: Final = "MiniInit"
SOURCE_ATTRIBUTE: Final = "porthole.pool.source"

_BOOT_LIMIT_NS: Final = 3600 * 1_000_000_000
"""Longest time between the start of mini_init and its Hello that is believed."""


class GuestKernel:
    """Reads what the kernel of a Linux guest publishes, by way of its mini_init.

    Args:
        mini_init: The guest's process 1.
        wait_s: Longest wait for an answer, also of a guest that is still starting.
        traceparent: W3C context of the VM, empty if there is none.
    """

    def __init__(self, mini_init: MiniInit, wait_s: float, traceparent: str) -> None:
        self._mini_init = mini_init
        self._wait_s = wait_s
        self._traceparent = traceparent
        self._traced = False

    async def ready(self) -> None:
        """Wait until the guest has said hello, however long that takes."""
        self._trace(await self._mini_init.first_hello())

    async def read(self) -> Reading:
        """Ask for what the kernel publishes now.

        Raises:
            DeadlineExceededError: GUEST_SILENT.
            UnavailableError: GUEST_UNREACHABLE.
        """
        greeted = await self._mini_init.greet(self._wait_s)
        self._trace(greeted)
        return reading_of(greeted.hello)

    def _trace(self, greeted: Greeted) -> None:
        if self._traced:
            return
        self._traced = True
        hello = greeted.hello
        source = (
            mini_init_pb2.PoolSource.Name(hello.pool_source)
            if (hello.pool_source in mini_init_pb2.PoolSource.values())
            else str(hello.pool_source)
        )
        logger.info("mini_init says hello; pool source: %s", source)
        times = span_times(greeted)
        if times is not None:
            tracing.record(
                SPAN,
                *times,
                vm_traceparent=self._traceparent,
                attributes={SOURCE_ATTRIBUTE: source},
            )


def reading_of(hello: mini_init_pb2.Hello) -> Reading:
    """Return what a Hello reports. Half a pool counts as not published, as in every reader."""
    message = guest_capabilities_pb2.GuestCapabilities()
    message.CopyFrom(hello.capabilities)
    try:
        capabilities = capabilities_from_proto(message)
    except InvalidArgumentError as error:
        logger.warning("the guest reports half a pool: %s; it counts as not published", error)
        message.ClearField("swiotlb_pool")
        capabilities = capabilities_from_proto(message)
    for field in ("swiotlb_pool", "kernel_release", "seccomp_user_notification"):
        message.ClearField(field)
    return Reading(capabilities, message.SerializeToString())


def span_times(greeted: Greeted) -> tuple[int, int] | None:
    """Return when mini_init started and had read what its kernel publishes, by the host's clock.

    The guest's clock counts from its boot, so times are moved by the age of the message, as the
    guest tells it. None when the guest's times contradict each other.
    """
    hello = greeted.hello
    if not 0 < hello.started_ns <= hello.read_ns <= hello.sent_ns:
        return None
    if hello.sent_ns - hello.started_ns > _BOOT_LIMIT_NS:
        return None
    at_zero = greeted.received_unix_ns - hello.sent_ns
    return at_zero + hello.started_ns, at_zero + hello.read_ns
