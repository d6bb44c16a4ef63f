from __future__ import annotations

import pytest

from services.cli.virtiofsd.options import Sets
from services.cli.virtiofsd.reading import read
from services.handshake.errors import InvalidArgumentError


def test_both_forms_set_the_same() -> None:
    new = read(["--shared-dir", "/srv", "--cache=never", "--writeback", "--xattr", "-d"])
    old = read(["-o", "source=/srv,cache=none,writeback", "-o", "xattr,debug"])
    assert new == old
    assert new.share == ["cache=none", "writeback"]
    assert new.settings == {Sets.SOURCE: "/srv", Sets.LOG_LEVEL: "debug", Sets.XATTR: "all"}
    assert new.notes == []


def test_a_comma_in_a_value_is_doubled() -> None:
    assert read(["-o", "source=/srv/a,,b,debug"]).settings[Sets.SOURCE] == "/srv/a,b"


def test_what_is_accepted_is_noted_with_its_value() -> None:
    given = read(["--thread-pool-size", "4", "--cache=metadata", "--no-readdirplus"])
    heads = [note.partition(" is accepted: ")[0] for note in given.notes]
    assert heads == ["--thread-pool-size=4", "--cache=metadata", "--no-readdirplus"]
    assert given.share == ["cache=none"]


def test_the_last_one_counts() -> None:
    given = read(["-o", "log_level=err", "--rlimit-nofile=5", "--rlimit-nofile=6", "-d"])
    assert given.settings == {Sets.LOG_LEVEL: "debug", Sets.DESCRIPTORS: "6"}


@pytest.mark.parametrize(
    ("arguments", "reason", "said"),
    [
        (["--nosuch"], "OPTION_UNKNOWN", "--nosuch"),
        (["--no-such=1"], "OPTION_UNKNOWN", "--no-such=1"),
        (["-x"], "OPTION_UNKNOWN", "-x"),
        (["-o", "nosuch=1"], "OPTION_UNKNOWN", "-o nosuch=1"),
        (["--cache"], "OPTION_SYNTAX", "--cache needs a value"),
        (["-o"], "OPTION_SYNTAX", "-o needs a value"),
        (["-o", "source="], "OPTION_VALUE", "-o source="),
        (["-o", "source"], "OPTION_VALUE", "-o source"),
        (["word"], "OPTION_SYNTAX", "'word'"),
        (["--syslog=yes"], "OPTION_VALUE", "--syslog=yes"),
        (["--thread-pool-size=-1"], "OPTION_VALUE", "<number>"),
        (["--rlimit-nofile=many"], "OPTION_VALUE", "--rlimit-nofile=many"),
        (["--rlimit-nofile=99999999999"], "OPTION_VALUE", "<number>"),
        (["--sandbox", "jail"], "OPTION_VALUE", "--sandbox=none, --sandbox=namespace"),
        (["--security-label", "always"], "OPTION_REFUSED", "--security-label: "),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], reason: str, said: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        read(arguments)
    assert refused.value.reason == reason
    assert said in refused.value.message
