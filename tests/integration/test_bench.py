"""The benchmark's own front-end against our devices: what it prints is true. No time is judged."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench import boots, front_end, guest_files, pools, scale, targets, trees, walk
from bench.cases import KIB, MIB, WORKING_SET_BYTES, Case, Medium
from bench.front_end import FrontEndError
from bench.rounds import AGAIN, FLOORS, MEMCPY, Runner, Settings
from services.devicehost import fastpath
from services.vm_owner.machines.qemu.installation import Accelerator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.targets import Target

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

ROOT = Path(__file__).parents[2]
OURS = [
    targets.PYTHON,
    targets.PYTHON_WINDOWS,
    targets.PYTHON_WHOLE,
    *([targets.NATIVE, targets.NATIVE_WINDOWS, targets.NATIVE_WHOLE] if fastpath.library else []),
]


@pytest.fixture(scope="module", autouse=True)
def _program() -> None:
    subprocess.run(["make", "--quiet", "front-end"], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def shared_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("shared")
    trees.make_tree(path, WORKING_SET_BYTES)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def settings(run_dir: Path, shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(ROOT)
    return Settings(
        seconds=0.5,  # enough for some operations on a machine that is busy with others
        warmup_s=0.01,
        rounds=1,
        run_dir=run_dir,
        shared=dict.fromkeys(Medium, shared_dir),
    )


CASES = [
    Case(operation="read", depth=4),
    Case(operation="write", depth=4),
    Case(operation="read", block_bytes=MIB, sequential=True, depth=2),
    Case(operation="write", block_bytes=128 * KIB, sequential=True, scattered=False),
    Case(operation="getattr", depth=4, files=50),
    Case(operation="lookup", depth=4, files=50, queues=2),
    Case(operation="open", files=50, polling=True),
    Case(operation="create", depth=4),
    Case(operation="list", files=50),
]


@pytest.mark.parametrize("target", OURS, ids=lambda target: target.name)
def test_every_operation_is_measured_and_checked(target: Target, settings: Settings) -> None:
    # So many operations, not a time: on a busy machine none may be done in a short one.
    runner = Runner(dataclasses.replace(settings, ops=100))
    with runner.start(target, Case(operation="lookup", files=50, queues=2)) as running:
        for case in CASES:
            found = runner.drive(case, target, running)
            assert found.operation == case.operation
            assert found.ops == 100, case.name
            assert found.bytes == (found.ops * case.block_bytes if case.moves_data else 0)
            assert (found.checked_pages > 0) == case.moves_data
            assert found.entries == (found.ops * 52 if case.operation == "list" else 0)
            assert found.ns.p50 <= found.ns.p99 <= found.ns.max * 1.04
            assert found.kicks > 0


def test_a_case_has_a_row_for_each_program_and_floor(settings: Settings) -> None:
    target = OURS[-1]
    case = Case(operation="read", block_bytes=128 * KIB, sequential=True)
    result = Runner(settings).run(case, [target], target)
    names = [target.name, target.name + AGAIN, FLOORS["read"], MEMCPY]
    assert [row.name for row in result.rows] == names
    assert all(row.rates[0] > 0 for row in result.rows)


def test_data_that_is_not_the_file_s_fails_a_run(settings: Settings, shared_dir: Path) -> None:
    other = shared_dir / "other"
    other.mkdir()
    (other / trees.READ_FILE).write_bytes(bytes(WORKING_SET_BYTES))
    (other / trees.SCRATCH).mkdir()
    wrong = dataclasses.replace(settings, shared=dict.fromkeys(Medium, other), ops=100)
    target = targets.PYTHON
    with (
        Runner(wrong).start(target, CASES[0]) as running,
        pytest.raises(FrontEndError, match="wrong data"),
    ):
        Runner(wrong).drive(CASES[0], target, running)
    shutil.rmtree(other)


def test_a_device_that_is_not_there_fails_a_run(settings: Settings) -> None:
    nowhere = f"--socket={settings.run_dir}/none.sock"
    with pytest.raises(FrontEndError, match="cannot connect"):
        front_end.run(["--operation=lookup", nowhere])


def test_many_devices_of_one_host(settings: Settings) -> None:
    alone, many = scale.measure(settings, [1, 3], native=fastpath.library is not None)
    assert (alone.devices, many.devices) == (1, 3)
    assert len(many.attach_ms) == 3
    assert all(itertools.chain(alone.rates, many.rates, alone.busy_rates, many.busy_rates))
    assert many.rss_bytes > many.anonymous_bytes > 0


@pytest.mark.root
def test_a_walk_over_more_files_than_an_ordinary_user_has_descriptors(settings: Settings) -> None:
    files = 3 * walk.DESCRIPTORS
    with tempfile.TemporaryDirectory() as place:
        shared = dict.fromkeys(Medium, Path(place))
        rows = {
            row.name: row
            for row in walk.measure(dataclasses.replace(settings, shared=shared), files)
        }
    for target in (targets.PYTHON, *([targets.NATIVE] if fastpath.library else [])):
        row = rows[target.name]
        assert (row.files, row.failure) == (files, "")
        assert 0 < row.anonymous_bytes < 2000 * files
    few = [row for row in rows.values() if row.name.endswith(walk.ORDINARY)]
    assert [row.failure for row in few] == [""] * len(few)
    assert all(row.descriptors < walk.DESCRIPTORS for row in few)
    assert few


def test_one_pool_and_a_pool_for_each_device(settings: Settings) -> None:
    rows = list(pools.measure(settings, [2]))
    assert [row.block_bytes for row in rows] == list(pools.BLOCKS)
    assert all(row.one_pool[0] > 0 and row.pool_each[0] > 0 for row in rows)


@pytest.mark.guest_image
@pytest.mark.guest_kernel
def test_the_milestones_of_a_boot_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert not boots.missing()
    bare, *ours = boots.measure(1, Accelerator.TCG)
    assert bare.name == boots.BARE
    assert bare.seconds[0] > 0
    assert [row.name for row in ours] == [boots.LATCHED, boots.MOUNTED, boots.COMMAND]
    assert 0 < ours[0].seconds[0] < ours[1].seconds[0] < ours[2].seconds[0]


@pytest.mark.root
@pytest.mark.fio
@pytest.mark.guest_image
@pytest.mark.guest_kernel
def test_each_program_serves_files_to_a_linux_guest(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_files, "LOADS", guest_files.LOADS[1:2])
    found = {row.name: row.rates for row in guest_files.measure(settings, Accelerator.TCG)}
    assert list(found)[:3] == ["pool", "windows", "whole memory"]
    assert all(rate > 0 for rates in found.values() for rate in rates)
    written = sorted(settings.shared[Medium.TMPFS].glob("written-*"))
    assert len(written) == len(found)
