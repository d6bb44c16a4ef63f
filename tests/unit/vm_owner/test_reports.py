"""The rule of each field of GuestCapabilities, and a message that is taken apart and kept whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from porthole.handshake.v1.guest_capabilities_pb2 import GuestCapabilities, SwiotlbPool

from services.vm_owner.convert import report_from_proto
from services.vm_owner.reports import (
    FIELD_RULES,
    POOL,
    UNKNOWN,
    FieldRule,
    Report,
    latched_differences,
    refreshed,
)
from tests.support.reports import UNKNOWN_FIELD, reported

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor

FULL = (0x3C00_0000, 64 << 20, "6.18.26.3", True, UNKNOWN_FIELD)


def _set(message: GuestCapabilities, descriptor: FieldDescriptor) -> None:
    """Give a field a value other than its default, whatever its type."""
    if descriptor.message_type is not None:
        getattr(message, descriptor.name).SetInParent()
        return
    default = descriptor.default_value
    setattr(message, descriptor.name, {bool: True, str: "x", bytes: b"x"}.get(type(default), 1))


def test_every_field_has_a_rule_in_the_order_of_the_numbers() -> None:
    fields = GuestCapabilities.DESCRIPTOR.fields
    assert list(FIELD_RULES) == [field.name for field in sorted(fields, key=lambda f: f.number)]
    refreshable = [name for name, rule in FIELD_RULES.items() if rule is FieldRule.REFRESHABLE]
    assert all(hasattr(Report(), name) for name in refreshable)


@pytest.mark.parametrize(
    "field", [*GuestCapabilities.DESCRIPTOR.fields], ids=lambda field: field.name
)
def test_every_field_is_kept_apart_and_with_the_rest_it_is_the_message(
    field: FieldDescriptor,
) -> None:
    message = GuestCapabilities.FromString(UNKNOWN_FIELD)
    _set(message, field)
    report = report_from_proto(message)
    assert list(report.fields) == [field.name, UNKNOWN]
    assert report.fields[UNKNOWN] == UNKNOWN_FIELD
    assert report.message == message.SerializeToString()


def test_a_field_of_a_field_that_is_unknown_belongs_to_it() -> None:
    deep = b"\x0a\x03\xe8\x04\x04"  # field 77 of the pool
    message = GuestCapabilities(swiotlb_pool=SwiotlbPool(base=4096, size_bytes=4096))
    message.MergeFromString(deep + UNKNOWN_FIELD)
    report = report_from_proto(message)
    assert report.message == message.SerializeToString()
    assert deep[2:] in report.fields[POOL]
    assert report.without_pool().message == UNKNOWN_FIELD
    assert (report.without_pool().base, report.without_pool().size_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (FULL, []),
        ((0x3C00_0000, 32 << 20, *FULL[2:]), ["swiotlb_pool"]),
        ((*FULL[:2], "6.18.26.4", *FULL[3:]), ["kernel_release"]),
        ((*FULL[:3], False, UNKNOWN_FIELD), []),
        ((*FULL[:3], None, UNKNOWN_FIELD), []),
        ((*FULL[:4], b""), ["unknown fields"]),
        ((), ["swiotlb_pool", "kernel_release", "unknown fields"]),
    ],
)
def test_the_latched_fields_are_compared_and_no_others(
    changed: tuple[int, int, str, bool | None, bytes], names: list[str]
) -> None:
    assert latched_differences(reported(*FULL), reported(*changed)) == names


def test_what_is_in_force_stays_in_the_order_of_the_message() -> None:
    without = reported(*FULL[:3], None, UNKNOWN_FIELD)
    assert refreshed(without, reported(*FULL)) == reported(*FULL)
    assert refreshed(reported(*FULL), without) == reported(*FULL)
