"""The trace checker: valid handshakes pass, and each rule has a change that breaks only it."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handshake import events
from services.handshake.errors import InvalidArgumentError
from services.handshake.events import FS
from services.handshake.trace.checker import verify
from services.handshake.trace.recorded import Recording, Span, TraceEvent
from services.handshake.trace.vocabulary import VOCABULARY
from tests.support.handshake_traces import (
    CONFLICT,
    NEW,
    OTHER,
    POOL,
    TOKEN,
    TRACE,
    VALID,
    VM,
    attacked,
    change,
    device,
    index,
    move,
    nothing_requested,
    old_device_host,
    old_kernel,
    old_kernel_wslc,
    pool_came_late,
    pushed,
    record,
    refused,
    repeat,
    sizing,
    without,
    wsl2,
    wslc,
)

if TYPE_CHECKING:
    from tests.support.handshake_traces import Steps

NUMBERS = {events.POOL_BASE: OTHER.base, events.POOL_SIZE_BYTES: OTHER.size_bytes}


ALL_OF_WSL2 = record(wsl2())


def rules(recorded: Recording) -> set[str]:
    [verdict] = verify(recorded)
    return {violation.rule for violation in verdict.violations}


@pytest.mark.parametrize("case", sorted(VALID))
def test_a_valid_handshake_passes(case: str) -> None:
    [verdict] = verify(record(VALID[case]()))
    assert verdict.violations == ()
    assert verdict.valid


def test_the_verdict_has_the_facts_of_the_vm() -> None:
    [verdict] = verify(record(wsl2()))
    assert (verdict.vm_id, verdict.kind, verdict.token, verdict.devices) == (VM, "WSL2", TOKEN, 3)


def test_order_is_that_of_time_whatever_the_file_says() -> None:
    recording = record(wsl2())
    shuffled = random.Random(7).sample(recording.events, len(recording.events))
    assert rules(replace(recording, events=tuple(shuffled))) == set()


def test_events_that_are_not_of_the_handshake_are_ignored() -> None:
    recording = record(wsl2())
    foreign = TraceEvent("exception", {"exception.type": "ValueError"}, recording.spans[0], 5)
    assert rules(replace(recording, events=(*recording.events, foreign))) == set()


def test_every_vm_is_judged_by_itself() -> None:
    other = [
        (f"other-{span}", replace(event, attributes={**event.attributes, events.VM_ID: "other"}))
        for span, event in without(wslc(), events.DEVICE_ADDED)
    ]
    first, second = verify(record(wsl2()) + record(other, "e" * 32))
    assert first.valid
    assert (second.vm_id, second.valid) == ("other", False)


def test_a_vm_that_never_booted_is_judged_only_when_there_is_no_other() -> None:
    stillborn = record(
        [
            ("create", events.vm_created("other", "WSL2", sizing(0))),
            ("end", events.vm_terminated("other")),
        ],
        "e" * 32,
    )
    assert [(v.vm_id, v.valid) for v in verify(record(wsl2()) + stillborn)] == [(VM, True)]
    assert rules(stillborn) == {"BOOTED_MISSING", "CAPABILITIES_MISSING"}


def test_a_creation_that_failed_may_be_repeated_with_the_id() -> None:
    failed = [
        ("create", events.vm_created(VM, "WSL2", sizing(0))),
        ("end", events.vm_terminated(VM)),
    ]
    later = [
        replace(event, time_unix_nano=event.time_unix_nano + 10**12) for event in ALL_OF_WSL2.events
    ]
    again = Recording(ALL_OF_WSL2.spans, tuple(later))
    assert [verdict.valid for verdict in verify(record(failed, "e" * 32) + again)] == [True]


def test_a_trace_without_a_vm_is_no_success() -> None:
    with pytest.raises(InvalidArgumentError, match="no event of any VM") as caught:
        verify(Recording())
    assert caught.value.reason == "TRACE_WITHOUT_VM"


def insert(steps: Steps, after: str, event: events.Event, span: str = "extra") -> Steps:
    """The steps with one more event after the first of a name."""
    place = index(steps, after) + 1
    return [*steps[:place], (span, event), *steps[place:]]


def swap(steps: Steps, name: str) -> Steps:
    """The steps with the first event of a name and the one before it exchanged."""
    place = index(steps, name)
    return [*steps[: place - 1], steps[place], steps[place - 1], *steps[place + 1 :]]


def with_options(steps: Steps, options: str) -> Steps:
    """The steps with other options of the share."""
    return change(steps, events.DEVICE_ADDED, {events.DEVICE_OPTIONS: options}, tag="src")


def with_share(steps: Steps, share: Steps) -> Steps:
    """The steps with another life of the share."""
    place = index(steps, events.DEVICE_ADDED, tag="src")
    return [*steps[:place], *share, *steps[place + len(share) :]]


def alive(steps: Steps) -> Steps:
    """The steps without the end of the VM and of its devices."""
    return without(steps, events.DEVICE_REMOVED, events.VM_TERMINATED)


def split() -> Recording:
    recording = record(wsl2())
    *rest, last = recording.events
    moved = replace(last, span=replace(last.span, trace_id="f" * 32))
    return Recording((*recording.spans, moved.span), (*rest, moved))


DEVICE_HOST_WARNED = events.device_host_unsupported(VM, "the device host is too old")
WARNED = events.kernel_unsupported(VM, "the kernel is too old")
READ, APPLY, PUSH = events.WSLC_READ, events.WSLC_APPLY, events.GUEST_KERNEL_INFO
LATCHED, REFUSED = events.POOL_LATCHED, events.POOL_REFUSED
SRC = ("id-src", FS, "src")


def in_capitals(steps: Steps) -> Steps:
    """The steps with a token that nobody can parse, consistently."""
    token = TOKEN.upper().replace("SWIOTLB", "swiotlb")
    changed = change(steps, LATCHED, {events.TOKEN: token})
    for tag in ("src", "eth0", "loopback0"):
        options = {events.DEVICE_OPTIONS: f"{tag};{token};vm_id={VM}"}
        changed = change(changed, events.DEVICE_ADDED, options, tag=tag)
    return changed


def unattached(steps: Steps, attached: str) -> Steps:
    """The steps with a share that never attached."""
    return without(without(steps, attached, tag="src"), events.FIRST_REQUEST, tag="src")


def with_both(steps: Steps, attached: str) -> Steps:
    """The steps with a share that has both an aperture and windows."""
    other = (
        events.windows_enabled(VM, *SRC)
        if attached == events.APERTURE_CREATED
        else events.aperture_created(VM, *SRC, POOL)
    )
    return insert(steps, attached, other)


def failed_after_it_attached() -> Steps:
    """A share whose device got its aperture, and never answered the guest's first request."""
    added, attached, _, (_, removed) = device("bad", FS, TOKEN)
    steps = wsl2()
    return [*steps[:4], added, attached, (added[0], removed), *steps[4:]]


