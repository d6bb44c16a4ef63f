"""The ids that a client chooses, so that it can repeat a request whose answer was lost.

Owns their syntax, and the comparison of a repeated request with the first.
"""

from __future__ import annotations

import dataclasses
import re
import uuid
from typing import TYPE_CHECKING, Final

from services.handshake.errors import AlreadyExistsError, InvalidArgumentError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# What the device host accepts.
_INSTANCE_ID: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}", re.ASCII)


def check_vm_id(vm_id: str) -> None:
    """Refuse what is not a UUID in its usual form, in lower case.

    Raises:
        InvalidArgumentError: VM_ID_SYNTAX.
    """
    try:
        usual = str(uuid.UUID(vm_id))
    except ValueError:
        usual = ""
    if usual != vm_id:
        raise InvalidArgumentError(
            "VM_ID_SYNTAX",
            f"VM id {vm_id[:64]!r} is not a UUID like {uuid.UUID(int=1)}, in lower case",
            vm_id=vm_id,
        )


def check_instance_id(instance_id: str) -> None:
    """Refuse what no device can have for an id.

    Raises:
        InvalidArgumentError: INSTANCE_ID_SYNTAX.
    """
    if not _INSTANCE_ID.fullmatch(instance_id):
        raise InvalidArgumentError(
            "INSTANCE_ID_SYNTAX",
            f"instance id {instance_id[:80]!r} must be 1 to 64 letters, digits, '-' and '_'",
            instance_id=instance_id,
        )


def require_same(
    reason: str, what: str, first: DataclassInstance, repeated: DataclassInstance
) -> None:
    """Refuse a request whose id is that of another one.

    Args:
        reason: The reason of the refusal.
        what: What has the id, for the message.
        first: The request that was granted.
        repeated: The present request; of the same class.

    Raises:
        AlreadyExistsError: With `reason`; it names the fields that differ.
    """
    differing = [
        field.name
        for field in dataclasses.fields(first)
        if getattr(first, field.name) != getattr(repeated, field.name)
    ]
    if differing:
        fields = ", ".join(differing)
        raise AlreadyExistsError(
            reason,
            f"{what} exists, and was asked for with another {fields}; repeat that request, or "
            "choose another id",
            fields=fields,
        )
