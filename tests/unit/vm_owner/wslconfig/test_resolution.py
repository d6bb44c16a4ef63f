"""What applies of a `.wslconfig`: values, overrides in WSL's order, and a warning for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.vm_owner import warnings
from services.vm_owner.wslconfig import (
    KEYS,
    MAX_TEXT_BYTES,
    MAX_WARNINGS,
    Here,
    NetworkingMode,
    WslConfig,
    parse_wslconfig,
)

if TYPE_CHECKING:
    from services.vm_owner.warnings import ConfigWarning

ALL_OFF = WslConfig(virtio=False, virtiofs=False, networking_mode=NetworkingMode.NONE)


def ids(found: tuple[ConfigWarning, ...]) -> list[tuple[str, str]]:
    return [(warning.id, warning.key) for warning in found]


def test_an_empty_file_means_the_defaults() -> None:
    parsed = parse_wslconfig("")
    assert parsed.config == WslConfig()
    assert parsed.config.networking_mode is NetworkingMode.VIRTIO_PROXY
    assert parsed.config.device_bounces
    assert parsed.warnings == ()


@pytest.mark.parametrize("text", ["64M", "64MB", "64MiB", "65536K", "67108864", "64 mb"])
def test_a_size_has_the_grammar_of_flags(text: str) -> None:
    parsed = parse_wslconfig(f"[wsl2]\nmemory={text}\n[experimental]\nswiotlb={text}\n")
    assert (parsed.config.memory_bytes, parsed.config.swiotlb_bytes) == (64 << 20, 64 << 20)
    assert parsed.warnings == ()


@pytest.mark.parametrize("zero", ["0", "0M", "0KiB"])
def test_a_size_of_0_is_the_default(zero: str) -> None:
    parsed = parse_wslconfig(f"[wsl2]\nmemory={zero}\n[experimental]\nswiotlb={zero}\n")
    assert (parsed.config, parsed.warnings) == (WslConfig(), ())


@pytest.mark.parametrize(
    "garbage", ["", "lots", "-1", "64MM", "1.5G", "0x1000", "64iB", "99999999999999999999", "٣M"]
)
def test_a_garbage_size_is_a_warning_and_the_default_applies(garbage: str) -> None:
    parsed = parse_wslconfig(f"# mine\n[Experimental]\n  SwioTLB = {garbage}\n", "my.wslconfig")
    assert parsed.config.swiotlb_bytes is None
    [warning] = parsed.warnings
    assert (warning.id, warning.key, warning.value, warning.file, warning.line) == (
        warnings.CONFIG_VALUE,
        "experimental.swiotlb",
        garbage,
        "my.wslconfig",
        3,
    )
    assert "my.wslconfig:3" in warning.text
    assert "64M" in warning.text


def test_sections_and_keys_in_any_case() -> None:
    text = (
        "\ufeff# a comment\n"
        "[WSL2]   # trailing\n"
        "VirtioFS = FALSE  # drives by something else\n"
        'NETWORKINGMODE="NAT"\n'
        "memory=4GB# enough\r\n"
        "\n"
        "[EXPERIMENTAL]\n"
        "swiotlb=8M\n"
    )
    parsed = parse_wslconfig(text)
    assert parsed.warnings == ()
    assert parsed.config == WslConfig(
        virtiofs=False,
        networking_mode=NetworkingMode.NAT,
        memory_bytes=4 << 30,
        swiotlb_bytes=8 << 20,
    )
    assert parsed.config.device_bounces


def test_unknown_keys_lines_without_sense_and_repetitions_are_warnings() -> None:
    text = (
        "orphan=1\n"
        "[wsl2]\n"
        "nonsense\n"
        "swiotlb=64M\n"
        "virtiofs=maybe\n"
        "networkingMode=moon\n"
        "virtio9p=false\n"
        "virtio9p=true\n"
    )
    parsed = parse_wslconfig(text)
    assert ids(parsed.warnings) == [
        (warnings.CONFIG_UNKNOWN, "orphan"),
        (warnings.CONFIG_SYNTAX, "nonsense"),
        (warnings.CONFIG_UNKNOWN, "wsl2.swiotlb"),
        (warnings.CONFIG_VALUE, "wsl2.virtiofs"),
        (warnings.CONFIG_VALUE, "wsl2.networkingMode"),
        (warnings.CONFIG_REPEATED, "wsl2.virtio9p"),
    ]
    assert [warning.line for warning in parsed.warnings] == [1, 3, 4, 5, 6, 8]
    assert parsed.config == WslConfig()


@pytest.mark.parametrize("first", ["false", "garbage"])
def test_the_first_of_repeated_keys_counts_even_if_it_cannot_be_used(first: str) -> None:
    parsed = parse_wslconfig(f"[wsl2]\nvirtiofs={first}\n[WSL2]\nVIRTIOFS=true\n")
    assert parsed.config.virtiofs is (first == "garbage")
    last = parsed.warnings[-1]
    assert (last.id, last.key, last.line) == (warnings.CONFIG_REPEATED, "wsl2.virtiofs", 4)
    assert "line 2" in last.text


def test_the_names_of_one_key_count_as_repetition() -> None:
    text = "[experimental]\nnetworkingMode=none\n[wsl2]\nnetworkingMode=nat\n"
    parsed = parse_wslconfig(text)
    assert parsed.config.networking_mode is NetworkingMode.NONE
    assert ids(parsed.warnings) == [(warnings.CONFIG_REPEATED, "wsl2.networkingMode")]


@pytest.mark.parametrize("section", ["wsl2", "experimental"])
@pytest.mark.parametrize(
    ("value", "mode"),
    [
        ("None", NetworkingMode.NONE),
        ("NAT", NetworkingMode.NAT),
        ("Bridged", NetworkingMode.BRIDGED),
        ("mirrored", NetworkingMode.MIRRORED),
        ("VirtioProxy", NetworkingMode.VIRTIO_PROXY),
        ("Consomme", NetworkingMode.VIRTIO_PROXY),
    ],
)
def test_every_networking_mode_of_wsl(section: str, value: str, mode: NetworkingMode) -> None:
    parsed = parse_wslconfig(f"[wsl2]\nvirtiofs=false\n[{section}]\nnetworkingMode={value}\n")
    assert parsed.config.networking_mode is mode
    assert parsed.config.device_bounces is (
        mode in (NetworkingMode.VIRTIO_PROXY, NetworkingMode.NAT)
    )
    assert parsed.warnings == ()


def test_virtio9p_is_refused_and_is_no_device_that_bounces() -> None:
    text = "[wsl2]\nvirtiofs=false\nnetworkingMode=none\nvirtio9p="
    parsed = parse_wslconfig(f"{text}true\n")
    assert not parsed.config.device_bounces
    assert ids(parsed.warnings) == [(warnings.CONFIG_REFUSED, "wsl2.virtio9p")]
    assert parse_wslconfig(f"{text}false\n").warnings == ()


def test_without_access_to_the_host_there_are_no_shares() -> None:
    parsed = parse_wslconfig("[wsl2]\nhostFileSystemAccess=false\n")
    assert parsed.config == WslConfig(virtiofs=False)
    assert parsed.warnings == ()
    parsed = parse_wslconfig("[wsl2]\nhostFileSystemAccess=false\nvirtiofs=true\n")
    assert parsed.config == WslConfig(virtiofs=False)
    assert ids(parsed.warnings) == [(warnings.CONFIG_OVERRIDDEN, "wsl2.virtiofs")]


def test_virtio_off_drops_what_needs_it_with_a_warning_each() -> None:
    text = (
        "[wsl2]\nvirtio=false\nvirtiofs=true\nvirtio9p=true\nnetworkingMode=VirtioProxy\n"
        "[experimental]\nswiotlb=32M\n"
    )
    parsed = parse_wslconfig(text)
    assert parsed.config == WslConfig(
        virtio=False, virtiofs=False, networking_mode=NetworkingMode.NAT
    )
    assert not parsed.config.device_bounces
    found = [(w.id, w.key, w.value, w.line) for w in parsed.warnings]
    assert found == [
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.virtiofs", "true", 3),
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.virtio9p", "true", 4),
        (warnings.CONFIG_NEEDS_VIRTIO, "experimental.swiotlb", "32M", 7),
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.networkingMode", "VirtioProxy", 5),
    ]
    assert all("wsl2.virtio=false" in warning.text for warning in parsed.warnings)


@pytest.mark.parametrize(
    "text",
    [
        "[wsl2]\nvirtio=false\n",
        "[wsl2]\nvirtio=0\nvirtiofs=0\nvirtio9p=0\n",
        "[wsl2]\nvirtio=0\nhostFileSystemAccess=true\n",
        "[wsl2]\nvirtio=0\nnetworkingMode=none\n[experimental]\nswiotlb=0\n",
    ],
)
def test_virtio_off_is_no_warning_of_what_nobody_wrote_or_is_off_anyway(text: str) -> None:
    parsed = parse_wslconfig(text)
    assert (parsed.config, parsed.warnings) == (ALL_OFF, ())


@pytest.mark.parametrize("mode", ["nat", "mirrored", "bridged"])
def test_virtio_off_leaves_a_mode_alone_that_does_not_need_it(mode: str) -> None:
    parsed = parse_wslconfig(f"[wsl2]\nvirtio=0\nnetworkingMode={mode}\n")
    assert parsed.config.networking_mode == mode
    assert parsed.warnings == ()


def test_a_mode_that_was_garbage_counts_as_default() -> None:
    parsed = parse_wslconfig("[wsl2]\nvirtio=0\nnetworkingMode=moon\n")
    assert parsed.config.networking_mode is NetworkingMode.NONE


def test_safe_mode_switches_off_virtio_shares_and_networking() -> None:
    parsed = parse_wslconfig("[wsl2]\nsafeMode=true\n")
    assert parsed.config == ALL_OFF
    assert not parsed.config.device_bounces
    assert ids(parsed.warnings) == [(warnings.CONFIG_SAFE_MODE, "wsl2.safeMode")]


def test_safe_mode_comes_before_everything_that_is_written() -> None:
    text = (
        "[wsl2]\nvirtio=true\nvirtiofs=true\nhostFileSystemAccess=true\nnetworkingMode=mirrored\n"
        "virtio9p=true\n[experimental]\nswiotlb=64M\n[wsl2]\nsafeMode=true\n"
    )
    parsed = parse_wslconfig(text)
    assert parsed.config == ALL_OFF
    assert ids(parsed.warnings) == [
        (warnings.CONFIG_SAFE_MODE, "wsl2.safeMode"),
        (warnings.CONFIG_OVERRIDDEN, "wsl2.virtio"),
        (warnings.CONFIG_OVERRIDDEN, "wsl2.hostFileSystemAccess"),
        (warnings.CONFIG_OVERRIDDEN, "wsl2.networkingMode"),
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.virtiofs"),
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.virtio9p"),
        (warnings.CONFIG_NEEDS_VIRTIO, "experimental.swiotlb"),
    ]
    assert all("safeMode=true" in warning.text for warning in parsed.warnings)


def test_safe_mode_is_no_warning_of_what_is_off_anyway() -> None:
    text = "[wsl2]\nsafeMode=1\nvirtio=0\nvirtiofs=0\nnetworkingMode=none\n"
    parsed = parse_wslconfig(text)
    assert parsed.config == ALL_OFF
    assert ids(parsed.warnings) == [(warnings.CONFIG_SAFE_MODE, "wsl2.safeMode")]


@pytest.mark.parametrize("name", [name for key in KEYS for name in key.names])
def test_every_key_that_is_written_is_done_or_a_warning(name: str) -> None:
    """A key is never silently without effect."""
    [key] = [key for key in KEYS if name in key.names]
    section, _, short = name.partition(".")
    warned = {
        ident
        for value in ("true", "64M", "nat")
        for ident, about in ids(parse_wslconfig(f"[{section}]\n{short}={value}\n").warnings)
        if about == key.name
    }
    if key.here is Here.IGNORED:
        assert warned == {warnings.CONFIG_IGNORED}
    elif key.here is Here.REFUSED:
        assert warned == {warnings.CONFIG_REFUSED, warnings.CONFIG_VALUE}
    else:
        assert warned in ({warnings.CONFIG_VALUE}, {warnings.CONFIG_VALUE, "WslConfigSafeMode"})


def test_localhost_forwarding_is_off_unless_it_is_asked_for_where_ports_are_mapped() -> None:
    text = "[wsl2]\nlocalhostForwarding=true\n"
    assert not parse_wslconfig("").config.localhost_forwarding
    asked = parse_wslconfig(text)
    assert (asked.config.localhost_forwarding, asked.warnings) == (True, ())
    for mode in ("nat", "none"):
        elsewhere = parse_wslconfig(f"{text}networkingMode={mode}\n")
        assert not elsewhere.config.localhost_forwarding
        [warning] = elsewhere.warnings
        assert (warning.id, warning.key) == (warnings.CONFIG_OVERRIDDEN, "wsl2.localhostForwarding")


def test_the_kernel_command_line_is_not_silently_ignored() -> None:
    parsed = parse_wslconfig('[wsl2]\nkernelCommandLine = "quiet # loud"\n')
    [warning] = parsed.warnings
    assert (warning.id, warning.value) == (warnings.CONFIG_IGNORED, "quiet # loud")
    assert "ignored" in warning.text


def test_the_text_is_bounded() -> None:
    assert parse_wslconfig("#" * MAX_TEXT_BYTES).warnings == ()
    with pytest.raises(InvalidArgumentError, match=str(MAX_TEXT_BYTES)) as refused:
        parse_wslconfig("#" * (MAX_TEXT_BYTES + 1))
    assert refused.value.reason == "WSLCONFIG_TOO_LARGE"


def test_warnings_are_bounded() -> None:
    assert len(parse_wslconfig("x\n" * 10_000).warnings) == MAX_WARNINGS


def test_warnings_do_not_repeat_the_name_of_a_long_section() -> None:
    """A hundred times the file is more than a message to a client may have."""
    lines = "a=1\n" * MAX_WARNINGS
    text = f"[{'s' * (MAX_TEXT_BYTES - len(lines) - 3)}]\n{lines}"
    found = parse_wslconfig(text).warnings
    assert len(found) == MAX_WARNINGS
    assert {warning.key for warning in found} == {f"{'s' * (warnings.QUOTED_LIMIT - 1)}…"}
    assert sum(len(warning.text) for warning in found) < MAX_TEXT_BYTES


def test_a_long_value_is_cut_in_its_warning() -> None:
    [warning] = parse_wslconfig(f"[wsl2]\nmemory={'9' * 1000}\n").warnings
    assert warning.value == f"{'9' * (warnings.QUOTED_LIMIT - 1)}…"
    assert warning.value in warning.text
    assert len(warning.text) < 400


@given(st.text(max_size=200))
def test_no_text_stops_a_vm(text: str) -> None:
    parsed = parse_wslconfig(f"[wsl2]\n{text}")
    assert isinstance(parsed.config, WslConfig)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([key for key in KEYS if key.here is not Here.IGNORED]),
            st.sampled_from(["true", "false", "0", "64M", "nat", "consomme", "garbage"]),
        ),
        max_size=8,
    )
)
def test_a_device_that_is_off_is_never_a_reason_for_a_pool(
    written: list[tuple[object, str]],
) -> None:
    lines = [f"[{key.name.replace('.', ']' + chr(10))}={value}" for key, value in written]  # type: ignore[attr-defined]
    config = parse_wslconfig("\n".join(lines)).config
    adapters = config.virtio and config.networking_mode.has_adapters
    assert config.device_bounces is (config.virtiofs or adapters)
    if not config.virtio:
        assert not config.device_bounces
        assert config.swiotlb_bytes is None
