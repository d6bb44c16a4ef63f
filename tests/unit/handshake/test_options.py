"""Device options: what the owner writes, and what the device host accepts or refuses by name."""

from __future__ import annotations

import string
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.handshake.options import (
    FsOptions,
    NetOptions,
    build_options,
    parse_fs_options,
    parse_net_options,
)
from services.handshake.pool import Gpa, SwiotlbPool
from services.handshake.xattr_map import XATTR_WORDS

if TYPE_CHECKING:
    from collections.abc import Callable

VM = "11111111-2222-4333-8444-555555555555"
TOKEN = "swiotlb=0x3c000000,67108864"
POOL = SwiotlbPool(Gpa(0x3C000000), 67108864)
PART = SwiotlbPool(Gpa(0x3C800000), 8 << 20)
OWN = "aperture=0x3c800000,8388608"


def refused(text: str) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_fs_options(text)
    return caught.value


@pytest.mark.parametrize(
    ("extra", "token", "expected"),
    [
        ("", None, f"src;vm_id={VM}"),
        ("", "", f"src;vm_id={VM}"),
        ("", TOKEN, f"src;{TOKEN};vm_id={VM}"),
        ("ro;uid=1000", TOKEN, f"src;ro;uid=1000;{TOKEN};vm_id={VM}"),
        (";ro;;", None, f"src;ro;vm_id={VM}"),
    ],
)
def test_no_stray_separator_and_the_vm_last(extra: str, token: str | None, expected: str) -> None:
    assert build_options("src", extra, token, VM) == expected


