"""The architecture of a guest: by its kernel's header."""

from __future__ import annotations

import pytest

from services.handshake.errors import FailedPreconditionError
from services.handshake.sizing import RAM_BASES
from services.vm_owner.machines.qemu.architecture import (
    ARM64,
    X86_64,
    Architecture,
    architecture_of,
    require_strict,
)


@pytest.mark.parametrize(
    ("header", "architecture"),
    [
        (bytes(56) + b"ARM\x64" + bytes(4), ARM64),
        (b"MZ" + bytes(54) + b"ARM\x64", ARM64),
        (b"\x7fELF" + bytes(60), X86_64),
        (bytes(55) + b"ARM\x64" + bytes(5), X86_64),
        (b"ARM\x64", X86_64),
        (b"", X86_64),
    ],
)
def test_the_header_of_an_image_is_that_of_an_arm64_kernel(
    header: bytes, architecture: Architecture
) -> None:
    assert architecture_of(header) is architecture


def test_ram_begins_where_the_checker_expects_it() -> None:
    assert {X86_64.ram_base, ARM64.ram_base} == set(RAM_BASES)


def test_strict_isolation_is_refused_where_devices_would_not_find_their_pools() -> None:
    require_strict(X86_64)
    with pytest.raises(FailedPreconditionError, match="aarch64") as refused:
        require_strict(ARM64)
    assert refused.value.reason == "ISOLATION_ARCHITECTURE"