def foreseen() -> Steps:
    """A device that has the token before the pool was latched."""
    steps = pool_came_late()
    early = device("early", FS, TOKEN)
    place = index(steps, events.DEVICE_ADDED, tag="early")
    return [*steps[:place], *early, *steps[place + len(early) :]]


# The rules, and a trace that breaks these and no other.
BROKEN: list[tuple[str, Recording]] = [
    ("TRACE_SPLIT PARENT_MISSING SPAN_STRAY", split()),
    *(
        (rule, record(steps))
        for rule, steps in (
            ("ATTRIBUTE_INVALID", change(wsl2(), PUSH, {events.SECCOMP: None})),
            (
                "ATTRIBUTE_INVALID VERSION_MISMATCH",
                change(wsl2(), PUSH, {events.KERNEL_MAJOR: "6"}),
            ),
            (
                "ATTRIBUTE_INVALID",
                change(old_kernel(), events.KERNEL_UNSUPPORTED, {events.DETAIL: True}),
            ),
            ("KIND_MISMATCH", insert(wslc(), LATCHED, wsl2()[2][1])),
            ("KIND_MISMATCH", change(wsl2(), events.VM_CREATED, {events.VM_KIND: "WSL1"})),
            ("CREATED_MISSING", without(wsl2(), events.VM_CREATED)),
            ("BOOTED_MISSING", without(wsl2(), events.GUEST_BOOTED)),
            ("CAPABILITIES_MISSING", wsl2()[:2]),
            ("CAPABILITIES_MISSING", without(old_kernel_wslc(), APPLY)),
            ("READ_MISSING", without(wslc(), READ)),
            ("EVENT_REPEATED", repeat(wsl2(), events.VM_CREATED)),
            ("EVENT_REPEATED", repeat(wsl2(), events.GUEST_BOOTED)),
            ("EVENT_REPEATED ANSWER_MISMATCH", repeat(wsl2(), LATCHED)),
            ("EVENT_REPEATED", repeat(wsl2(), events.VM_TERMINATED)),
            ("ORDER_CREATED", move(wsl2(), events.GUEST_BOOTED, before=events.VM_CREATED)),
            ("ORDER_BOOTED", move(wsl2(), PUSH, before=events.GUEST_BOOTED)),
            ("ORDER_BOOTED", move(wslc(), READ, before=events.GUEST_BOOTED)),
            ("ORDER_APPLIED", move(wslc(), APPLY, before=READ)),
            ("ORDER_POOL", move(wsl2(), LATCHED, before=PUSH)),
            ("ORDER_POOL POOL_UNANSWERED", move(refused(), REFUSED, before=PUSH)),
            ("ORDER_WARNING", move(old_kernel(), events.KERNEL_UNSUPPORTED, before=PUSH)),
            ("ORDER_DEVICE", move(old_kernel(), events.DEVICE_ADDED, before=PUSH)),
            (
                "ORDER_DEVICE_HOST_WARNING",
                move(
                    old_device_host(),
                    events.DEVICE_HOST_UNSUPPORTED,
                    before=events.DEVICE_ADDED,
                ),
            ),
            ("ORDER_ADDED", swap(wsl2(), events.APERTURE_CREATED)),
            ("ORDER_FIRST_REQUEST", swap(wsl2(), events.FIRST_REQUEST)),
            ("ORDER_REMOVED DEVICE_REPEATED", repeat(wsl2(), events.DEVICE_REMOVED)),
            ("ORDER_REMOVED", swap(wsl2(), events.DEVICE_REMOVED)),
            ("ORDER_TERMINATED", swap(wsl2(), events.VM_TERMINATED)),
            ("POOL_UNANSWERED", without(refused(), REFUSED)),
            ("POOL_MISMATCH", change(wsl2(), PUSH, NUMBERS)),
            ("READ_MISMATCH", change(wslc(), READ, NUMBERS)),
            ("READ_MISMATCH", change(wslc(), READ, dict.fromkeys(NUMBERS, 0))),
            ("POOL_UNANSWERED READ_MISMATCH", without(attacked(), REFUSED)),
            ("APERTURE_MISMATCH", change(wsl2(), events.APERTURE_CREATED, NUMBERS)),
            ("APERTURE_MISMATCH", change(wsl2(), events.APERTURE_CREATED, NUMBERS, tag="eth0")),
            ("TOKEN_MALFORMED", in_capitals(wsl2())),
            ("TOKEN_MISSING", with_share(wsl2(), device("src", FS, None))),
            (
                "TOKEN_MISMATCH POOL_INVALID",
                with_options(wsl2(), f"src;swiotlb=0x3c000000,1;vm_id={VM}"),
            ),
            ("TOKEN_MISMATCH", with_options(wsl2(), f"src;{TOKEN};{TOKEN};vm_id={VM}")),
            ("TOKEN_MISMATCH", with_options(wsl2(), f"src;{TOKEN} ;vm_id={VM}")),
            ("TOKEN_UNEXPECTED", with_share(refused(), device("src", FS, TOKEN))),
            ("TOKEN_UNEXPECTED", foreseen()),
            (
                "TOKEN_UNEXPECTED",
                with_share(old_device_host(), device("src", FS, TOKEN, features=())),
            ),
            ("OPTIONS_MALFORMED", with_options(wsl2(), f"src;{TOKEN};;vm_id={VM}")),
            ("OPTIONS_MALFORMED", with_options(old_kernel(), f"src;;vm_id={VM}")),
            ("OPTIONS_MALFORMED", with_options(wsl2(), f"src;vm_id={VM};{TOKEN}")),
            ("OPTIONS_MALFORMED", with_options(wsl2(), f"src;{TOKEN};vm_id=other")),
            (
                "DEVICE_UNKNOWN PARENT_MISSING SPAN_STRAY",
                without(wsl2(), events.DEVICE_ADDED, tag="src"),
            ),
            ("APERTURE_MISSING", unattached(wsl2(), events.APERTURE_CREATED)),
            ("APERTURE_UNEXPECTED", with_both(old_kernel(), events.WINDOWS_ENABLED)),
            ("WINDOWS_MISSING", unattached(old_kernel(), events.WINDOWS_ENABLED)),
            ("WINDOWS_UNEXPECTED", with_both(wsl2(), events.APERTURE_CREATED)),
            ("FIRST_REQUEST_MISSING", without(wsl2(), events.FIRST_REQUEST, tag="src")),
            ("FIRST_REQUEST_MISSING", failed_after_it_attached()),
            ("FIRST_REQUEST_MISSING", alive(without(wsl2(), events.FIRST_REQUEST, tag="eth0"))),
            ("WARNING_MISSING", without(old_kernel(), events.KERNEL_UNSUPPORTED)),
            ("WARNING_UNEXPECTED", insert(wsl2(), LATCHED, WARNED)),
            ("WARNING_UNEXPECTED", insert(old_kernel_wslc(), APPLY, WARNED)),
            ("WARNING_UNEXPECTED", insert(refused(), REFUSED, WARNED)),
            ("WARNING_UNEXPECTED", insert(nothing_requested(), PUSH, WARNED)),
            ("WARNING_REPEATED", repeat(old_kernel(), events.KERNEL_UNSUPPORTED)),
            (
                "DEVICE_HOST_WARNING",
                without(old_device_host(), events.DEVICE_HOST_UNSUPPORTED),
            ),
            (
                "DEVICE_HOST_WARNING",
                repeat(old_device_host(), events.DEVICE_HOST_UNSUPPORTED),
            ),
            ("DEVICE_HOST_WARNING", insert(wsl2(), events.DEVICE_ADDED, DEVICE_HOST_WARNED)),
        )
    ),
]


