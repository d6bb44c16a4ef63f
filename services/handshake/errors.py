"""The exception tree of Porthole. Every refusal is one of these errors.

    PortholeError
    ├── InvalidArgumentError     the value can never be accepted
    ├── NotFoundError            the thing named does not exist
    ├── AlreadyExistsError       the thing named exists already
    ├── FailedPreconditionError  the value is fine, the state is not
    ├── PermissionDeniedError    the caller may not do this to this thing
    ├── ResourceExhaustedError   a quota or a pool is used up
    ├── DeadlineExceededError    a peer did not answer, or a resource did not come free, in time
    └── UnavailableError         a peer cannot be reached

Each error carries a message for people (value, bound, remedy) and a machine-readable reason, and
says whether the same call may succeed when it is made again. services.rpc maps the kinds to gRPC
status codes.
"""

from __future__ import annotations

from typing import ClassVar


class PortholeError(Exception):
    """Base of every error that Porthole raises on purpose.

    Attributes:
        kind: Name of the canonical status (gRPC's names).
        retryable: Whether the same call may succeed later without other changes.
        reason: Machine-readable reason, upper snake case, stable across versions.
        message: One or two sentences for people.
        metadata: Further machine-readable facts, for instance the bound that was broken.
    """

    kind: ClassVar[str] = "UNKNOWN"
    retryable: ClassVar[bool] = False

    def __init__(self, reason: str, message: str, **metadata: str | int) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}


class InvalidArgumentError(PortholeError):
    """The value can never be accepted; a retry does not help."""

    kind = "INVALID_ARGUMENT"


class NotFoundError(PortholeError):
    """The thing named does not exist; a retry does not help."""

    kind = "NOT_FOUND"


class AlreadyExistsError(PortholeError):
    """The thing named exists already; a retry does not help."""

    kind = "ALREADY_EXISTS"


class FailedPreconditionError(PortholeError):
    """The state forbids the call; it helps only after the state has changed."""

    kind = "FAILED_PRECONDITION"


class PermissionDeniedError(PortholeError):
    """The caller may not do this to this thing; a retry does not help."""

    kind = "PERMISSION_DENIED"


class ResourceExhaustedError(PortholeError):
    """A quota or a pool is used up; a retry may help."""

    kind = "RESOURCE_EXHAUSTED"
    retryable = True


class DeadlineExceededError(PortholeError):
    """A peer did not answer, or a resource did not come free, in time; a retry may help."""

    kind = "DEADLINE_EXCEEDED"
    retryable = True


class UnavailableError(PortholeError):
    """A peer cannot be reached; a retry may help."""

    kind = "UNAVAILABLE"
    retryable = True
