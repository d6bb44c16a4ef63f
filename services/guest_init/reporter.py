"""The push of a WSL2 guest: one ReportGuestCapabilities when its init starts.

Owns how long it is tried and what a refusal means here: nothing, but a line in the log. A guest
runs without a pool when its owner wants none of it.
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
    """Push what the kernel published to the VM owner.

    A failure that a retry may mend is retried with growing pauses, for as long as it lasts: an
    owner that restarts still wants to know. Any other refusal is final.

    Args:
        guest: What to report.
        owner_address: The VM's init channel.
        wait_s: How long one attempt waits for the owner to come up.

    Returns:
        Whether the owner has latched the pool; False also when it refused.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            with tracing.operation("ReportGuestCapabilities", vm_traceparent=guest.traceparent):
                return await _push(guest, owner_address, wait_s)
        except PortholeError as error:
            if not error.retryable:
                logger.warning(
                    "the owner refused this guest's capabilities: %s; running without a pool",
                    error.message,
                )
                return False
            logger.info("the owner was not told: %s; again in %g s", error.message, pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, LONGEST_PAUSE_S)


async def _push(guest: Guest, owner_address: str, wait_s: float) -> bool:
    async with init_channel(owner_address, wait_s) as owner:
        capabilities = guest.capabilities()
        latched = await owner.report(capabilities)
    logger.info(
        "reported kernel %s, pool %s; latched: %s",
        capabilities.kernel_release,
        capabilities.pool or "none",
        latched,
    )
    return latched