@pytest.mark.parametrize(("named", "recorded"), BROKEN, ids=[named for named, _ in BROKEN])
def test_a_change_breaks_exactly_these_rules(named: str, recorded: Recording) -> None:
    assert rules(recorded) == set(named.split())


def test_only_a_caller_may_excuse_an_idle_device() -> None:
    recorded = record(alive(without(wsl2(), events.FIRST_REQUEST, tag="eth0")))
    assert not verify(recorded)[0].valid
    assert verify(recorded, may_be_idle=frozenset({"eth0"}))[0].valid


ALL = record(wsl2()) + record(wslc()) + record(attacked())


@given(st.lists(st.sampled_from(ALL.events)), st.lists(st.sampled_from(ALL.spans)))
def test_no_selection_of_events_and_spans_makes_the_checker_fail(
    chosen: list[TraceEvent], spans: list[Span]
) -> None:
    if chosen:
        assert len(verify(Recording(tuple(spans), tuple(chosen)))) == 1


@given(
    st.sampled_from(sorted(VOCABULARY)),
    st.dictionaries(
        st.sampled_from([events.VM_ID, events.DEVICE_ID, events.TOKEN, events.POOL_BASE]),
        st.integers() | st.text(max_size=4) | st.booleans(),
    ),
)
def test_no_attributes_make_the_checker_fail(
    name: str, attributes: dict[str, events.Attribute]
) -> None:
    hostile = TraceEvent(name, attributes, Span("f" * 32, "s"), 5)
    assert not all(verdict.valid for verdict in verify(Recording((hostile.span,), (hostile,))))


