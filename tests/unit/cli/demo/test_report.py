from __future__ import annotations

import io

from rich.console import Console

from services.cli.demo.report import SHOWN_LIMIT, DemoReport, VmReport, summary_table
from services.cli.verdict import VALID
from services.cli.views import CopyResult
from tests.unit.cli.test_tables import VM


def passing() -> DemoReport:
    return DemoReport(vms=[VmReport(kind="WSL2", name="one", files=3)], handshake=VALID)


def test_the_json_begins_with_the_keys_that_programs_rely_on() -> None:
    document = passing().as_json()
    assert document["handshake"] == "valid"
    vms = document["vms"]
    assert isinstance(vms, list)
    assert list(vms[0])[:11] == [
        *("kind", "kernel", "gpa_base", "size_bytes", "token", "devices"),
        *("bytes_in", "bytes_out", "files", "mismatches", "refused"),
    ]


def test_everything_equal_passes() -> None:
    assert passing().passed


def test_a_mismatch_fails() -> None:
    report = passing()
    report.vms[0].compare("read", ["a: differs"])
    assert report.vms[0].mismatches == 1
    assert report.vms[0].failures == ["read: a: differs"]
    assert not report.passed


def test_all_mismatches_count_but_only_the_first_are_written_out() -> None:
    vm = VmReport(kind="WSL2")
    vm.compare("read", [str(number) for number in range(SHOWN_LIMIT * 2)])
    assert vm.mismatches == SHOWN_LIMIT * 2
    assert len(vm.failures) == SHOWN_LIMIT


def test_a_refused_address_fails() -> None:
    report = passing()
    report.vms[0].take(VM)
    assert report.vms[0].refused == 1
    assert not report.passed


def test_a_broken_rule_fails() -> None:
    report = passing()
    report.handshake = "TOKEN_PRESENT"
    assert not report.passed


def test_no_vm_at_all_fails() -> None:
    assert not DemoReport(handshake=VALID).passed


def test_a_vm_without_a_token_is_degraded_and_has_zeros() -> None:
    vm = VmReport(kind="WSL2", name="old")
    assert (vm.gpa_base, vm.size_bytes, vm.token) == (0, 0, "")
    vm.take(VM)
    assert not vm.degraded
    assert (vm.gpa_base, vm.size_bytes, vm.token) == (0x3C000000, 64 << 20, VM.token)
    assert (vm.devices, vm.bytes_in, vm.bytes_out) == (1, 1024, 3 << 20)


def test_the_table_has_a_column_per_vm_and_marks_the_degraded_one() -> None:
    report = DemoReport(
        vms=[
            VmReport(kind="WSL2", name="new", token="t"),
            VmReport(kind="WSL2", name="old", degraded=True, copied=CopyResult(1, 2, 3, 4096)),
        ]
    )
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(report))
    stream = console.file
    assert isinstance(stream, io.StringIO)
    text = stream.getvalue()
    assert text.splitlines()[0].split() == ["new", "old", "(degraded)"]
    assert ["tree", "written", "-", "2", "files,", "4", "KiB"] in [
        line.split() for line in text.splitlines()
    ]
