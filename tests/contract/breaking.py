"""Finds changes of .proto files that break a peer built from the older ones.

Compares two descriptor sets. Files, messages, fields, enum values, services and methods may be
added. No change may alter the meaning of bytes or of a method path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.descriptor_pb2 import FieldDescriptorProto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.descriptor_pb2 import (
        DescriptorProto,
        EnumDescriptorProto,
        FileDescriptorSet,
        MethodDescriptorProto,
    )


def breaking_changes(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """Return the changes in `new` that break a peer built from `old`."""
    return [
        *_compare_messages(dict(_messages(old)), dict(_messages(new))),
        *_compare_enums(dict(_enums(old)), dict(_enums(new))),
        *_compare_methods(dict(_methods(old)), dict(_methods(new))),
    ]


def _messages(files: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    def walk(scope: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        name = f"{scope}.{message.name}"
        yield name, message
        for nested in message.nested_type:
            yield from walk(name, nested)

    for file in files.file:
        for message in file.message_type:
            yield from walk(file.package, message)


def _enums(files: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in files.file:
        for enum in file.enum_type:
            yield f"{file.package}.{enum.name}", enum
    for name, message in _messages(files):
        for enum in message.enum_type:
            yield f"{name}.{enum.name}", enum


def _methods(files: FileDescriptorSet) -> Iterator[tuple[str, MethodDescriptorProto]]:
    for file in files.file:
        for service in file.service:
            for method in service.method:
                yield f"{file.package}.{service.name}/{method.name}", method


def _compare_messages(
    old: dict[str, DescriptorProto], new: dict[str, DescriptorProto]
) -> Iterator[str]:
    for name, message in old.items():
        if name not in new:
            yield f"message {name} was removed"
            continue
        present = {field.number: field for field in new[name].field}
        for field in message.field:
            where = f"{name}.{field.name} = {field.number}"
            if field.number not in present:
                yield f"field {where} was removed or renumbered"
            else:
                yield from _compare_fields(where, field, present[field.number])


def _compare_fields(
    where: str, old: FieldDescriptorProto, new: FieldDescriptorProto
) -> Iterator[str]:
    if old.name != new.name:
        yield f"field {where} was renamed to {new.name}"
    if (old.type, old.type_name) != (new.type, new.type_name):
        yield (f"field {where} was retyped from {_type(old)} to {_type(new)}")
    if old.label != new.label:
        yield f"field {where} was changed between singular and repeated"
    if old.proto3_optional != new.proto3_optional:
        yield f"field {where} gained or lost `optional`"
    if old.HasField("oneof_index") != new.HasField("oneof_index"):
        yield f"field {where} was moved into or out of a oneof"


def _type(field: FieldDescriptorProto) -> str:
    return field.type_name or FieldDescriptorProto.Type.Name(field.type)


def _compare_enums(
    old: dict[str, EnumDescriptorProto], new: dict[str, EnumDescriptorProto]
) -> Iterator[str]:
    for name, enum in old.items():
        if name not in new:
            yield f"enum {name} was removed"
            continue
        present = {value.number: value.name for value in new[name].value}
        for value in enum.value:
            if value.number not in present:
                yield f"enum value {name}.{value.name} was removed or renumbered"
            elif present[value.number] != value.name:
                yield f"enum value {name}.{value.name} was renamed to {present[value.number]}"


def _compare_methods(
    old: dict[str, MethodDescriptorProto], new: dict[str, MethodDescriptorProto]
) -> Iterator[str]:
    for name, method in old.items():
        if name not in new:
            yield f"method {name} was removed"
        elif _shape(method) != _shape(new[name]):
            yield f"method {name} changed its messages or its streaming"


def _shape(method: MethodDescriptorProto) -> tuple[str, str, bool, bool]:
    return (
        method.input_type,
        method.output_type,
        method.client_streaming,
        method.server_streaming,
    )
