"""The matrix has every variable that is to be measured, and names each case."""

from __future__ import annotations

import pytest

from bench import targets
from bench.cases import KIB, MIB, Kind, Medium, Size, matrix


@pytest.mark.parametrize("size", list(Size))
def test_names_are_unique(size: Size) -> None:
    names = [case.name for case in matrix(size)]
    assert len(names) == len(set(names))


def test_the_full_matrix_has_every_variable() -> None:
    cases = matrix(Size.FULL)
    for medium in Medium:
        on = [case for case in cases if case.medium is medium]
        small = {(c.operation, c.depth) for c in on if c.moves_data and c.block_bytes == 4 * KIB}
        assert small >= {(op, depth) for op in ("read", "write") for depth in (1, 16, 64)}
        large = {(c.block_bytes, c.depth) for c in on if c.kind is Kind.LARGE and c.sequential}
        assert large >= {(size, depth) for size in (128 * KIB, MIB) for depth in (1, 8)}
        others = {case.operation for case in on}
        assert others >= {"getattr", "lookup", "open", "create"}
        assert {c.files for c in on if c.operation == "list"} == {1000, 100_000}
    assert {case.queues for case in cases} >= {1, 2, 4}
    assert {case.scattered for case in cases} == {True, False}
    assert {case.kind for case in cases} == set(Kind)


def test_a_name_says_what_is_measured() -> None:
    names = {case.name for case in matrix(Size.FULL)}
    assert "4 KiB random read QD16, 4 queues" in names
    assert "1 MiB sequential write QD8, contiguous" in names
    assert "READDIRPLUS of 100,000 QD1, on disk" in names


def test_a_virtiofsd_that_cannot_hold_so_many_files_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.targets.os.access", lambda *_: True)
    monkeypatch.setattr("bench.targets.resource.getrlimit", lambda _: (1024, 20_000))
    assert targets.virtiofsds(1000) == [targets.C, targets.RUST]
    assert targets.virtiofsds(100_000) == [targets.RUST]
