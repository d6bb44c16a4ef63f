"""Rules for the names of extended attributes: their syntax, and what they do with names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.handshake.xattr_map import (
    XATTR_WORDS,
    Refusal,
    XattrMap,
    parse_xattr_map,
    parse_xattr_option,
)

PREFIX_ALL = ":prefix:all::user.virtiofs.::bad:all:::"
PREFIX_TRUSTED = """
  /prefix/all/trusted./user.virtiofs./
  /bad/server//trusted./
  /bad/client/user.virtiofs.//
  /ok/all///
"""
HIDE_SECURITY = "/bad/all/security./security./ /ok/all///"
"""The three examples of virtiofsd's documentation."""


def names(rules: XattrMap, *guests: str) -> list[str]:
    found = (rules.host_name(name.encode()) for name in guests)
    return [name.value if isinstance(name, Refusal) else name.decode() for name in found]


def shown(rules: XattrMap, *hosts: str) -> list[str]:
    found = (rules.guest_name(name.encode()) for name in hosts)
    return [name.decode() for name in found if name is not None]


def test_all_names_get_a_prefix() -> None:
    rules = parse_xattr_map(PREFIX_ALL)
    assert names(rules, "trusted.a", "user.b") == [
        "user.virtiofs.trusted.a",
        "user.virtiofs.user.b",
    ]
    assert shown(rules, "user.virtiofs.trusted.a", "user.b", "user.virtiofs.") == ["trusted.a"]


def test_one_namespace_gets_a_prefix() -> None:
    rules = parse_xattr_map(PREFIX_TRUSTED)
    assert names(rules, "trusted.a", "user.b", "user.virtiofs.trusted.a") == [
        "user.virtiofs.trusted.a",
        "user.b",
        "EPERM",
    ]
    assert shown(rules, "user.virtiofs.trusted.a", "trusted.c", "user.b") == ["trusted.a", "user.b"]


def test_one_namespace_is_hidden() -> None:
    rules = parse_xattr_map(HIDE_SECURITY)
    assert names(rules, "security.a", "user.b") == ["EPERM", "user.b"]
    assert shown(rules, "security.a", "user.b") == ["user.b"]


def test_a_map_rule_is_short_for_others() -> None:
    assert parse_xattr_map(":map::user.virtiofs.:") == parse_xattr_map(PREFIX_ALL)
    assert parse_xattr_map("/map/trusted./user.virtiofs./") == parse_xattr_map(PREFIX_TRUSTED)


def test_rules_before_a_map_rule_come_first() -> None:
    rules = parse_xattr_map(":bad:client:user.a:: :map::user.virtiofs.:")
    assert names(rules, "user.ab", "user.b") == ["EPERM", "user.virtiofs.user.b"]


def test_names_may_be_any_bytes() -> None:
    rules = parse_xattr_map(":prefix:all:a\udcff:b\udcfe:")
    assert rules.host_name(b"a\xff") == b"b\xfea\xff"
    assert rules.guest_name(b"b\xfec") == b"c"
    assert parse_xattr_map(rules.text()) == rules


def test_the_first_rule_that_matches_decides() -> None:
    rules = parse_xattr_map(
        ":ok:client:user.a::!unsupported!client!user.!!:prefix:server::user.x.:"
    )
    assert names(rules, "user.ab", "user.b", "trusted.c") == ["user.ab", "ENOTSUP", "EPERM"]
    assert shown(rules, "user.x.y", "user.a") == ["y"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "one rule at least"),
        (":ok:all::", "rule 1 is none"),
        (":ok:all:::x", "rule 2 is none"),
        (":ok:all:::  :bad:all:", "rule 2 is none"),
        (":okay:all:::", "prefix, ok, bad, unsupported"),
        (":ok:both:::", "client, server, all"),
        (":map:a:b: :ok:all:::", "a map rule is the last"),
        (":map:a:b", "rule 1 is none"),
        (":map:a:b:c", "a map rule is the last"),
    ],
)
def test_what_is_no_rule_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        parse_xattr_map(text)
    assert refused.value.reason == "OPTION_VALUE"
    assert why in refused.value.message
    assert repr(text) in refused.value.message
    assert refused.value.metadata == {"value": text}


@given(st.text(max_size=80) | st.text(alphabet=": /okalmprefixbd", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        rules = parse_xattr_map(text)
        assert parse_xattr_map(rules.text()) == rules
    except InvalidArgumentError as error:
        assert error.reason == "OPTION_VALUE"  # noqa: PT017 - either is right


def test_the_text_of_rules_suits_the_options_of_a_share() -> None:
    rules = parse_xattr_map("/ok/all/a:/b:/ :map::user.x.:")
    assert ";" not in rules.text()
    assert parse_xattr_map(rules.text()) == rules
    with pytest.raises(InvalidArgumentError, match="';'") as refused:
        parse_xattr_map(":ok:all:;::").text()
    assert refused.value.metadata == {"value": "".join(sorted({*"okall;"}))}


def test_rules_with_every_separator_cannot_be_options() -> None:
    with pytest.raises(InvalidArgumentError, match=r"one of ':/\|,"):
        parse_xattr_map("!ok!all!:/|,+%~^!!").text()


def test_a_word_that_is_none_names_those_that_are() -> None:
    with pytest.raises(InvalidArgumentError, match="off, safe, map, all") as refused:
        parse_xattr_option("none")
    assert refused.value.metadata == {"value": "none"}


GUESTS = ("user.a", "security.capability", "trusted.overlay.opaque", "system.posix_acl_access")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("off", ["ENOTSUP"] * 4),
        ("safe", ["user.a", "ENOTSUP", "ENOTSUP", "system.posix_acl_access"]),
        (
            "map",
            [
                "user.a",
                "user.virtiofs.security.capability",
                "user.virtiofs.trusted.overlay.opaque",
                "system.posix_acl_access",
            ],
        ),
        ("all", list(GUESTS)),
    ],
)
def test_each_word(word: str, expected: list[str]) -> None:
    rules = XATTR_WORDS[word]
    assert names(rules, *GUESTS) == expected
    stored = [name for name in expected if not name.startswith("E")]
    seen = [guest for guest, name in zip(GUESTS, expected, strict=True) if name in stored]
    assert shown(rules, *stored) == seen, "what is stored is listed by the guest's name"


@pytest.mark.parametrize("word", ["off", "safe", "map"])
def test_no_word_but_all_lets_a_kernel_read_what_a_guest_wrote(word: str) -> None:
    for name in (*GUESTS[1:3], "security.ima", "system.nfs4_acl", "btrfs.compression", "nonsense"):
        assert names(XATTR_WORDS[word], name)[0] in ("ENOTSUP", f"user.virtiofs.{name}")
        assert shown(XATTR_WORDS[word], name) == []


def test_mapped_names_are_not_reached_directly() -> None:
    rules = XATTR_WORDS["map"]
    assert names(rules, "user.virtiofs.security.capability") == ["EPERM"]
    assert shown(rules, "user.virtiofs.user.a", "user.virtiofs.system.b") == []
