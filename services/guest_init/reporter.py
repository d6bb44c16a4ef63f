"""The report of a WSL2 guest: one ReportGuestCapabilities when its init starts.

Owns the retries. A refusal is logged and has no other consequence: the guest runs without a pool.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from services.guest_init.clients import init_channel
from services.handshake.errors import PortholeError
from services.rpc import tracing

if TYPE_CHECKING:
    from services.guest_init.guest import Guest

logger = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0


async def report(guest: Guest, owner_address: str, *, wait_s: float) -> bool:
    """Report what the kernel published to the VM owner.

    A retryable failure is retried with growing pauses until it succeeds, because the owner may
    restart. Any other refusal is final.

    Args:
        guest: The guest whose capabilities are reported.
        owner_address: The VM's init channel.
        wait_s: Longest that one attempt waits for the owner to come up.

    Returns:
        Whether the owner has latched the pool; also False when it refused the report.
    """
    await guest.kernel.ready()  # before any span, so that the trace of a VM that runs is whole
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            with tracing.operation("ReportGuestCapabilities", vm_traceparent=guest.traceparent):
                return await _report_once(guest, owner_address, wait_s)
        except PortholeError as error:
            if not error.retryable:
                logger.warning(
                    "the owner refused this guest's capabilities: %s; running without a pool",
                    error.message,
                )
                return False
            logger.info("the report was not made: %s; retrying in %g s", error.message, pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def _report_once(guest: Guest, owner_address: str, wait_s: float) -> bool:
    async with init_channel(owner_address, wait_s) as owner:
        # A span that ends before the owner answers: the trace of a VM that runs is whole.
        with tracing.operation("ReadGuestCapabilities", vm_traceparent=guest.traceparent):
            reading = await guest.kernel.read()
        latched = await owner.report(reading)
    capabilities = reading.capabilities
    logger.info(
        "reported kernel %s, pool %s; latched: %s",
        capabilities.kernel_release,
        capabilities.pool or "none",
        latched,
    )
    return latched
