"""Rules for the names of extended attributes: which names of a guest reach the host, and as what.

Owns the syntax of virtiofsd's `--xattrmap`, and the rule sets that have a name here. Must not know
files.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final, NamedTuple

from services.handshake.errors import InvalidArgumentError

_SEPARATORS: Final = ":/|,+%~^"


class Kind(StrEnum):
    """What a rule does with a name that it matches."""

    PREFIX = "prefix"
    """A guest's name gets `prepend` in front; from a host's name it is taken away."""
    OK = "ok"
    """The name passes as it is."""
    BAD = "bad"
    """A guest's name is refused with EPERM; a host's name is not shown."""
    UNSUPPORTED = "unsupported"
    """A guest's name is refused with ENOTSUP; a host's name is not shown."""


class Scope(StrEnum):
    """Whose names a rule is for."""

    CLIENT = "client"
    """Names that a guest sets, gets and removes."""
    SERVER = "server"
    """Names of the host's files, in a list of them."""
    ALL = "all"


_KINDS: Final = frozenset(Kind)
_SCOPES: Final = frozenset(Scope)


class Refusal(Enum):
    """Why a guest's name has no name on the host."""

    DENIED = "EPERM"
    UNSUPPORTED = "ENOTSUP"


class XattrRule(NamedTuple):
    """One rule.

    Attributes:
        key: A guest's name that begins with it is matched.
        prepend: A host's name that begins with it is matched.
    """

    kind: Kind
    scope: Scope
    key: bytes
    prepend: bytes


@dataclass(frozen=True, slots=True)
class XattrMap:
    """Rules, of which the first that matches a name decides; a name without one is refused."""

    rules: tuple[XattrRule, ...]

    def host_name(self, name: bytes) -> bytes | Refusal:
        """Return the name on the host of a guest's name, or why there is none."""
        for kind, scope, key, prepend in self.rules:
            if scope is not Scope.SERVER and name.startswith(key):
                if kind is Kind.OK:
                    return name
                if kind is Kind.PREFIX:
                    return prepend + name
                return Refusal.UNSUPPORTED if kind is Kind.UNSUPPORTED else Refusal.DENIED
        return Refusal.DENIED

    def guest_name(self, name: bytes) -> bytes | None:
        """Return the name that a guest sees of a name on the host; None: it sees none."""
        for kind, scope, _, prepend in self.rules:
            if scope is not Scope.CLIENT and name.startswith(prepend):
                if kind is Kind.OK:
                    return name
                return name[len(prepend) :] or None if kind is Kind.PREFIX else None
        return None

    def text(self) -> str:
        """Return the rules as `parse_xattr_map` reads them, in a form that options can have.

        Raises:
            InvalidArgumentError: OPTION_VALUE: a rule has ';', or every separator that there is.
        """
        fields = [
            (
                kind,
                scope,
                key.decode("utf-8", "surrogateescape"),
                prepend.decode("utf-8", "surrogateescape"),
            )
            for kind, scope, key, prepend in self.rules
        ]
        used = {letter for rule in fields for field in rule for letter in field}
        separator = next((each for each in _SEPARATORS if each not in used), None)
        if separator is None or ";" in used:
            raise _refusal("".join(sorted(used)), f"names without ';' and one of {_SEPARATORS!r}")
        return "".join(separator + separator.join(rule) + separator for rule in fields)


def parse_xattr_map(text: str) -> XattrMap:
    """Read rules of the form `:type:scope:key:prepend:`, or one of `:map:key:prepend:` at the end.

    Another character may stand for ':', in each rule its own; white space may separate rules.

    Raises:
        InvalidArgumentError: OPTION_VALUE; it names the rule.
    """
    rules: list[XattrRule] = []
    rest = text.strip()
    ended = False
    while rest:
        number, separator = len(rules) + 1, rest[0]
        if ended:
            raise _refusal(text, "rules of which a map rule is the last")
        kind, *fields = rest[1:].split(separator, 4)
        if kind == "map" and len(fields) > 2:
            key, prepend = _encoded(fields[:2])
            rules += _map(key, prepend)
            ended, used = True, 3
        elif len(fields) > 3 and kind in _KINDS and fields[0] in _SCOPES:
            key, prepend = _encoded(fields[1:3])
            rules.append(XattrRule(Kind(kind), Scope(fields[0]), key, prepend))
            used = 4
        else:
            raise _refusal(
                text,
                "rules of the form :type:scope:key:prepend: or :map:key:prepend: "
                f"(rule {number} is none), with the types {', '.join(Kind)} and the scopes "
                f"{', '.join(Scope)}",
            )
        rest = separator.join([kind, *fields][used:]).strip()
    if not rules:
        raise _refusal(text, "one rule at least")
    return XattrMap(tuple(rules))


def _map(key: bytes, prepend: bytes) -> list[XattrRule]:
    """Return the rules that `:map:key:prepend:` stands for."""
    first = XattrRule(Kind.PREFIX, Scope.ALL, key, prepend)
    if not key:
        return [first, XattrRule(Kind.BAD, Scope.ALL, b"", b"")]
    return [
        first,
        XattrRule(Kind.BAD, Scope.SERVER, b"", key),
        XattrRule(Kind.BAD, Scope.CLIENT, prepend, b""),
        XattrRule(Kind.OK, Scope.ALL, b"", b""),
    ]


def _encoded(fields: list[str]) -> list[bytes]:
    return [field.encode("utf-8", "surrogateescape") for field in fields]


def _refusal(value: str, want: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "OPTION_VALUE", f"option value {value!r} is not {want}", value=value
    )


_SAFE: Final = (
    ":ok:all:user.:user.:"
    ":ok:all:system.posix_acl_access:system.posix_acl_access:"
    ":ok:all:system.posix_acl_default:system.posix_acl_default:"
    ":unsupported:all:::"
)
_KEPT: Final = "user.virtiofs."

SAFE: Final = parse_xattr_map(_SAFE)
"""The names whose values mean nothing to a host's kernel but for ACLs, which are permissions."""

XATTR_WORDS: Final = {
    "off": parse_xattr_map(":unsupported:all:::"),
    "safe": SAFE,
    "map": parse_xattr_map(
        f":prefix:client:security.:{_KEPT}:"
        f":prefix:client:trusted.:{_KEPT}:"
        f":bad:client:{_KEPT}::"
        f":bad:server::{_KEPT}user.:"
        f":bad:server::{_KEPT}system.:"
        f":prefix:server::{_KEPT}:"
        f"{_SAFE}"
    ),
    "all": parse_xattr_map(":ok:all:::"),
}
"""The rule sets that have a name."""


def parse_xattr_option(value: str) -> XattrMap:
    """Read the value of the option `xattr=`: a word, or rules.

    Raises:
        InvalidArgumentError: OPTION_VALUE.
    """
    named = XATTR_WORDS.get(value)
    if named is not None:
        return named
    if value.isalnum() or not value:
        raise _refusal(value, f"one of {', '.join(XATTR_WORDS)}, or rules as --xattrmap has them")
    return parse_xattr_map(value)
