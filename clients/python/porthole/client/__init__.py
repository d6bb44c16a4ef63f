"""Clients of the VM owner: `VmOwner`, and `AsyncVmOwner` for asyncio.

Both are a thin layer over the generated stubs of `porthole.vmowner.v1`. They add addresses as URLs,
deadlines, typed errors, repeats of what is safe to repeat, and three helpers: all pages of ListVms,
WatchVm across broken streams, and the WSLC session.
"""

from porthole.client.aio import AsyncVmOwner
from porthole.client.errors import (
    AbortedError,
    AlreadyExistsError,
    CallCancelledError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    PortholeError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
)
from porthole.client.sync import VmOwner

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncVmOwner",
    "CallCancelledError",
    "DataLossError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "PortholeError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "VmOwner",
]