@pytest.mark.parametrize(
    ("steps", "broken"),
    [
        (insert(wsl2(), LATCHED, events.pool_refused(VM, OTHER.base, 4096, "R", "d")), True),
        (insert(wsl2(), LATCHED, pushed(OTHER)[1]), True),
        (without(wsl2(), PUSH), False),
    ],
    ids=["answered, never announced", "announced, never answered", "no announcement"],
)
def test_every_answer_has_an_announcement_and_the_other_way_round(
    steps: Steps, broken: bool
) -> None:
    found = rules(record(steps))
    assert bool(found & {"POOL_MISMATCH", "POOL_UNANSWERED"}) == broken


def test_an_adapter_may_stay_unused_if_it_is_removed_or_its_vm_ends() -> None:
    unused = without(wsl2(), events.FIRST_REQUEST, tag="eth0")
    assert rules(record(without(unused, events.DEVICE_REMOVED))) == {"DEVICE_LEFT"}
    assert rules(record(without(unused, events.VM_TERMINATED))) == set()
    assert rules(record(alive(unused))) == {"FIRST_REQUEST_MISSING"}


def test_an_excused_device_does_not_excuse_the_ones_after_it() -> None:
    unused = without(without(wsl2(), events.FIRST_REQUEST, tag="src"), events.FIRST_REQUEST)
    [verdict] = verify(record(alive(unused)), may_be_idle=frozenset({"src"}))
    assert {violation.rule for violation in verdict.violations} == {"FIRST_REQUEST_MISSING"}


