"""Sizing and the kernel command line."""

from __future__ import annotations

import pytest

from services.handshake.errors import InvalidArgumentError
from services.vm_owner import warnings
from services.vm_owner.kernel_command_line import kernel_command_line
from services.vm_owner.sizing import Size, choose_ram, size_pool

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("ram_bytes", "device_bounces", "pool_bytes"),
    [
        (2 * GIB, True, 64 * MIB),
        (GIB + 64 * MIB, True, 64 * MIB),
        (GIB + 64 * MIB - 1, True, 0),
        (512 * MIB, True, 0),
        (2 * GIB, False, 0),
    ],
)
def test_default_pool(ram_bytes: int, device_bounces: bool, pool_bytes: int) -> None:
    assert size_pool(ram_bytes, device_bounces=device_bounces) == Size(pool_bytes)


@pytest.mark.parametrize("device_bounces", [True, False])
@pytest.mark.parametrize("explicit_bytes", [0, 4 * MIB, 128 * MIB])
def test_an_explicit_pool_overrides_the_default_on_a_small_vm(
    explicit_bytes: int, device_bounces: bool
) -> None:
    size = size_pool(256 * MIB, device_bounces=device_bounces, explicit_bytes=explicit_bytes)
    assert size == Size(explicit_bytes)


@pytest.mark.parametrize(
    ("ram_bytes", "explicit_bytes", "used_bytes"),
    [(2 * GIB, 2 * GIB, 64 * MIB), (512 * MIB, GIB, 0), (16 * GIB, 4 * GIB, 64 * MIB)],
)
def test_a_pool_that_cannot_fit_is_a_warning_and_the_default_applies(
    ram_bytes: int, explicit_bytes: int, used_bytes: int
) -> None:
    size = size_pool(ram_bytes, device_bounces=True, explicit_bytes=explicit_bytes)
    assert size.bytes == used_bytes
    assert size.warning is not None
    assert size.warning.id == warnings.POOL_TOO_LARGE
    assert str(explicit_bytes) in size.warning.text


@pytest.mark.parametrize(
    ("asked_bytes", "configured_bytes", "ram_bytes"),
    [
        (0, None, 2 * GIB),
        (0, 4 * GIB, 4 * GIB),
        (0, 4 * GIB + 5, 4 * GIB),
        (0, 256 * MIB, 256 * MIB),
        (0, 1 << 40, 1 << 40),
        (256 * MIB, 4 * GIB, 256 * MIB),
    ],
)
def test_ram(asked_bytes: int, configured_bytes: int | None, ram_bytes: int) -> None:
    assert choose_ram(asked_bytes, configured_bytes) == Size(ram_bytes)


@pytest.mark.parametrize("asked_bytes", [1, 63 * MIB, 64 * MIB + 1, (1 << 40) + MIB, (1 << 64) - 1])
def test_ram_out_of_bounds_is_refused(asked_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError, match=str(asked_bytes)) as refused:
        choose_ram(asked_bytes, None)
    assert refused.value.reason == "RAM_BYTES"
    assert refused.value.metadata["minimum"] == str(64 * MIB)


@pytest.mark.parametrize(
    ("configured_bytes", "ram_bytes", "said"),
    [
        (5, 256 * MIB, "at least 268435456"),
        (256 * MIB - 1, 256 * MIB, "at least 268435456"),
        ((1 << 40) + MIB, 1 << 40, "at most 1099511627776"),
    ],
)
def test_configured_ram_out_of_bounds_is_a_warning_and_the_bound_applies(
    configured_bytes: int, ram_bytes: int, said: str
) -> None:
    size = choose_ram(0, configured_bytes)
    assert size.bytes == ram_bytes
    assert size.warning is not None
    assert size.warning.id == warnings.MEMORY_OUT_OF_BOUNDS
    assert said in size.warning.text


def test_command_line_with_a_pool() -> None:
    assert (
        kernel_command_line(67108864, "the-id", "00-aa-bb-01")
        == "swiotlb=force hv_pci_swiotlb=67108864 porthole.vm_id=the-id "
        "porthole.traceparent=00-aa-bb-01"
    )


def test_command_line_without_a_pool_says_nothing_of_it() -> None:
    assert kernel_command_line(0, "the-id", "") == "porthole.vm_id=the-id"
