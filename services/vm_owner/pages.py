"""Pages of the list of VMs: their sizes, tokens and views.

Owns the checks of what ListVms is asked for. A token stands for the last VM of its page.
"""

from __future__ import annotations

import re
from typing import Final

from porthole.vmowner.v1 import vm_owner_pb2

from services.handshake.errors import InvalidArgumentError

PAGE_SIZE: Final = 50
"""VMs of a page when the request gives no size."""

PAGE_SIZE_LIMIT: Final = 100
"""Most VMs of a page."""

PAGE_LIMIT_BYTES: Final = 1 << 20
"""Most bytes of a page of several VMs; gRPC accepts messages of up to 4 MiB."""


def is_full_view(view: int) -> bool:
    """Convert the view of a VM: whether all fields are wanted.

    Raises:
        InvalidArgumentError: VM_VIEW_UNKNOWN.
    """
    if view not in vm_owner_pb2.VmView.values():
        raise InvalidArgumentError(
            "VM_VIEW_UNKNOWN",
            f"view {view} of a VM is not known; the known ones are "
            + ", ".join(f"{name} ({number})" for name, number in vm_owner_pb2.VmView.items()),
            view=view,
        )
    return view == vm_owner_pb2.VM_VIEW_FULL


def page_size(size: int) -> int:
    """Convert the size of a page: 1 to PAGE_SIZE_LIMIT.

    Raises:
        InvalidArgumentError: PAGE_SIZE.
    """
    if size < 0:
        raise InvalidArgumentError("PAGE_SIZE", f"a page of {size} VMs; give 0 or more", size=size)
    return min(size or PAGE_SIZE, PAGE_SIZE_LIMIT)


def number_of(token: str) -> int:
    """Convert a page token to the number of the last VM before the page; empty: 0.

    Raises:
        InvalidArgumentError: PAGE_TOKEN.
    """
    if not re.fullmatch(r"(after-[0-9]{1,18})?", token):
        raise InvalidArgumentError(
            "PAGE_TOKEN",
            f"page token {token[:32]!r} is none that ListVms returned; begin anew without one",
        )
    return int(token.removeprefix("after-") or 0)


def token_of(number: int) -> str:
    """Convert the number of the last VM of a page to the token of the next page."""
    return f"after-{number}"
