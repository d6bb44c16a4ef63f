"""Floor 2: the WSLC session, a client of guest init and of the VM owner.

A small public library: `apply_guest_capabilities` does the whole of it in one call, `Session` step
by step. Knows neither the owner's nor the guest's inside.
"""

from services.session.session import Session, apply_guest_capabilities, open_session

__all__ = ["Session", "apply_guest_capabilities", "open_session"]
