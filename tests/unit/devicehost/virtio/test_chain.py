"""What a guest may write into a descriptor table, and what it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.devicehost.memory import TranslationError
from services.devicehost.virtio import chain as chain_module
from services.devicehost.virtio.chain import ChainReader
from services.devicehost.virtio.queue import QueueError
from services.handshake.pool import Gpa, SwiotlbPool
from services.wire.virtio_ring import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    Descriptor,
)
from tests.unit.devicehost.virtio.conftest import DATA, POOL

if TYPE_CHECKING:
    from tests.support.guest_ring import GuestRing
    from tests.unit.devicehost.virtio.conftest import Rig

TABLE = DATA + 0x8000


def pop_reason(rig: Rig, ring: GuestRing, *, head: int = 0, indirect: bool = True) -> str:
    """Offer one head and return why its chain is refused."""
    ring.offer(head)
    with pytest.raises(QueueError) as caught:
        rig.queue(ring, indirect=indirect).pop()
    return caught.value.reason


def test_a_direct_chain_gives_its_buffers_in_order(rig: Rig) -> None:
    ring = rig.ring()
    rig.ram.write(DATA, b"header--payload!")
    ring.chain(2, readable=[(DATA, 8), (DATA + 8, 8)], writable=[(DATA + 64, 4), (DATA + 128, 32)])
    ring.offer(2)
    chain = rig.queue(ring).pop()
    assert chain is not None
    assert chain.head == 2
    assert [bytes(part) for part in chain.readable] == [b"header--", b"payload!"]
    assert [len(part) for part in chain.writable] == [4, 32]
    assert (chain.readable_bytes, chain.writable_bytes) == (16, 36)
    chain.writable[1][:2] = b"ok"
    assert rig.ram.read(DATA + 128, 2) == b"ok"


def test_descriptors_may_be_linked_in_any_order(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(7, DATA, 1, DESC_F_NEXT, 0)
    ring.describe(0, DATA + 1, 2, DESC_F_NEXT, 3)
    ring.describe(3, DATA + 3, 3)
    ring.offer(7)
    chain = rig.queue(ring).pop()
    assert chain is not None
    assert [len(part) for part in chain.readable] == [1, 2, 3]


def test_an_indirect_table_may_end_a_direct_chain_and_be_longer_than_the_ring(rig: Rig) -> None:
    ring = rig.ring(4)
    entries = [
        Descriptor(DATA + 16 * n, 16, DESC_F_NEXT if n < 19 else 0, n + 1).pack() for n in range(20)
    ]
    rig.ram.write(TABLE, b"".join(entries))
    ring.describe(0, DATA + 0x4000, 8, DESC_F_NEXT, 1)
    ring.describe(1, TABLE, 16 * 20, DESC_F_INDIRECT)
    ring.offer(0)
    chain = rig.queue(ring).pop()
    assert chain is not None
    assert len(chain.readable) == 21


def test_the_whole_ring_may_be_one_chain(rig: Rig) -> None:
    ring = rig.ring(8)
    ring.chain(0, readable=[(DATA + 8 * n, 8) for n in range(8)])
    ring.offer(0)
    chain = rig.queue(ring).pop()
    assert chain is not None
    assert chain.readable_bytes == 64


def test_a_loop_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(0, DATA, 8, DESC_F_NEXT, 1)
    ring.describe(1, DATA, 8, DESC_F_NEXT, 0)
    assert pop_reason(rig, ring) == "DESCRIPTOR_LOOP"


def test_a_descriptor_that_names_itself_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(3, DATA, 8, DESC_F_NEXT, 3)
    assert pop_reason(rig, ring, head=3) == "DESCRIPTOR_LOOP"


def test_a_loop_in_an_indirect_table_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    rig.ram.write(TABLE, Descriptor(DATA, 8, DESC_F_NEXT, 0).pack() * 2)
    ring.describe(0, TABLE, 32, DESC_F_INDIRECT)
    assert pop_reason(rig, ring) == "DESCRIPTOR_LOOP"


@pytest.mark.parametrize("head", [8, 9, 0xFFFF])
def test_a_head_out_of_range_is_refused(rig: Rig, head: int) -> None:
    assert pop_reason(rig, rig.ring(8), head=head) == "DESCRIPTOR_INDEX"


def test_a_link_out_of_range_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(0, DATA, 8, DESC_F_NEXT, 8)
    assert pop_reason(rig, ring) == "DESCRIPTOR_INDEX"


def test_a_link_out_of_an_indirect_table_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    rig.ram.write(TABLE, Descriptor(DATA, 8, DESC_F_NEXT, 1).pack())
    ring.describe(0, TABLE, 16, DESC_F_INDIRECT)
    assert pop_reason(rig, ring) == "DESCRIPTOR_INDEX"


def test_an_empty_buffer_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    ring.chain(0, readable=[(DATA, 0)])
    assert pop_reason(rig, ring) == "BUFFER_EMPTY"


def test_readable_after_writable_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(0, DATA, 8, DESC_F_WRITE | DESC_F_NEXT, 1)
    ring.describe(1, DATA, 8)
    assert pop_reason(rig, ring) == "READABLE_AFTER_WRITABLE"


def test_an_indirect_table_in_an_indirect_table_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    rig.ram.write(TABLE, Descriptor(TABLE, 16, DESC_F_INDIRECT, 0).pack())
    ring.describe(0, TABLE, 16, DESC_F_INDIRECT)
    assert pop_reason(rig, ring) == "INDIRECT_MISPLACED"


def test_an_indirect_table_that_goes_on_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(0, TABLE, 16, DESC_F_INDIRECT | DESC_F_NEXT, 1)
    assert pop_reason(rig, ring) == "INDIRECT_MISPLACED"


def test_an_indirect_table_that_was_not_negotiated_is_refused(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(0, TABLE, 16, DESC_F_INDIRECT)
    assert pop_reason(rig, ring, indirect=False) == "INDIRECT_MISPLACED"


@pytest.mark.parametrize("length", [0, 8, 17, 16 * 1025, 0xFFFF_FFF0])
def test_an_indirect_table_of_a_wrong_length_is_refused(rig: Rig, length: int) -> None:
    ring = rig.ring()
    ring.describe(0, TABLE, length, DESC_F_INDIRECT)
    assert pop_reason(rig, ring) == "INDIRECT_LENGTH"


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (POOL.base - 1, 2),
        (POOL.end - 1, 2),
        (POOL.end, 1),
        (0, 16),
        (2**64 - 8, 16),
        (POOL.base, 0xFFFF_FFFF),
    ],
)
@pytest.mark.parametrize("flags", [0, DESC_F_WRITE, DESC_F_INDIRECT])
def test_an_address_outside_the_pool_fails_its_request_at_once(
    rig: Rig, gpa: int, length: int, flags: int
) -> None:
    if flags & DESC_F_INDIRECT:
        length = 16
        gpa = min(gpa, 2**64 - 8) if gpa != POOL.base else POOL.end
    ring = rig.ring()
    ring.describe(0, gpa, length, flags)
    ring.offer(0)
    with pytest.raises(TranslationError) as caught:
        rig.queue(ring).pop()
    assert caught.value.gpa == gpa
    assert ring.completions() == [(0, 0)]
    assert rig.calls() == 1
    assert rig.meter.snapshot().translations_refused == 1


def test_a_chain_of_more_than_32_bits_of_bytes_is_refused(rig: Rig) -> None:
    ring = rig.ring(2048)
    data = ring.end
    room = SwiotlbPool(Gpa(data), POOL.end - data).size_bytes
    pieces = (1 << 32) // room + 1
    ring.chain(0, writable=[(data, room)] * pieces)
    assert pieces <= ring.size
    assert pop_reason(rig, ring) == "CHAIN_TOO_LONG"


def in_order(count: int, readable: int) -> list[list[int]]:
    """An indirect table as drivers write it: addr, len, flags and next of each descriptor."""
    table = [
        [DATA + 8 * n, 8, DESC_F_NEXT | DESC_F_WRITE * (n >= readable), n + 1] for n in range(count)
    ]
    table[-1][2] &= ~DESC_F_NEXT
    return table


_CHANGES = st.one_of(
    st.tuples(st.just(1), st.sampled_from([0, 1, 0xFFFF_FFFF])),
    st.tuples(st.just(2), st.sampled_from([0, 1, 2, 3, 4, 5, 7, 0x101, 0x103, 0x8002])),
    st.tuples(st.just(3), st.sampled_from([0, 1, 2, 3, 4, 5, 0xFFFF])),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    count=st.integers(1, 5),
    readable=st.integers(0, 5),
    changes=st.lists(st.tuples(st.integers(0, 4), _CHANGES), max_size=2),
    ends_direct_chain=st.booleans(),
)
def test_a_table_in_order_means_what_it_means_when_it_is_followed(
    rig: Rig,
    count: int,
    readable: int,
    changes: list[tuple[int, tuple[int, int]]],
    ends_direct_chain: bool,
) -> None:
    table = in_order(count, readable)
    for place, (column, value) in changes:
        table[place % count][column] = value
    ring = rig.ring()
    rig.ram.write(TABLE, b"".join(Descriptor(*each).pack() for each in table))
    ring.describe(0, DATA + 0x4000, 40, DESC_F_NEXT, 1)
    ring.describe(1, TABLE, 16 * count, DESC_F_INDIRECT)
    head = 0 if ends_direct_chain else 1
    desc = rig.memory.pin(ring.desc, 16 * ring.size).view
    reader = ChainReader(desc, ring.size, rig.memory, indirect=True)

    def outcome() -> object:
        try:
            chain = reader.read(head)
        except (QueueError, TranslationError) as error:
            return str(error)
        lengths = chain.readable_bytes, chain.writable_bytes
        return [*map(len, chain.readable)], [*map(len, chain.writable)], lengths

    at_once = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain_module, "_take_in_order", lambda table: None)
        assert outcome() == at_once


def test_what_a_driver_writes_is_taken_in_one_step(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    take = chain_module._take_in_order

    def noting(table: bytes) -> object:
        taken.append(take(table))
        return taken[-1]

    monkeypatch.setattr(chain_module, "_take_in_order", noting)
    chain_module._in_order.cache_clear()
    ring = rig.ring()
    table = in_order(4, 2)
    rig.ram.write(TABLE, b"".join(Descriptor(*each).pack() for each in table))
    ring.describe(0, TABLE, 16 * 4, DESC_F_INDIRECT)
    ring.offer(0)
    chain = rig.queue(ring).pop()
    assert chain is not None
    assert taken == [(tuple(DATA + 8 * n for n in range(4)), (8, 8, 8, 8), 2)]
    assert (chain.readable_bytes, chain.writable_bytes) == (16, 16)


def test_an_indirect_table_is_read_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that rewrites its table after the check changes nothing: the copy is what counts."""
    ring = rig.ring()
    rig.ram.write(TABLE, Descriptor(DATA, 8, 0, 0).pack())
    ring.describe(0, TABLE, 16, DESC_F_INDIRECT)
    ring.offer(0)
    read = rig.memory.read

    def read_then_rewrite(gpa: int, length: int) -> bytes:
        copy = read(gpa, length)
        rig.ram.write(TABLE, Descriptor(0, 1 << 30, 0, 0).pack())
        return copy

    monkeypatch.setattr(rig.memory, "read", read_then_rewrite)
    chain = rig.queue(ring).pop()
    assert chain is not None
    assert chain.readable_bytes == 8


