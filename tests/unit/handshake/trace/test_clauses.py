"""The table of clauses against mutations that are made from what its rows read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.checker import verify
from services.handshake.trace.clause import Form, Hops, Value
from services.handshake.trace.table import CLAUSES, RULES
from services.handshake.trace.vm_trace import group_by_vm
from tests.support.handshake_traces import VALID, judged_broken, not_as_requested, record
from tests.support.trace_mutants import mutants

if TYPE_CHECKING:
    from services.handshake.events import Attribute
    from services.handshake.trace.clause import Clause, Read
    from services.handshake.trace.recorded import Recording, TraceEvent

READS = list(dict.fromkeys(read for clause in CLAUSES for read in clause.reads))
RECORDED = {name: record(make()) for name, make in VALID.items()}
# Its one breach is that of the guest; a mutation of it must break another rule.
RECORDED["not_as_requested"] = record(not_as_requested())
RECORDED["judged_broken"] = record(judged_broken())
BROKEN_ANYWAY = dict.fromkeys(
    ("not_as_requested", "judged_broken"), frozenset({"POOL_NOT_AS_REQUESTED"})
)


def broken(mutant: Recording) -> frozenset[str]:
    """The rules that a mutant breaks; of a trace without a VM there is nothing to name."""
    try:
        verdicts = verify(mutant)
    except InvalidArgumentError:
        return frozenset({"TRACE_WITHOUT_VM"})
    return frozenset(item.rule for verdict in verdicts for item in verdict.violations)


@cache
def judged(read: Read) -> list[tuple[str, frozenset[str]]]:
    return [
        (f"{name}: {label}", broken(mutant) - BROKEN_ANYWAY.get(name, frozenset()))
        for name, valid in RECORDED.items()
        # A pool that is not what was requested is as wrong with yet another size.
        if not (name in BROKEN_ANYWAY and read == Hops())
        for label, mutant in mutants(read, valid)
    ]


@pytest.mark.parametrize("read", READS, ids=str)
def test_no_mutation_of_what_a_rule_reads_is_valid(read: Read) -> None:
    assert [label for label, rules in judged(read) if not rules] == []


@pytest.mark.parametrize("name", RECORDED)
def test_the_traces_that_are_changed_are_valid(name: str) -> None:
    assert broken(RECORDED[name]) == BROKEN_ANYWAY.get(name, frozenset())


@pytest.mark.parametrize("read", READS, ids=str)
def test_every_read_has_a_mutation(read: Read) -> None:
    assert judged(read)


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.rule)
def test_every_rule_is_broken_by_a_mutation_of_what_it_reads(clause: Clause) -> None:
    assert clause.reads
    assert any(clause.rule in rules for read in clause.reads for _, rules in judged(read))


class Spied(Mapping[str, "Attribute"]):
    """The attributes of an event; what is read of them is noted."""

    def __init__(self, event: TraceEvent, noted: set[tuple[str, str]]) -> None:
        self._event = event
        self._noted = noted

    def __getitem__(self, key: str) -> Attribute:
        self._noted.add((self._event.name, key))
        return self._event.attributes[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._event.attributes)

    def __len__(self) -> int:
        return len(self._event.attributes)


# Every rule groups events by these, or shows them; DEVICE_… and CREATED_MISSING compare them.
IDENTITY = {events.VM_ID, events.DEVICE_ID, events.DEVICE_CLASS, events.DEVICE_TAG}


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.rule)
def test_a_rule_reads_what_its_row_says(clause: Clause) -> None:
    noted: set[tuple[str, str]] = set()
    for valid in RECORDED.values():
        spied = (replace(event, attributes=Spied(event, noted)) for event in valid.events)
        for vm in group_by_vm(replace(valid, events=tuple(spied)), frozenset()):
            list(clause.check(vm))
    said = {(read.event, read.key) for read in clause.reads if isinstance(read, Value | Form)}
    assert {(event, key) for event, key in noted if key not in IDENTITY} <= said


def test_every_rule_has_one_row() -> None:
    assert len(RULES) == len(CLAUSES)


def test_the_document_has_the_table() -> None:
    document = (Path(__file__).parents[4] / "docs" / "handshake.md").read_text()
    rows = [row for row in document.splitlines() if row.startswith("| `") and row.count("|") == 4]
    listed = [row for row in rows if row.split("`")[1].isupper()]
    assert listed == [
        f"| `{clause.rule}` | {clause.section} | {clause.says} |" for clause in CLAUSES
    ]
