"""Errors across gRPC: a PortholeError as status, message and google.rpc.ErrorInfo, and back.

Owns the mapping in both directions.
"""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.handshake.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PortholeError,
    ResourceExhaustedError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

DOMAIN: Final = "porthole.17352900-177d-4f9f-bea9-70de4def83c8"
"""`domain` of every ErrorInfo that Porthole sends (docs/adr/0017-error-domain.md)."""

DETAILS_KEY: Final = "grpc-status-details-bin"
"""Trailing metadata that carries google.rpc.Status (grpc.io, "Richer error model")."""

MESSAGE_LIMIT_BYTES: Final = 1024
"""Messages are cut to this length; gRPC drops an error with over 8 KiB of trailing metadata."""

METADATA_LIMIT: Final = 8
"""Most pairs of ErrorInfo.metadata that are sent."""

METADATA_LIMIT_BYTES: Final = 160
"""Values of ErrorInfo.metadata are cut to this length."""

_KINDS: Final[Mapping[str, type[PortholeError]]] = {
    kind.kind: kind
    for kind in (
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        PermissionDeniedError,
        ResourceExhaustedError,
        DeadlineExceededError,
        UnavailableError,
    )
}

# The errors for statuses that gRPC itself sets, on either side; no service of ours sets them.
_FOREIGN: Final[Mapping[grpc.StatusCode, tuple[type[PortholeError], str]]] = {
    grpc.StatusCode.UNAVAILABLE: (UnavailableError, "PEER_UNAVAILABLE"),
    grpc.StatusCode.CANCELLED: (UnavailableError, "PEER_CANCELLED"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (DeadlineExceededError, "PEER_DEADLINE_EXCEEDED"),
    grpc.StatusCode.UNIMPLEMENTED: (FailedPreconditionError, "METHOD_UNIMPLEMENTED"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (ResourceExhaustedError, "PEER_RESOURCE_EXHAUSTED"),
}


def code_of(error: PortholeError) -> grpc.StatusCode:
    """Return the status code of an error's kind."""
    return grpc.StatusCode[error.kind]


def status_of(error: PortholeError) -> status_pb2.Status:
    """Write an error as google.rpc.Status with one ErrorInfo.

    The message and the metadata are cut to fit gRPC's trailing metadata. They are made valid UTF-8,
    because they may quote a guest.
    """
    info = error_details_pb2.ErrorInfo(
        reason=error.reason,
        domain=DOMAIN,
        metadata={
            key: _cut(value, METADATA_LIMIT_BYTES)
            for key, value in islice(error.metadata.items(), METADATA_LIMIT)
        },
    )
    status = status_pb2.Status(
        code=code_of(error).value[0], message=_cut(error.message, MESSAGE_LIMIT_BYTES)
    )
    status.details.add().Pack(info)
    return status


def error_from_rpc(call_error: grpc.aio.AioRpcError, peer: str = "") -> PortholeError:
    """Turn the failure of a call into the error that the peer raised.

    A status that gRPC itself set becomes an error whose reason starts with PEER_ or METHOD_. Any
    other status becomes a plain PortholeError, PEER_FAILED.

    Args:
        call_error: The failure.
        peer: Name of the peer; it is put before the messages of errors that no service raised.
    """
    message = call_error.details() or call_error.code().name
    info = _error_info(call_error)
    if info is not None:
        kind = _KINDS.get(call_error.code().name, PortholeError)
        error = kind(info.reason, message)
        error.metadata = dict(info.metadata)
        return error
    kind, reason = _FOREIGN.get(
        call_error.code(), (_KINDS.get(call_error.code().name, PortholeError), "PEER_FAILED")
    )
    return kind(reason, f"{peer}: {message}" if peer else message, code=call_error.code().name)


def _error_info(call_error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    info = error_details_pb2.ErrorInfo()
    try:
        status = rpc_status.from_call(call_error)
        for detail in status.details if status is not None else ():
            if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
                return info
    except (ValueError, DecodeError):
        logger.debug("a peer's error details contradict themselves")
    return None


def _cut(text: str, limit_bytes: int) -> str:
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= limit_bytes:
        return raw.decode()
    return raw[: limit_bytes - 3].decode("utf-8", "ignore") + "…"