def refusal(rig: Rig, ring: GuestRing, head: int = 0, *, indirect: bool = True) -> QueueError:
    ring.offer(head)
    with pytest.raises(QueueError) as caught:
        rig.queue(ring, indirect=indirect).pop()
    return caught.value


def test_a_table_may_be_as_long_as_the_bound(rig: Rig) -> None:
    count = chain_module.MIN_INDIRECT_LIMIT
    table = in_order(count, count)
    table[-1][2] |= DESC_F_WRITE
    rig.ram.write(TABLE, b"".join(Descriptor(*each).pack() for each in table))
    ring = rig.ring()
    ring.describe(0, TABLE, 16 * count, DESC_F_INDIRECT)
    ring.offer(0)
    chain = rig.queue(ring).pop()
    assert chain is not None
    assert (len(chain.readable), len(chain.writable)) == (count - 1, 1)


def test_a_refused_index_is_named(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(2, DATA, 8, DESC_F_NEXT, 9)
    error = refusal(rig, ring, 2)
    assert "descriptor 2 names descriptor 9 of a table of 8" in error.message
    assert error.metadata == {"head": "2", "index": "9"}


def test_a_refused_loop_is_named(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(3, DATA, 8, DESC_F_NEXT, 3)
    error = refusal(rig, ring, 3)
    assert "descriptor 3 has more than 8 descriptors" in error.message
    assert error.metadata == {"head": "3", "bound": "8"}


@pytest.mark.parametrize(
    ("indirect", "flags", "why"),
    [
        (True, DESC_F_NEXT, "goes on to another one"),
        (False, 0, "INDIRECT_DESC was not negotiated"),
    ],
)
def test_a_misplaced_table_is_named(rig: Rig, indirect: bool, flags: int, why: str) -> None:
    ring = rig.ring()
    ring.describe(2, TABLE, 16, DESC_F_INDIRECT | flags, 1)
    error = refusal(rig, ring, 2, indirect=indirect)
    assert error.message == f"descriptor 2 of the chain at 2 is indirect, but {why}"
    assert error.metadata == {"head": "2"}


def test_a_table_in_a_table_is_named(rig: Rig) -> None:
    ring = rig.ring()
    rig.ram.write(TABLE, Descriptor(TABLE, 16, DESC_F_INDIRECT, 0).pack())
    ring.describe(2, TABLE, 16, DESC_F_INDIRECT)
    assert refusal(rig, ring, 2).message == (
        "descriptor 0 of the chain at 2 is indirect, but lies in an indirect table itself"
    )


@pytest.mark.parametrize("length", [17, 16 * 1025])
def test_a_table_of_a_wrong_length_is_named(rig: Rig, length: int) -> None:
    ring = rig.ring()
    ring.describe(2, TABLE, length, DESC_F_INDIRECT)
    error = refusal(rig, ring, 2)
    assert f"the chain at 2 has {length} bytes" in error.message
    assert "multiple of 16, up to 16384" in error.message
    assert error.metadata == {"head": "2", "length": str(length), "bound": "16384"}


def test_a_refused_buffer_is_named(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(2, DATA, 8, DESC_F_WRITE | DESC_F_NEXT, 3)
    ring.describe(3, DATA, 8)
    error = refusal(rig, ring, 2)
    assert error.message == "descriptor 3 of the chain at 2 is readable after a writable one"
    assert error.metadata == {"head": "2"}


def test_an_empty_buffer_is_named(rig: Rig) -> None:
    ring = rig.ring()
    ring.describe(2, DATA, 8, DESC_F_NEXT, 3)
    ring.describe(3, DATA, 0)
    error = refusal(rig, ring, 2)
    assert error.message == "descriptor 3 of the chain at 2 has a buffer of length 0"
    assert error.metadata == {"head": "2"}


def test_a_chain_of_too_many_bytes_is_named_with_the_bound(rig: Rig) -> None:
    ring = rig.ring(2048)
    room = POOL.end - ring.end
    pieces = (1 << 32) // room + 1
    ring.chain(1, writable=[(ring.end, room)] * pieces)
    error = refusal(rig, ring, 1)
    assert f"descriptor 1 has {room * pieces} bytes; 4294967295 are" in error.message
    assert error.metadata == {"head": "1", "bound": "4294967295"}


def test_a_link_out_of_a_table_is_named(rig: Rig) -> None:
    ring = rig.ring()
    rig.ram.write(TABLE, Descriptor(DATA, 8, DESC_F_NEXT, 5).pack() * 2)
    ring.describe(2, TABLE, 32, DESC_F_INDIRECT)
    error = refusal(rig, ring, 2)
    assert error.message == "the chain at descriptor 2 names descriptor 5 of a table of 2"