def test_no_warning_is_due_for_what_a_guest_reports_after_its_pool_was_latched() -> None:
    late = insert(wsl2(), LATCHED, events.pool_refused(VM, 0, 0, CONFLICT, "differs"))
    assert rules(record(insert(late, LATCHED, pushed(None)[1]))) == set()


def test_the_verdict_has_a_token_only_if_a_pool_was_latched() -> None:
    [verdict] = verify(record(old_kernel()))
    assert verdict.token == ""


SHOWN = "base 0x30000000, size 67108864"


@pytest.mark.parametrize(
    ("rule", "recorded", "shown"),
    [
        ("TRACE_SPLIT", split(), f"over 2 traces: {TRACE}, {'f' * 32}"),
        *(
            (rule, record(steps), shown)
            for rule, steps, shown in (
                (
                    "READ_MISMATCH",
                    change(wslc(), READ, NUMBERS),
                    f"{READ} has {SHOWN}, kernel {NEW!r}, {APPLY} has",
                ),
                ("TOKEN_MALFORMED", in_capitals(wsl2()), "the token is 'swiotlb=0X3C000000,6"),
                (
                    "TOKEN_MISSING",
                    with_options(wsl2(), f"src;ro;vm_id={VM}"),
                    f"latched: 'src;ro;vm_id={VM}' lacks it",
                ),
                (
                    "TOKEN_MISMATCH",
                    with_options(wsl2(), f"src;{TOKEN};{TOKEN};vm_id={VM}"),
                    f"got '{TOKEN};{TOKEN}', but the VM's token is '{TOKEN}'",
                ),
                (
                    "TOKEN_UNEXPECTED",
                    with_options(old_kernel(), f"src;{TOKEN};{TOKEN};vm_id={VM}"),
                    f"got '{TOKEN};{TOKEN}' although",
                ),
                (
                    "OPTIONS_MALFORMED",
                    with_options(old_kernel(), f"src;;vm_id={VM}"),
                    f"its options 'src;;vm_id={VM}' have a stray",
                ),
                (
                    "OPTIONS_MALFORMED",
                    with_options(wsl2(), f"src;vm_id={VM};{TOKEN}"),
                    f"its options 'src;vm_id={VM};{TOKEN}' do not end",
                ),
                ("WARNING_UNEXPECTED", insert(wsl2(), LATCHED, WARNED), "the kernel published one"),
                (
                    "WARNING_UNEXPECTED",
                    insert(old_kernel_wslc(), APPLY, WARNED),
                    "it is no WSL2 VM",
                ),
                (
                    "WARNING_UNEXPECTED",
                    insert(nothing_requested(), PUSH, WARNED),
                    "none was requested",
                ),
            )
        ),
    ],
)
def test_a_breach_shows_what_was_found(rule: str, recorded: Recording, shown: str) -> None:
    [verdict] = verify(recorded)
    assert any(
        violation.rule == rule and shown in violation.detail for violation in verdict.violations
    )
