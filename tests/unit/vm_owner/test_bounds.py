"""How much a client may put into a VM."""

from __future__ import annotations

import pytest

from services.handshake.errors import InvalidArgumentError, ResourceExhaustedError
from services.vm_owner.bounds import check_length, require_room

MIB = 1 << 20


def test_options_of_4096_characters_and_no_more() -> None:
    check_length("data", "x" * 4096)
    with pytest.raises(InvalidArgumentError, match="4097 characters, more than 4096") as refused:
        check_length("data", "x" * 4097)
    assert refused.value.reason == "OPTIONS_TOO_LONG"
    assert refused.value.metadata == {"limit": "4096"}


def test_texts_of_a_mebibyte_and_no_more() -> None:
    present = [("tag", "/path")] * 900
    used = 900 * (1024 + 8)
    room = MIB - used - 1024
    require_room("vm-1", "shares", present, ("", "x" * room))
    with pytest.raises(ResourceExhaustedError, match="VM vm-1's shares take") as refused:
        require_room("vm-1", "shares", present, ("y", "x" * room))
    assert refused.value.reason == "VM_TEXTS_LIMIT"
    assert refused.value.metadata == {
        "vm_id": "vm-1",
        "used": str(used),
        "asked": str(MIB - used + 1),
        "total": str(MIB),
    }


def test_texts_count_as_the_bytes_that_a_message_has() -> None:
    with pytest.raises(ResourceExhaustedError):
        require_room("vm-1", "devices", [], ("\N{EURO SIGN}" * (MIB // 3),))
