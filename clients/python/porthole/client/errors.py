"""The errors of a call, one class for each gRPC status; the reason is in the error.

Owns the tree, and how a failed call becomes one of its errors. Must not know methods.

PortholeError has a subclass for each status but OK and UNKNOWN. Decide by the class or by `reason`,
and show the message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DOMAIN: Final = "porthole.17352900-177d-4f9f-bea9-70de4def83c8"
"""`domain` of every ErrorInfo that Porthole sends."""

_DETAILS_KEY: Final = "grpc-status-details-bin"


class PortholeError(Exception):
    """A call failed.

    Attributes:
        code: The gRPC status.
        reason: Name of a value of porthole.errors.v1.ErrorReason. A newer service may send a name
            that this version does not know; it is kept. Where no service of Porthole has answered,
            the reason begins with PEER_ or METHOD_.
        message: One or two sentences for people.
        metadata: Further facts for programs, for instance the bound that was broken.
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN
    foreign_reason: ClassVar[str] = "PEER_FAILED"
    """The reason where the status comes without an ErrorInfo of Porthole."""

    def __init__(self, reason: str, message: str, metadata: Mapping[str, str] | None = None):
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]"


class CallCancelledError(PortholeError):
    """The call was cancelled before the owner answered."""

    code = grpc.StatusCode.CANCELLED
    foreign_reason = "PEER_CANCELLED"


class InvalidArgumentError(PortholeError):
    """The value can never be accepted."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class DeadlineExceededError(PortholeError):
    """A peer did not answer, or a resource did not come free, in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    foreign_reason = "PEER_DEADLINE_EXCEEDED"


class NotFoundError(PortholeError):
    """The thing named does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(PortholeError):
    """The thing named exists already."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDeniedError(PortholeError):
    """The caller may not do this to this thing."""

    code = grpc.StatusCode.PERMISSION_DENIED


class ResourceExhaustedError(PortholeError):
    """A quota or a pool is used up."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    foreign_reason = "PEER_RESOURCE_EXHAUSTED"


class FailedPreconditionError(PortholeError):
    """The value is fine, the state is not."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(PortholeError):
    """The peer gave the call up; Porthole does not use this status."""

    code = grpc.StatusCode.ABORTED


class OutOfRangeError(PortholeError):
    """A value is out of range; Porthole does not use this status."""

    code = grpc.StatusCode.OUT_OF_RANGE


class UnimplementedError(PortholeError):
    """The peer is older than the method, or another service."""

    code = grpc.StatusCode.UNIMPLEMENTED
    foreign_reason = "METHOD_UNIMPLEMENTED"


class InternalError(PortholeError):
    """The peer failed; its log has the cause."""

    code = grpc.StatusCode.INTERNAL


class UnavailableError(PortholeError):
    """The peer cannot be reached, or one that it needs."""

    code = grpc.StatusCode.UNAVAILABLE
    foreign_reason = "PEER_UNAVAILABLE"


class DataLossError(PortholeError):
    """Data is lost; Porthole does not use this status."""

    code = grpc.StatusCode.DATA_LOSS


class UnauthenticatedError(PortholeError):
    """The peer, or a proxy before it, wants credentials."""

    code = grpc.StatusCode.UNAUTHENTICATED


class FailedCall(Protocol):
    """What grpc.RpcError of a synchronous call and grpc.aio.AioRpcError have in common."""

    def code(self) -> grpc.StatusCode:
        """Return the status."""

    def details(self) -> str | None:
        """Return the message."""

    def trailing_metadata(self) -> Any:
        """Return pairs of key and value, or None."""


_CLASSES: Final[Mapping[grpc.StatusCode, type[PortholeError]]] = {
    each.code: each for each in PortholeError.__subclasses__()
}

# google.rpc.Status with its Any, and google.rpc.ErrorInfo, in a pool of their own: the package that
# has them is no dependency, and the names stay free for it.
_FILE: Final = """
name: "porthole/client/errors.proto" package: "porthole.client" syntax: "proto3"
message_type { name: "Status"
  field { name: "code" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL }
  field { name: "details" number: 3 type: TYPE_MESSAGE label: LABEL_REPEATED
          type_name: ".porthole.client.Detail" } }
message_type { name: "Detail"
  field { name: "type_url" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "value" number: 2 type: TYPE_BYTES label: LABEL_OPTIONAL } }
message_type { name: "ErrorInfo"
  field { name: "reason" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "domain" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "metadata" number: 3 type: TYPE_MESSAGE label: LABEL_REPEATED
          type_name: ".porthole.client.ErrorInfo.MetadataEntry" }
  nested_type { name: "MetadataEntry" options { map_entry: true }
    field { name: "key" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL }
    field { name: "value" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL } } }
"""
_POOL: Final = descriptor_pool.DescriptorPool()
_POOL.AddSerializedFile(
    text_format.Parse(_FILE, descriptor_pb2.FileDescriptorProto()).SerializeToString()
)


def _message_class(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"porthole.client.{name}"))


_Status: Final = _message_class("Status")
_ErrorInfo: Final = _message_class("ErrorInfo")


def error_from(call: FailedCall, peer: str) -> PortholeError:
    """Return the error of a failed call.

    Args:
        call: The failure that gRPC raised.
        peer: Address of the peer; it is put before messages that no service of Porthole wrote.
    """
    code = call.code()
    kind = _CLASSES.get(code, PortholeError)
    message = call.details() or code.name
    info = _error_info(call)
    if info is None:
        error = kind(kind.foreign_reason, f"{peer}: {message}")
    else:
        error = kind(info.reason, message, info.metadata)
    error.code = code
    return error


def _error_info(call: FailedCall) -> Any:
    pairs: Iterable[tuple[str, str | bytes]] = call.trailing_metadata() or ()
    try:
        for key, value in pairs:
            if key != _DETAILS_KEY or not isinstance(value, bytes):
                continue
            status = _Status.FromString(value)
            for detail in status.details if status.code == call.code().value[0] else ():
                if detail.type_url.endswith("/google.rpc.ErrorInfo"):
                    info = _ErrorInfo.FromString(detail.value)
                    if info.domain == DOMAIN:
                        return info
    except DecodeError:
        return None
    return None
