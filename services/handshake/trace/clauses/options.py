"""The options of each device: the token, verbatim, exactly when a pool was latched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.options import parse_fs_options, parse_net_options
from services.handshake.trace.clause import Clause, Value, values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.handshake.trace.vm_trace import VmTrace


def _token_missing(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        if vm.token_due(device) is not None and not device.tokens:
            options = ";".join(device.options)
            yield f"{device} was added after the pool was latched: {options!r} lacks it"


def _token_mismatch(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        due = vm.token_due(device)
        if due is not None and device.tokens and device.tokens != [due]:
            yield f"{device} got {';'.join(device.tokens)!r}, but the VM's token is {due!r}"


def _token_unexpected(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        if vm.token_due(device) is None and device.tokens:
            why = "its device host takes none" if vm.latched else "no pool was latched"
            yield f"{device} got {';'.join(device.tokens)!r} although {why}"


def _options_malformed(vm: VmTrace) -> Iterator[str]:
    for device in vm.added_devices:
        items = device.options
        shown = f"{device}: its options {';'.join(items)!r}"
        if not all(items):
            yield f"{shown} have a stray ';'"
        elif items[-1] != f"vm_id={vm.vm_id}":
            yield f"{shown} do not end with this VM's id"
        else:
            # Other rules judge the token, and the part of its pool.
            judged = {*device.tokens, *device.aperture_items}
            others = ";".join(item for item in items if item not in judged)
            parse = parse_net_options if device.device_class == events.NET else parse_fs_options
            try:
                parse(others)
            except InvalidArgumentError as refusal:
                yield f"{shown} are refused: {refusal.message}"


_OPTIONS: Final = values(
    events.DEVICE_ADDED, keys=(events.DEVICE_OPTIONS, events.DEVICE_HOST_FEATURES)
)
_TOKEN: Final = Value(events.POOL_LATCHED, events.TOKEN)

CLAUSES: Final = (
    Clause(
        "TOKEN_MISSING",
        4,
        "A device that is added after a pool was latched has the token, if its device host takes "
        "one.",
        (*_OPTIONS, _TOKEN),
        _token_missing,
    ),
    Clause(
        "TOKEN_MISMATCH",
        4,
        "The token of a device is that of the latched pool, verbatim, and once.",
        (*_OPTIONS, _TOKEN),
        _token_mismatch,
    ),
    Clause(
        "TOKEN_UNEXPECTED",
        4,
        "A device that is added before a pool is latched, or whose device host takes none, has no "
        "token.",
        (*_OPTIONS, _TOKEN),
        _token_unexpected,
    ),
    Clause(
        "OPTIONS_MALFORMED",
        6,
        "Options are a name, known keys, and the VM's id last; no `;` is stray.",
        _OPTIONS,
        _options_malformed,
    ),
)
