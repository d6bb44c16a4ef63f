"""Floor 2: the WSLC session, a client of guest init and of the VM owner.

A small public library: `apply_guest_capabilities` does everything in one call, `Session` does it
step by step. Must not know the inside of the owner or of the guest.
"""

from services.session.session import Session, apply_guest_capabilities, open_session

__all__ = ["Session", "apply_guest_capabilities", "open_session"]
