"""`.wslconfig`: syntax, garbage, and the effect of virtio=false."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.vm_owner import warnings
from services.vm_owner.wslconfig import (
    MAX_TEXT_BYTES,
    MAX_WARNINGS,
    NetworkingMode,
    WslConfig,
    parse_size,
    parse_wslconfig,
)

if TYPE_CHECKING:
    from services.vm_owner.warnings import ConfigWarning


def ids(found: tuple[ConfigWarning, ...]) -> list[tuple[str, str]]:
    return [(warning.id, warning.key) for warning in found]


def test_an_empty_file_means_the_defaults() -> None:
    parsed = parse_wslconfig("")
    assert parsed.config == WslConfig()
    assert parsed.config.networking_mode is NetworkingMode.VIRTIO_PROXY
    assert parsed.config.device_bounces
    assert parsed.warnings == ()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64M", 64 << 20),
        ("64MB", 64 << 20),
        ("4096K", 4 << 20),
        ("1GB", 1 << 30),
        ("1g", 1 << 30),
        ("2T", 2 << 40),
        ("67108864", 64 << 20),
        ("512B", 512),
        ("0", 0),
        ("64 MB", 64 << 20),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    parsed = parse_wslconfig(f"[experimental]\nswiotlb={text}\n")
    assert parsed.config.swiotlb_bytes == size
    assert parsed.warnings == ()


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


def test_case_comments_quotes_and_byte_order_mark() -> None:
    text = (
        "\ufeff; a comment\n"
        "[WSL2]   # trailing\n"
        "VirtioFS = FALSE  # drives by something else\n"
        'NETWORKINGMODE="NAT"\n'
        "memory=4GB ; enough\r\n"
        "processors=4\n"
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
    assert not parsed.config.device_bounces


def test_unknown_keys_lines_without_sense_and_repetitions_are_warnings() -> None:
    text = (
        "orphan=1\n"
        "[wsl2]\n"
        "nonsense\n"
        "swiotlb=64M\n"
        "virtiofs=maybe\n"
        "networkingMode=bridged\n"
        "virtio9p=true\n"
        "virtio9p=false\n"
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


def test_virtio_off_drops_what_needs_it_with_a_warning_each() -> None:
    text = (
        "[wsl2]\nvirtio=false\nvirtiofs=true\nvirtio9p=true\nnetworkingMode=VirtioProxy\n"
        "[experimental]\nswiotlb=32M\n"
    )
    parsed = parse_wslconfig(text)
    assert parsed.config == WslConfig(
        virtio=False, virtiofs=False, virtio9p=False, networking_mode=NetworkingMode.NAT
    )
    assert not parsed.config.device_bounces
    found = [(w.id, w.key, w.value, w.line) for w in parsed.warnings]
    assert found == [
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.virtiofs", "true", 3),
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.virtio9p", "true", 4),
        (warnings.CONFIG_NEEDS_VIRTIO, "experimental.swiotlb", "32M", 7),
        (warnings.CONFIG_NEEDS_VIRTIO, "wsl2.networkingMode", "VirtioProxy", 5),
    ]


def test_virtio_off_takes_a_default_networking_mode_to_none() -> None:
    parsed = parse_wslconfig("[wsl2]\nvirtio=0\nvirtiofs=0\n")
    assert parsed.config.networking_mode is NetworkingMode.NONE
    assert ids(parsed.warnings) == [(warnings.CONFIG_NEEDS_VIRTIO, "wsl2.networkingMode")]


def test_virtio_off_leaves_a_mode_alone_that_does_not_need_it() -> None:
    parsed = parse_wslconfig("[wsl2]\nvirtio=0\nvirtiofs=0\nnetworkingMode=nat\n")
    assert parsed.config.networking_mode is NetworkingMode.NAT
    assert parsed.warnings == ()


def test_a_mode_that_was_garbage_counts_as_default() -> None:
    parsed = parse_wslconfig("[wsl2]\nvirtio=0\nvirtiofs=0\nnetworkingMode=moon\n")
    assert parsed.config.networking_mode is NetworkingMode.NONE


def test_the_text_is_bounded() -> None:
    assert parse_wslconfig("#" * MAX_TEXT_BYTES).warnings == ()
    with pytest.raises(InvalidArgumentError, match=str(MAX_TEXT_BYTES)) as refused:
        parse_wslconfig("#" * (MAX_TEXT_BYTES + 1))
    assert refused.value.reason == "WSLCONFIG_TOO_LARGE"


def test_warnings_are_bounded() -> None:
    assert len(parse_wslconfig("x\n" * 10_000).warnings) == MAX_WARNINGS


@given(st.text(max_size=200))
def test_no_text_stops_a_vm(text: str) -> None:
    parsed = parse_wslconfig(f"[wsl2]\n{text}")
    assert isinstance(parsed.config, WslConfig)
