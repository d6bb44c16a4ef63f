"""What the readers of traces share: ids, the called service, and the error with its place.

Must not know any format.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.handshake.events import Attribute

WRONG_FORM: Final = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
"""What is raised where JSON has another form than a reader expects."""


def refusal(where: str, why: str) -> InvalidArgumentError:
    """Return the error for text that is no trace.

    Args:
        where: The file and the place in it.
        why: What is wrong there.
    """
    return InvalidArgumentError("TRACE_SYNTAX", f"{where}: {why}", where=where)


def unpadded_id(text: str, digits: int) -> str:
    """Return an id whose leading zeros may have been left out, with all of its digits.

    Raises:
        ValueError: It is none.
    """
    return checked_id(text.rjust(digits, "0"), digits)


def checked_id(text: str, digits: int) -> str:
    """Return an id in lower case.

    Args:
        text: The id in hexadecimal; or in base64, as the JSON form of protobuf has bytes.
        digits: Number of its hexadecimal digits.

    Raises:
        ValueError: It is none.
    """
    found = text
    if len(text) != digits:
        with suppress(ValueError):
            found = base64.b64decode(text + "=" * (-len(text) % 4), validate=True).hex()
    if len(found) != digits or int(found, 16) == 0:
        raise ValueError(
            f"{text!r} is not an id of {digits} hexadecimal digits, or of as many in base64"
        )
    return found.lower()


def called_service(attributes: Mapping[str, Attribute]) -> str:
    """Return the gRPC service whose call the span of these attributes is; empty: none."""
    # The method has its service in front; older conventions have it as an attribute of its own.
    service, slash, _ = str(attributes.get("rpc.method", "")).lstrip("/").rpartition("/")
    return service if slash else str(attributes.get("rpc.service", ""))