@pytest.mark.parametrize("name", ["", "a;b", "a=b", "a\0b"])
def test_a_name_that_would_be_read_otherwise(name: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        build_options(name, "", None, VM)
    assert caught.value.reason == "OPTION_SYNTAX"


@pytest.mark.parametrize("extra", [TOKEN, "ro;swiotlb=x", OWN, "aperture", f"vm_id={VM}", "vm_id"])
def test_only_the_owner_writes_token_and_vm(extra: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        build_options("src", extra, None, VM)
    assert caught.value.reason == "OPTION_RESERVED"


def test_every_key_of_a_share() -> None:
    text = (
        f"src;ro;metadata;case=dir;uid=1000;gid=0;umask=022;dmask=0777;fmask=7;"
        f"symlinkroot=/mnt/;cache=always;writeback;suid;dev;xattr=all;submounts=off;{TOKEN};"
        f"rings=inside;queues=4;vm_id={VM}"
    )
    assert parse_fs_options(text) == FsOptions(
        name="src",
        vm_id=VM,
        swiotlb=POOL,
        rings="inside",
        queues=4,
        ro=True,
        metadata=True,
        case="dir",
        uid=1000,
        gid=0,
        umask=0o022,
        dmask=0o777,
        fmask=7,
        symlinkroot="/mnt/",
        cache="always",
        writeback=True,
        suid=True,
        dev=True,
        xattr=XATTR_WORDS["all"],
        submounts=False,
    )


@pytest.mark.parametrize(
    ("items", "suid", "dev"),
    [
        ("", False, False),
        ("nosuid;nodev;", False, False),
        ("suid;", True, False),
        ("dev;nosuid;", False, True),
        ("metadata;", True, True),
        ("metadata;nosuid;nodev;", False, False),
    ],
)
def test_what_a_guest_may_leave_on_the_host(items: str, *, suid: bool, dev: bool) -> None:
    options = parse_fs_options(f"src;{items}vm_id={VM}")
    assert (options.suid, options.dev) == (suid, dev)


def test_rules_for_extended_attributes_may_be_a_value() -> None:
    given = parse_fs_options(f"src;xattr=:ok:all:user.:user.: /bad/all///;vm_id={VM}").xattr
    assert given.host_name(b"user.a") == b"user.a"
    assert given.guest_name(b"trusted.a") is None


def test_every_key_of_an_adapter() -> None:
    text = (
        "eth0;client_ip=192.0.2.2/24;client_ip_ipv6=fd00::2/64;client_mac=52:54:00:12:34:56;"
        f"gateway_ip=192.0.2.1;{TOKEN};rings=inside;vm_id={VM}"
    )
    assert parse_net_options(text) == NetOptions(
        name="eth0",
        vm_id=VM,
        swiotlb=POOL,
        rings="inside",
        client_ip="192.0.2.2/24",
        client_ip_ipv6="fd00::2/64",
        client_mac=bytes.fromhex("525400123456"),
        gateway_ip="192.0.2.1",
    )


def test_nothing_given_is_nothing_set() -> None:
    assert parse_fs_options(f"src;vm_id={VM}") == FsOptions(name="src", vm_id=VM)
    assert parse_net_options(f"eth0;vm_id={VM}") == NetOptions(name="eth0", vm_id=VM)


def test_repeating_the_same_is_harmless() -> None:
    assert parse_fs_options(f"src;ro;ro;uid=1;uid=1;vm_id={VM}").uid == 1


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ("uid=1;uid=2", "OPTION_CONFLICT"),
        ("suid;nosuid", "OPTION_CONFLICT"),
        ("nodev;dev", "OPTION_CONFLICT"),
        ("nosuid=1", "OPTION_SYNTAX"),
        ("xattr=none", "OPTION_VALUE"),
        ("xattr=:ok:all:", "OPTION_VALUE"),
        ("swiotlb=0x1000,4096;swiotlb=0x2000,4096", "OPTION_CONFLICT"),
        ("uid", "OPTION_SYNTAX"),
        ("ro=1", "OPTION_SYNTAX"),
        ("uid=-1", "OPTION_VALUE"),
        ("uid=4294967295", "OPTION_VALUE"),
        ("uid=\N{ARABIC-INDIC DIGIT ONE}", "OPTION_VALUE"),
        (f"uid={'1' * 5000}", "OPTION_VALUE"),
        (f"queues={'1' * 5000}", "OPTION_VALUE"),
        ("umask=888", "OPTION_VALUE"),
        ("umask=01777", "OPTION_VALUE"),
        ("case=maybe", "OPTION_VALUE"),
        ("cache=never", "OPTION_VALUE"),
        ("writeback=on", "OPTION_SYNTAX"),
        ("queues=0", "OPTION_VALUE"),
        ("queues=9", "OPTION_VALUE"),
        ("symlinkroot=relative", "OPTION_VALUE"),
        ("swiotlb=0x1000", "SWIOTLB_TOKEN_SYNTAX"),
        ("swiotlb=0x100000000,4096", "SWIOTLB_ABOVE_4G"),
        ("client_ip=192.0.2.2/24", "OPTION_UNKNOWN"),
        ("Ro", "OPTION_UNKNOWN"),
        ("", "OPTION_UNKNOWN"),
    ],
)
def test_a_wrong_item(items: str, reason: str) -> None:
    assert refused(f"src;{items};vm_id={VM}").reason == reason


def test_an_unknown_key_lists_the_known_ones() -> None:
    message = refused(f"src;turbo;vm_id={VM}").message
    assert "'turbo'" in message
    assert "cache, case, dev, dmask, fmask, gid, metadata, nodev, nosuid, queues, rings" in message


@pytest.mark.parametrize("text", ["", ";ro", "ro=1;vm_id=x", "src", "src;ro"])
def test_a_string_without_name_or_vm(text: str) -> None:
    assert refused(text).reason == "OPTION_SYNTAX"


def test_a_vm_id_that_is_none() -> None:
    assert refused("src;vm_id=me").reason == "OPTION_VALUE"


