"""One front-end's connection: what was offered, what was negotiated, and what may follow.

Does no I/O: a message goes in, a command or a reply comes out, and the outcome of a command makes
its reply. The syntax is checked first (`messages`), then the meaning against what was negotiated.
Must not know sockets, rings or guest memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from services.devicehost.vhost_user.messages import SHAPES, Command, ProtocolError, parse
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.wire.vhost_user import (
    CONFIG_MAX_BYTES,
    F_PROTOCOL_FEATURES,
    FLAG_REPLY,
    PROTOCOL_F_BACKEND_REQ,
    PROTOCOL_F_CONFIG,
    PROTOCOL_F_CONFIGURE_MEM_SLOTS,
    PROTOCOL_F_MQ,
    PROTOCOL_F_REPLY_ACK,
    PROTOCOL_F_RESET_DEVICE,
    U64,
    VERSION,
    Config,
    Header,
    Request,
    VringState,
    reply,
    request_name,
)
from services.wire.virtio_ring import (
    F_ACCESS_PLATFORM,
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_VERSION_1,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.handshake.errors import PortholeError

TRANSPORT_FEATURES: Final = (
    F_VERSION_1 | F_ACCESS_PLATFORM | F_INDIRECT_DESC | F_EVENT_IDX | F_PROTOCOL_FEATURES
)
"""Offered for every device, beside the device type's own features."""

PROTOCOL_FEATURES: Final = (
    PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK | PROTOCOL_F_BACKEND_REQ | PROTOCOL_F_RESET_DEVICE
)
"""Offered for every device."""

_OK: Final = 0
_ERROR: Final = 1


@dataclass(frozen=True, slots=True)
class Offer:
    """The features and limits that a back-end offers to every front-end.

    Attributes:
        features: Virtio feature bits, TRANSPORT_FEATURES included.
        protocol_features: Of vhost-user.
        num_queues: Virtqueues.
        config: Returns the device's configuration space as it is now.
        max_mem_slots: Regions of guest memory that the back-end takes.
    """

    features: int
    protocol_features: int
    num_queues: int
    config: Callable[[], bytes]
    max_mem_slots: int


def protocol_features(*, keeps_descriptors: bool, offers_config: bool) -> int:
    """Return the vhost-user features that a device offers, as a mask.

    Args:
        keeps_descriptors: Whether the device keeps the descriptors of guest memory. One that closes
            them offers no memory slots: without these a front-end sends the whole table, with
            descriptors, each time that it starts the device.
        offers_config: Whether a front-end can ask for the configuration space.
    """
    features = PROTOCOL_FEATURES
    if keeps_descriptors:
        features |= PROTOCOL_F_CONFIGURE_MEM_SLOTS
    if offers_config:
        features |= PROTOCOL_F_CONFIG
    return features


