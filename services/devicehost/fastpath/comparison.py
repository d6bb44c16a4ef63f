"""Compares Python's declarations of the native library with the tables that the library exports.

The compiler makes these tables (native/layouts.c), so they are true of the library. A library that
was built from other sources differs in some row, and is refused before it is used. Must not know
what the declarations are for.
"""

from __future__ import annotations

import ctypes
import itertools
import re
from typing import TYPE_CHECKING, Any, Final

from services.devicehost.fastpath.declarations import CONSTANTS, FUNCTIONS, STRUCTURES

if TYPE_CHECKING:
    from collections.abc import Iterator

_TYPES: Final[dict[object, str]] = {
    None: "void",
    ctypes.c_bool: "bool",
    ctypes.c_int32: "int32_t",
    ctypes.c_int64: "int64_t",
    ctypes.c_uint32: "uint32_t",
    ctypes.c_uint64: "uint64_t",
    ctypes.c_void_p: "void *",
    ctypes.c_char_p: "char *",
    **{ctypes.POINTER(layout): f"struct {name} *" for name, layout in STRUCTURES.items()},
}


class MismatchError(Exception):
    """The library and Python declare something differently."""


def compare(library: ctypes.CDLL) -> None:
    """Compare all layouts, constants and signatures.

    Args:
        library: The library; the result types of its TABLES are set.

    Raises:
        MismatchError: The first thing that differs, by its name.
    """
    ours, theirs = dict(_declared_here()), dict(_declared_in(library))
    for what, here in ours.items():
        if what not in theirs:
            raise MismatchError(f"the library has no {what}")
        if theirs[what] != here:
            raise MismatchError(f"{what} is {theirs[what]} in the library and {here} in Python")
    for what in theirs:
        if what not in ours:
            raise MismatchError(f"Python has no {what}")


def _declared_here() -> Iterator[tuple[str, str]]:
    for name, layout in STRUCTURES.items():
        for field, *_ in layout._fields_:
            place = getattr(layout, field)
            yield _layout(name, field, place.offset, place.size)
        yield _layout(name, "", 0, ctypes.sizeof(layout))
    for name, value in CONSTANTS.items():
        yield f"constant {name}", str(value)
    for name, (result, arguments) in FUNCTIONS.items():
        taken = ", ".join(_TYPES[argument] for argument in arguments) or "void"
        yield f"function {name}", f"{_TYPES[result]}({taken})"


def _declared_in(library: ctypes.CDLL) -> Iterator[tuple[str, str]]:
    for row in _rows(library.ph_layouts()):
        yield _layout(_text(row.name), _text(row.field), row.offset, row.size_bytes)
    for row in _rows(library.ph_constants()):
        yield f"constant {_text(row.name)}", str(row.value)
    for row in _rows(library.ph_functions()):
        yield f"function {_text(row.name)}", _in_our_types(_text(row.signature))


def _layout(structure: str, field: str, offset: int, size_bytes: int) -> tuple[str, str]:
    if not field:
        return f"struct {structure}", f"{size_bytes} bytes"
    return f"field {field} of struct {structure}", f"{size_bytes} bytes at offset {offset}"


def _rows(table: Any) -> Iterator[Any]:
    """Go through a table, which ends with a row without a name."""
    for index in itertools.count():
        row = table[index]
        if row.name is None:
            return
        yield row


def _text(exported: bytes) -> str:
    return exported.decode("ascii")


def _in_our_types(signature: str) -> str:
    """Rewrite a signature of C in the types that Python declares.

    A pointer to a structure that Python does not declare becomes one to void.
    """
    for of_c, ours in (("const ", ""), (r"enum \w+", "uint32_t"), (r"\bint\b", "int32_t")):
        signature = re.sub(of_c, ours, signature)
    return re.sub(
        r"struct (\w+) \*",
        lambda found: found[0] if found[1] in STRUCTURES else "void *",
        signature,
    )