@pytest.mark.parametrize(
    "item",
    [
        "client_ip=192.0.2.300/24",
        "client_ip=fd00::2/64",
        "client_ip_ipv6=192.0.2.2/24",
        "client_mac=52:54:00:12:34",
        "client_mac=52-54-00-12-34-56",
        "gateway_ip=here",
    ],
)
def test_a_wrong_address(item: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_net_options(f"eth0;{item};vm_id={VM}")
    assert caught.value.reason == "OPTION_VALUE"


@given(st.text(alphabet=string.ascii_lowercase + string.digits + ";=,/_:.-é\0", max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (parse_fs_options, parse_net_options):
        with suppress(InvalidArgumentError):
            assert isinstance(parse(text), FsOptions | NetOptions)


@given(
    st.text(min_size=1).filter(lambda name: not set(name) & set(";=\0")),
    st.sampled_from(["", "ro", "uid=7;gid=8", "queues=8;case=force"]),
    st.sampled_from([None, TOKEN]),
)
def test_the_device_host_reads_what_the_owner_writes(
    name: str, extra: str, token: str | None
) -> None:
    options = parse_fs_options(build_options(name, extra, token, VM))
    assert (options.name, options.vm_id) == (name, VM)
    assert options.swiotlb == (POOL if token else None)


def test_the_bounds_themselves_are_accepted() -> None:
    options = parse_fs_options(f"src;uid=4294967294;gid=0;umask=0777;queues=1;vm_id={VM}")
    assert (options.uid, options.gid, options.umask, options.queues) == (4294967294, 0, 0o777, 1)
    assert parse_fs_options(f"src;queues=8;vm_id={VM}").queues == 8


@pytest.mark.parametrize(
    ("item", "want"),
    [
        ("uid=4294967295", "a user or group id from 0 to 4294967294"),
        ("umask=1000", "an octal mask from 0 to 777"),
        ("queues=9", "a number of queues from 1 to 8"),
        ("case=maybe", "one of off, dir, force"),
        ("cache=never", "one of none, auto, always"),
        ("rings=outside", "one of anywhere, inside"),
        ("submounts=no", "one of on, off"),
        ("symlinkroot=here", "an absolute path"),
        ("client_ip=x", "an IPv4 address"),
        ("client_ip_ipv6=x", "an IPv6 address"),
        ("client_mac=x", "a MAC address"),
        ("gateway_ip=x", "an IP address"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_wanted(item: str, want: str) -> None:
    key, _, value = item.partition("=")
    net = key.startswith(("client", "gateway"))
    with pytest.raises(InvalidArgumentError, match=f"'{value}' is not {want}") as caught:
        (parse_net_options if net else parse_fs_options)(f"name;{item};vm_id={VM}")
    assert (caught.value.reason, caught.value.metadata) == ("OPTION_VALUE", {"value": value})


def test_a_wrong_vm_id_is_named() -> None:
    assert "'me' is not a UUID" in refused("src;vm_id=me").message


@pytest.mark.parametrize(
    ("text", "shown", "facts"),
    [
        ("", "options '' must start with the device's name", {"options": ""}),
        (f"src;on;vm_id={VM}", "option 'on' of 'src' is not known", {"option": "on"}),
        (
            f"src;uid=1;uid=2;vm_id={VM}",
            "uid of 'src' is given as '1' and as '2'",
            {"option": "uid"},
        ),
        (f"src;uid;vm_id={VM}", "option 'uid' of 'src': write uid=<value>\n", {"option": "uid"}),
        (f"src;ro=1;vm_id={VM}", "option 'ro=1' of 'src': write ro\n", {"option": "ro=1"}),
        ("src;ro", "options 'src;ro' lack vm_id=<uuid>", {"options": "src;ro"}),
    ],
)
def test_a_refused_option_is_named(text: str, shown: str, facts: dict[str, str]) -> None:
    error = refused(text)
    assert shown in f"{error.message}\n"
    assert error.metadata == facts


def test_what_the_owner_may_not_write_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="device name 'a;b' must be") as caught:
        build_options("a;b", "", None, VM)
    assert caught.value.metadata == {"name": "a;b"}
    with pytest.raises(InvalidArgumentError, match="option 'vm_id=1': vm_id is") as caught:
        build_options("src", "vm_id=1", None, VM)
    assert caught.value.metadata == {"option": "vm_id=1"}


@pytest.mark.parametrize(("key", "opposite"), [("suid", "nosuid"), ("dev", "nodev")])
def test_an_option_and_its_opposite_are_refused_by_name(key: str, opposite: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        parse_fs_options(f"src;{opposite};{key};vm_id={VM}")
    assert refused.value.reason == "OPTION_CONFLICT"
    assert refused.value.metadata == {"option": key}
    assert {"'src'", key, opposite} <= {*refused.value.message.replace(";", "").split()}


@pytest.mark.parametrize("parse", [parse_fs_options, parse_net_options])
def test_a_part_of_the_pool_follows_the_token_and_is_read_as_it_was_written(
    parse: Callable[[str], FsOptions | NetOptions],
) -> None:
    text = build_options("name", "", TOKEN, VM, PART)
    assert text == f"name;{TOKEN};{OWN};vm_id={VM}"
    options = parse(text)
    assert (options.swiotlb, options.aperture) == (POOL, PART)


@pytest.mark.parametrize("token", [None, ""])
def test_no_part_is_written_without_a_token(token: str | None) -> None:
    assert build_options("src", "", token, VM, PART) == f"src;vm_id={VM}"


@pytest.mark.parametrize(
    "part",
    [
        PART,
        POOL,
        SwiotlbPool(POOL.base, 4096),
        SwiotlbPool(Gpa(POOL.end - 4096), 4096),
    ],
)
def test_a_part_may_be_anywhere_in_the_pool(part: SwiotlbPool) -> None:
    assert parse_fs_options(build_options("src", "", TOKEN, VM, part)).aperture == part


@pytest.mark.parametrize(
    ("base", "size_bytes"),
    [
        (POOL.base - 4096, 8192),
        (POOL.base - 4096, 4096),
        (POOL.end - 4096, 8192),
        (POOL.end, 4096),
        (POOL.base, POOL.size_bytes + 4096),
        (0x1000, 4096),
        ((1 << 64) - 4096, 8192),
    ],
)
def test_what_is_no_part_of_the_tokens_pool_is_refused_with_both(
    base: int, size_bytes: int
) -> None:
    part = SwiotlbPool(Gpa(base), size_bytes)
    error = refused(f"src;{TOKEN};aperture=0x{base:x},{size_bytes};vm_id={VM}")
    assert error.reason == "APERTURE_OUTSIDE_POOL"
    assert f"{part} is not inside the pool {POOL}" in error.message
    assert error.metadata == {"base": str(base), "size": str(size_bytes), "pool": str(POOL)}


def test_a_part_needs_the_token_wherever_it_stands() -> None:
    error = refused(f"src;{OWN};vm_id={VM}")
    assert error.reason == "APERTURE_WITHOUT_POOL"
    assert OWN in error.message
    assert parse_fs_options(f"src;{OWN};ro;{TOKEN};vm_id={VM}").aperture == PART


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0x3c800000",
        "3c800000,8388608",
        "0x3c800000,0",
        "0x3c800000,8M",
        "0x3C800000,8388608",
        "0x03c800000,8388608",
        "0x3c800000,08388608",
        "0x3c800001,4096",
        "0x3c800000,4097",
        "-0x3c800000,4096",
        f"0x{'f' * 17},4096",
    ],
)
def test_a_malformed_part_is_refused(value: str) -> None:
    assert refused(f"src;{TOKEN};aperture={value};vm_id={VM}").reason == "APERTURE_SYNTAX"


def test_only_what_divides_options_is_refused_in_a_name() -> None:
    assert build_options("X", "", None, VM).startswith("X;")
    for letter in ";=\0":
        with pytest.raises(InvalidArgumentError):
            build_options(f"X{letter}", "", None, VM)