class Connection:
    """The negotiated state of one connection.

    Attributes:
        protocol_features: Those that the front-end accepted, as a mask.
    """

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self.protocol_features = 0

    def receive(self, header: Header, payload: bytes, fds: list[int]) -> Command | bytes | None:
        """Take one message.

        Args:
            header: As it came.
            payload: Exactly `header.size` bytes.
            fds: Descriptors that came with it; they stay the caller's, see Command.

        Returns:
            A command for the back-end, whose outcome goes to `answer` or `refusal_reply`; or the
            whole reply, if no back-end is needed for it; or None, if the message wants no reply.

        Raises:
            ProtocolError: The message is malformed, or it is refused and wants no reply; the
                connection must be closed.
        """
        if header.version != VERSION or header.flags & FLAG_REPLY:
            raise ProtocolError(
                "MESSAGE_FLAGS",
                f"{request_name(header.request)} has flags 0x{header.flags:x}; a request has "
                f"version {VERSION} and no reply flag",
                flags=header.flags,
            )
        command = parse(header, payload, fds)
        try:
            if command is None:
                raise InvalidArgumentError(
                    "MESSAGE_UNKNOWN",
                    f"{request_name(header.request)} belongs to no feature that is offered",
                    request=header.request,
                )
            self._check(command)
            known = self._answer_myself(command)
        except (InvalidArgumentError, FailedPreconditionError) as error:
            return self._refusal_reply(header.request, header.need_reply, error)
        if known is not None:
            return known
        if command.request is Request.SET_OWNER:
            return self.answer(command, None)
        return command

    def answer(self, command: Command, outcome: VringState | None) -> bytes | None:
        """Write the reply to a command that was carried out; None when it wants none."""
        if outcome is not None:
            return reply(command.request, outcome.pack())
        if command.need_reply and self.protocol_features & PROTOCOL_F_REPLY_ACK:
            return reply(command.request, U64.pack(_OK))
        return None

    def refusal_reply(self, command: Command, error: PortholeError) -> bytes:
        """Write the reply to a command that was refused.

        Raises:
            ProtocolError: Only a closed connection can report the refusal to the front-end.
        """
        return self._refusal_reply(command.request, command.need_reply, error)

    def _refusal_reply(self, request: int, need_reply: bool, error: PortholeError) -> bytes:
        answers = request in SHAPES and SHAPES[Request(request)].answers
        if need_reply and not answers and self.protocol_features & PROTOCOL_F_REPLY_ACK:
            return reply(request, U64.pack(_ERROR))
        raise ProtocolError(error.reason, error.message, **error.metadata) from error

    def _check(self, command: Command) -> None:
        feature = SHAPES[command.request].feature
        usable = self.protocol_features | self._offer.protocol_features & _OFFER_SUFFICES
        if feature & ~usable:
            raise FailedPreconditionError(
                "FEATURE_NOT_NEGOTIATED",
                f"{command.request.name} belongs to protocol feature 0x{feature:x}, which was not "
                "negotiated",
                feature=feature,
            )
        queue = getattr(command.body, "queue", 0)
        if queue >= self._offer.num_queues:
            raise InvalidArgumentError(
                "QUEUE_INDEX",
                f"{command.request.name} names queue {queue}; the device has "
                f"{self._offer.num_queues}",
                queue=queue,
                bound=self._offer.num_queues,
            )

    def _answer_myself(self, command: Command) -> bytes | None:
        request, offer = command.request, self._offer
        if request is Request.SET_FEATURES:
            _check_accepted(request, command.body, offer.features)
        elif request is Request.SET_PROTOCOL_FEATURES:
            _check_accepted(request, command.body, offer.protocol_features)
            self.protocol_features = command.body
        elif request is Request.GET_CONFIG:
            return reply(request, self._config(command.body))
        elif request in _NUMBERS:
            return reply(request, U64.pack(_NUMBERS[request](offer)))
        return None

    def _config(self, wanted: Config) -> bytes:
        end = wanted.offset + wanted.size
        # The rest of the largest possible space reads as zeros. A range past it is an error, which
        # an empty payload reports.
        if end > CONFIG_MAX_BYTES:
            return b""
        data = self._offer.config().ljust(CONFIG_MAX_BYTES, b"\0")[wanted.offset : end]
        return Config(wanted.offset, wanted.size, wanted.flags, data).pack()


def _check_accepted(request: Request, accepted: int, offered: int) -> None:
    if accepted & ~offered:
        raise InvalidArgumentError(
            "FEATURE_NOT_OFFERED",
            f"{request.name} accepts 0x{accepted & ~offered:x}, which was not offered",
            offered=offered,
            accepted=accepted,
        )


_OFFER_SUFFICES: Final = PROTOCOL_F_MQ | PROTOCOL_F_BACKEND_REQ | PROTOCOL_F_RESET_DEVICE
_NUMBERS: Final[dict[Request, Callable[[Offer], int]]] = {
    Request.GET_FEATURES: lambda offer: offer.features,
    Request.GET_PROTOCOL_FEATURES: lambda offer: offer.protocol_features,
    Request.GET_QUEUE_NUM: lambda offer: offer.num_queues,
    Request.GET_MAX_MEM_SLOTS: lambda offer: offer.max_mem_slots,
}
