"""POSIX ACLs as text, in the short form of setfacl(1), and as the attributes that Linux keeps.

`u::rw-,u:20002:r--,g::---,m::r--,o::---`: owner, a named user, group, mask and others.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"
NO_ID: Final = (1 << 32) - 1

_VERSION: Final = b"\x02\0\0\0"
_ENTRY: Final = Struct("<HHI")
_TAGS: Final = {
    ("u", False): 0x01,
    ("u", True): 0x02,
    ("g", False): 0x04,
    ("g", True): 0x08,
    ("m", False): 0x10,
    ("o", False): 0x20,
}


def acl(text: str) -> bytes:
    """Return the value of the attribute."""
    entries = []
    for entry in text.split(","):
        kind, name, permissions = entry.split(":")
        bits = sum(1 << 2 - place for place, sign in enumerate(permissions) if sign != "-")
        number = int(name) if name else NO_ID
        entries.append((_TAGS[kind, bool(name)], number, bits))
    ordered = sorted(entries)
    return _VERSION + b"".join(_ENTRY.pack(tag, bits, number) for tag, number, bits in ordered)


def text_of(value: bytes) -> str:
    """Return the text of an attribute's value."""
    assert value[:4] == _VERSION
    kinds = {tag: kind for kind, tag in _TAGS.items()}
    entries = []
    for tag, bits, number in _ENTRY.iter_unpack(value[4:]):
        kind, named = kinds[tag]
        permissions = "".join(s if bits & 4 >> n else "-" for n, s in enumerate("rwx"))
        entries.append(f"{kind}:{number if named else ''}:{permissions}")
    return ",".join(entries)
