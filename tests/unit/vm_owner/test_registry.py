"""The registry: how VMs are found and listed, and when those that have ended are forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import pytest

from services.handshake.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from services.vm_owner.registry import ENDED_KEPT, ENDED_KEPT_S, VmRegistry

if TYPE_CHECKING:
    from services.vm_owner.vm import Vm


@dataclass(frozen=True)
class Named:
    vm_id: str


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def filled(*ids: str, clock: Clock | None = None) -> VmRegistry[str]:
    registry: VmRegistry[str] = VmRegistry(clock or Clock())
    for vm_id in ids:
        registry.add(cast("Vm", Named(vm_id)), f"spec of {vm_id}")
    return registry


def ids(registry: VmRegistry[str]) -> list[str]:
    return [vm.vm_id for vm in registry.all()]


@pytest.mark.parametrize("given", ["aaaa1111", "aaaa1", "aaaa1111-2"])
def test_a_vm_is_found_by_its_id_or_the_beginning_of_it(given: str) -> None:
    registry = filled("aaaa1111", "aaaa1111-2", "bbbb")
    if given == "aaaa1":
        with pytest.raises(InvalidArgumentError, match="aaaa1111, aaaa1111-2") as refused:
            registry.find(given)
        assert refused.value.reason == "VM_ID_AMBIGUOUS"
    else:
        assert registry.find(given).vm_id == given


@pytest.mark.parametrize("given", ["", "bbb", "bbbbb", "cccc", "bbbb2222-3333-", "BBBB"])
def test_what_begins_no_id_or_is_too_short_finds_nothing(given: str) -> None:
    with pytest.raises(NotFoundError) as refused:
        filled("bbbb2222-3333").find(given)
    assert refused.value.reason == "VM_NOT_FOUND"


def test_a_vm_is_kept_with_its_spec() -> None:
    registry = filled("aaaa", "bbbb")
    assert registry.spec_of(registry.find("bbbb")) == "spec of bbbb"


def test_the_shortest_beginning() -> None:
    assert filled("bbbb2222-3333", "bbbc").find("bbbb").vm_id == "bbbb2222-3333"


def test_an_ambiguous_beginning_names_a_few() -> None:
    registry = filled(*(f"aaaa{number:02}" for number in range(40)))
    with pytest.raises(InvalidArgumentError, match=r"ids of 40 VMs .* aaaa07, …;"):
        registry.find("aaaa")


def test_an_id_is_given_once() -> None:
    with pytest.raises(AlreadyExistsError) as refused:
        filled("aaaa", "aaaa")
    assert refused.value.reason == "VM_EXISTS"


def test_those_that_ended_first_are_forgotten_first() -> None:
    names = [f"vm-{number}" for number in range(ENDED_KEPT + 2)]
    registry = filled("alive", *names)
    for name in reversed(names):
        registry.end(name)
    assert ids(registry) == ["alive", *names[:ENDED_KEPT]]


def test_an_ended_vm_is_forgotten_by_age_and_a_second_end_changes_nothing() -> None:
    clock = Clock()
    registry = filled("alive", "ended", clock=clock)
    registry.end("ended")
    clock.now_s += ENDED_KEPT_S
    registry.end("ended")
    assert ids(registry) == ["alive", "ended"]
    clock.now_s += 1
    assert ids(registry) == ["alive"]
    assert registry.get("ended") is None
    registry.end("ended")
    clock.now_s += 1
    assert ids(filled("ended")) == ["ended"]


def test_numbers_go_on_when_vms_are_forgotten() -> None:
    registry = filled("one", "two", "three")
    assert [number for number, _ in registry.after(1)] == [2, 3]
    registry.discard("three")
    registry.add(cast("Vm", Named("four")), "")
    assert [(number, vm.vm_id) for number, vm in registry.after(1)] == [(2, "two"), (4, "four")]
