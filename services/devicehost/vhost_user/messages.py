"""The syntax of every request that the back-end understands, as one table.

Owns payload lengths, numbers of descriptors and which protocol feature a request belongs to. Must
not know what was negotiated or what a request does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from services.handshake.errors import InvalidArgumentError
from services.wire.vhost_user import (
    CONFIG_MAX_BYTES,
    MAX_TABLE_REGIONS,
    PROTOCOL_F_BACKEND_REQ,
    PROTOCOL_F_CONFIG,
    PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    PROTOCOL_F_MQ,
    PROTOCOL_F_RESET_DEVICE,
    SINGLE_REGION_BYTES,
    U64,
    VRING_ADDR,
    VRING_INDEX_MASK,
    VRING_NO_FD,
    VRING_STATE,
    Config,
    Header,
    Request,
    VringAddr,
    VringState,
    parse_mem_table,
    parse_single_region,
    request_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class ProtocolError(InvalidArgumentError):
    """A front-end broke the vhost-user protocol; its connection is closed."""


@dataclass(slots=True)
class Command:
    """One request that is well formed.

    Attributes:
        request: Its type.
        body: The payload, parsed; its type follows from the request.
        fds: Descriptors that came with it. The back-end takes those that it keeps out of the list;
            the listener closes the rest.
        need_reply: Whether the sender wants a reply even if the request has no answer of its own.
    """

    request: Request
    body: Any
    fds: list[int]
    need_reply: bool


class FdIndex(NamedTuple):
    """Body of SET_VRING_KICK, SET_VRING_CALL and SET_VRING_ERR.

    Attributes:
        queue: Index of the queue.
        has_fd: Whether a descriptor comes with the message.
    """

    queue: int
    has_fd: bool


class Shape(NamedTuple):
    """The form of a well-formed request.

    Attributes:
        parse: Turns the payload into the body; None when the length is wrong.
        fds: The fewest and the most descriptors.
        feature: Protocol feature that must have been negotiated, as a mask; 0 for none.
        answers: Whether the request has an answer of its own.
    """

    parse: Callable[[bytes], Any]
    fds: tuple[int, int] = (0, 0)
    feature: int = 0
    answers: bool = False


_NOTHING: Final = ()


def _nothing(payload: bytes) -> tuple[()] | None:
    return None if payload else _NOTHING


def _u64(payload: bytes) -> int | None:
    return U64.unpack(payload)[0] if len(payload) == U64.size else None


def _state(payload: bytes) -> VringState | None:
    return VringState.parse(payload) if len(payload) == VRING_STATE.size else None


def _addr(payload: bytes) -> VringAddr | None:
    return VringAddr.parse(payload) if len(payload) == VRING_ADDR.size else None


def _fd_index(payload: bytes) -> FdIndex | None:
    value = _u64(payload)
    if value is None or value & ~(VRING_INDEX_MASK | VRING_NO_FD):
        return None
    return FdIndex(value & VRING_INDEX_MASK, not value & VRING_NO_FD)


def _region(payload: bytes) -> Any:
    return parse_single_region(payload) if len(payload) == SINGLE_REGION_BYTES else None


def _config(payload: bytes) -> Config | None:
    config = Config.parse(payload)
    if config is None or len(config.data) != config.size or config.size > CONFIG_MAX_BYTES:
        return None
    return config


SHAPES: Final[dict[Request, Shape]] = {
    Request.GET_FEATURES: Shape(_nothing, answers=True),
    Request.SET_FEATURES: Shape(_u64),
    Request.SET_OWNER: Shape(_nothing),
    Request.RESET_OWNER: Shape(_nothing),
    Request.SET_MEM_TABLE: Shape(parse_mem_table, fds=(0, MAX_TABLE_REGIONS)),
    Request.SET_VRING_NUM: Shape(_state),
    Request.SET_VRING_ADDR: Shape(_addr),
    Request.SET_VRING_BASE: Shape(_state),
    Request.GET_VRING_BASE: Shape(_state, answers=True),
    Request.SET_VRING_KICK: Shape(_fd_index, fds=(0, 1)),
    Request.SET_VRING_CALL: Shape(_fd_index, fds=(0, 1)),
    Request.SET_VRING_ERR: Shape(_fd_index, fds=(0, 1)),
    Request.GET_PROTOCOL_FEATURES: Shape(_nothing, answers=True),
    Request.SET_PROTOCOL_FEATURES: Shape(_u64),
    Request.GET_QUEUE_NUM: Shape(_nothing, feature=PROTOCOL_F_MQ, answers=True),
    Request.SET_VRING_ENABLE: Shape(_state),
    Request.SET_BACKEND_REQ_FD: Shape(_nothing, fds=(1, 1), feature=PROTOCOL_F_BACKEND_REQ),
    Request.GET_CONFIG: Shape(_config, feature=PROTOCOL_F_CONFIG, answers=True),
    Request.SET_CONFIG: Shape(_config, feature=PROTOCOL_F_CONFIG),
    Request.RESET_DEVICE: Shape(_nothing, feature=PROTOCOL_F_RESET_DEVICE),
    Request.GET_MAX_MEM_SLOTS: Shape(
        _nothing, feature=PROTOCOL_F_CONFIGURE_MEM_SLOTS, answers=True
    ),
    Request.ADD_MEM_REG: Shape(_region, fds=(1, 1), feature=PROTOCOL_F_CONFIGURE_MEM_SLOTS),
    # The specification lets a back-end accept one descriptor here, and close it.
    Request.REM_MEM_REG: Shape(_region, fds=(0, 1), feature=PROTOCOL_F_CONFIGURE_MEM_SLOTS),
}
"""Every request that this back-end serves; the others belong to features that it does not offer."""


def parse(header: Header, payload: bytes, fds: list[int]) -> Command | None:
    """Turn a message into a command; None for a request that is not in the table.

    Raises:
        ProtocolError: The payload's length or the number of descriptors is wrong.
    """
    if header.request not in SHAPES:
        return None
    request = Request(header.request)
    shape = SHAPES[request]
    body = shape.parse(payload)
    if body is None:
        raise ProtocolError(
            "MESSAGE_PAYLOAD",
            f"{request.name} with a payload of {len(payload)} bytes does not fit its form",
            request=request.name,
            size=len(payload),
        )
    fewest, most = shape.fds
    if request is Request.SET_MEM_TABLE:
        fewest = most = len(body)
    elif isinstance(body, FdIndex):
        fewest = most = int(body.has_fd)
    if not fewest <= len(fds) <= most:
        raise ProtocolError(
            "MESSAGE_DESCRIPTORS",
            f"{request_name(request)} came with {len(fds)} descriptors; "
            + (f"{most} belong to it" if fewest == most else f"{fewest} to {most} belong to it"),
            request=request.name,
            count=len(fds),
        )
    return Command(request, body, fds, header.need_reply)
