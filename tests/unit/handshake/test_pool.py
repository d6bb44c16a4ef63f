"""The pool that a guest announces, its checks, and the token."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.handshake.errors import InvalidArgumentError
from services.handshake.pool import (
    DMA32_LIMIT,
    MAX_MAPPING_BYTES,
    PAGE_BYTES,
    Gpa,
    SwiotlbPool,
    check_pool,
    format_token,
    parse_aperture,
    parse_token,
    pool_from_announcement,
    reserved_pool_bytes,
)

GIB = 1 << 30
U64 = (1 << 64) - 1
pages = st.integers(1, DMA32_LIMIT // PAGE_BYTES - 1)


def pool(base: int, size_bytes: int) -> SwiotlbPool:
    return SwiotlbPool(Gpa(base), size_bytes)


def reason(base: int, size_bytes: int, ram_bytes: int = 2 * GIB) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        check_pool(pool(base, size_bytes), ram_bytes)
    assert caught.value.metadata["base"] == str(base)
    assert "bound" in caught.value.metadata
    return caught.value.reason


def test_the_longest_mapping_is_that_of_the_kernel() -> None:
    assert MAX_MAPPING_BYTES == 256 * 1024


@pytest.mark.parametrize(
    ("base", "size_bytes", "ram_bytes"),
    [
        (0x3C000000, 64 << 20, 2 * GIB),
        (PAGE_BYTES, PAGE_BYTES, 2 * PAGE_BYTES),
        (2 * GIB - PAGE_BYTES, PAGE_BYTES, 2 * GIB),
        (DMA32_LIMIT - PAGE_BYTES, PAGE_BYTES, 8 * GIB),
    ],
)
def test_a_pool_inside_ram_and_below_4_gib_is_accepted(
    base: int, size_bytes: int, ram_bytes: int
) -> None:
    check_pool(pool(base, size_bytes), ram_bytes)


@pytest.mark.parametrize(
    ("base", "size_bytes", "expected"),
    [
        (0x3C000001, 4096, "SWIOTLB_BASE_UNALIGNED"),
        (0x3C000000, 4095, "SWIOTLB_SIZE_UNALIGNED"),
        (0x3C000000, 0, "SWIOTLB_SIZE_UNALIGNED"),
        (0x3C000000, -4096, "SWIOTLB_SIZE_UNALIGNED"),
        (U64 - 4095, 4096, "SWIOTLB_OVERFLOW"),
        (4096, U64 - 4095, "SWIOTLB_OVERFLOW"),
        (DMA32_LIMIT, 4096, "SWIOTLB_ABOVE_4G"),
        (DMA32_LIMIT - 4096, 8192, "SWIOTLB_ABOVE_4G"),
        (2 * GIB, 4096, "SWIOTLB_OUTSIDE_RAM"),
        (2 * GIB - 4096, 8192, "SWIOTLB_OUTSIDE_RAM"),
    ],
)
def test_a_pool_that_no_kernel_could_have_reserved_is_refused(
    base: int, size_bytes: int, expected: str
) -> None:
    assert reason(base, size_bytes) == expected


def test_ram_may_begin_behind_address_0() -> None:
    check_pool(pool(GIB, 4096), GIB, GIB)
    check_pool(pool(2 * GIB - 4096, 4096), GIB, GIB)
    for base, size_bytes, bound, shown in (
        (GIB - 4096, 8192, GIB, "it begins outside the VM's RAM, which begins at 0x40000000;"),
        (2 * GIB - 4096, 8192, 2 * GIB, "it ends at 0x80001000, outside the VM's RAM below 4 GiB"),
    ):
        with pytest.raises(InvalidArgumentError, match=shown) as refused:
            check_pool(pool(base, size_bytes), GIB, GIB)
        assert refused.value.reason == "SWIOTLB_OUTSIDE_RAM"
        assert refused.value.metadata["bound"] == str(bound)


@given(st.integers(0, U64), st.integers(0, U64), st.integers(0, 64 * GIB))
def test_an_accepted_pool_lies_wholly_in_ram(base: int, size_bytes: int, ram_bytes: int) -> None:
    try:
        check_pool(pool(base, size_bytes), ram_bytes)
    except InvalidArgumentError:
        return
    assert base % PAGE_BYTES == size_bytes % PAGE_BYTES == 0
    assert size_bytes > 0
    assert base + size_bytes <= min(ram_bytes, DMA32_LIMIT)


@given(pages, pages)
def test_a_token_says_what_it_was_made_from(base_pages: int, size_pages: int) -> None:
    assume(base_pages + size_pages <= DMA32_LIMIT // PAGE_BYTES)
    original = pool(base_pages * PAGE_BYTES, size_pages * PAGE_BYTES)
    assert parse_token(format_token(original)) == original


def test_the_token_is_written_as_the_device_host_expects_it() -> None:
    assert format_token(pool(0x3C000000, 67108864)) == "swiotlb=0x3c000000,67108864"


@pytest.mark.parametrize(
    "token",
    [
        "",
        "swiotlb=",
        "swiotlb=0x3c000000",
        "swiotlb=3c000000,4096",
        "swiotlb=0x3C000000,4096",
        "swiotlb=0x3c000000,0x1000",
        "swiotlb=0x3c000000,04096",
        "swiotlb=0x0,4096",
        "swiotlb=0x3c000000,4096 ",
        "swiotlb=0x3c000000,4096\n",
        "swiotlb=0x3c000000,4096,1",
        "swiotlb=0x3c000000,-4096",
        "swiotlb=0x11111111111111111,4096",
        "Swiotlb=0x3c000000,4096",
        "swiotlb=0x3c000000,٤٠٩٦",
    ],
)
def test_a_token_that_does_not_parse(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_token(token)
    assert caught.value.reason == "SWIOTLB_TOKEN_SYNTAX"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("swiotlb=0x3c000001,4096", "SWIOTLB_BASE_UNALIGNED"),
        ("swiotlb=0x3c000000,4097", "SWIOTLB_SIZE_UNALIGNED"),
        ("swiotlb=0xfffffffffffff000,4096", "SWIOTLB_OVERFLOW"),
        ("swiotlb=0x100000000,4096", "SWIOTLB_ABOVE_4G"),
    ],
)
def test_a_token_that_can_be_no_pool(token: str, expected: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_token(token)
    assert caught.value.reason == expected


@given(st.text())
def test_any_text_is_a_token_or_refused(text: str) -> None:
    try:
        parsed = parse_token(text)
    except InvalidArgumentError:
        return
    assert format_token(parsed) == text


def test_announcements() -> None:
    assert pool_from_announcement(0, 0) is None
    assert pool_from_announcement(0x1000, 0x2000) == pool(0x1000, 0x2000)


@pytest.mark.parametrize(("base", "size_bytes"), [(0, 4096), (4096, 0), (0, U64), (U64, 0)])
def test_half_a_pool_is_refused(base: int, size_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        pool_from_announcement(base, size_bytes)
    assert caught.value.reason == "SWIOTLB_HALF_POOL"


@pytest.mark.parametrize(("base", "size_bytes"), [(-1, 4096), (4096, U64 + 1)])
def test_numbers_past_64_bits_are_refused(base: int, size_bytes: int) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        pool_from_announcement(base, size_bytes)
    assert caught.value.reason == "SWIOTLB_NOT_U64"


@pytest.mark.parametrize(
    ("base", "size_bytes", "bound", "shown"),
    [
        (0x3C000001, 4096, PAGE_BYTES, "the base is not a multiple of 4096"),
        (0x3C000000, 4095, PAGE_BYTES, "the size is not a positive multiple of 4096"),
        (U64 - 4095, 4096, U64, "base + size overflows 64 bits"),
        (DMA32_LIMIT, 4096, DMA32_LIMIT, "it ends at 0x100001000, above 4 GiB (0x100000000)"),
        (2 * GIB, 4096, 2 * GIB, "it ends at 0x80001000, outside the VM's RAM below 4 GiB, which"),
    ],
)
def test_a_refused_pool_is_named_with_its_bound(
    base: int, size_bytes: int, bound: int, shown: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_pool(pool(base, size_bytes), 2 * GIB)
    assert f"base 0x{base:x}, size {size_bytes}: {shown}" in caught.value.message
    facts = {"base": base, "size": size_bytes, "bound": bound}
    assert caught.value.metadata == {key: str(value) for key, value in facts.items()}


def test_a_refused_announcement_is_named() -> None:
    for base, size_bytes, name, value in ((-1, 4096, "base", -1), (0, U64 + 1, "size", U64 + 1)):
        with pytest.raises(InvalidArgumentError, match=f"pool {name} {value} is not") as caught:
            pool_from_announcement(base, size_bytes)
        assert caught.value.metadata == {"value": str(value)}
    with pytest.raises(InvalidArgumentError, match="base 0x1000, size 0;") as caught:
        pool_from_announcement(4096, 0)
    assert caught.value.metadata == {"base": "4096", "size": "0"}


def test_numbers_of_exactly_64_bits_are_an_announcement() -> None:
    assert pool_from_announcement(U64, 1) == pool(U64, 1)


def test_a_refused_token_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="'swiotlb=no' is not a pool token") as caught:
        parse_token("swiotlb=no")
    assert caught.value.metadata == {"token": "swiotlb=no"}


@pytest.mark.parametrize(
    ("requested_bytes", "reserved_bytes"),
    [(0, 0), (1, 2 << 20), (2 << 20, 2 << 20), ((2 << 20) + 1, 4 << 20), (64 << 20, 64 << 20)],
)
def test_a_kernel_rounds_a_request_up_to_2_mib(requested_bytes: int, reserved_bytes: int) -> None:
    assert reserved_pool_bytes(requested_bytes) == reserved_bytes


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 8), (8, 8), False),
        ((8, 8), (0, 8), False),
        ((0, 9), (8, 8), True),
        ((8, 8), (0, 9), True),
        ((0, 16), (4, 4), True),
        ((4, 4), (0, 16), True),
        ((0, 4), (16, 4), False),
        ((4, 4), (4, 4), True),
    ],
)
def test_ranges_overlap_where_both_have_an_address(
    one: tuple[int, int], other: tuple[int, int], expected: bool
) -> None:
    assert pool(*one).overlaps(pool(*other)) is expected
    shared = set(range(one[0], sum(one))) & set(range(other[0], sum(other)))
    assert bool(shared) is expected


def test_a_part_that_is_none_is_named_with_its_bound() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_aperture("aperture=0x1,4096")
    assert caught.value.reason == "APERTURE_SYNTAX"
    assert caught.value.metadata == {"option": "aperture=0x1,4096"}
    assert f"multiples of {PAGE_BYTES}" in caught.value.message
