"""What a killed owner leaves is removed in several attempts, and without its device hosts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from services.vm_owner import sweep as module
from services.vm_owner.sweep import forget, sweep, sweep_all

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

VM = "01234567-89ab-cdef-0123-456789abcdef"


def test_a_vm_that_has_nothing_leaves_nothing(tmp_path: Path) -> None:
    assert sweep(tmp_path, VM) == {}


def test_what_cannot_be_removed_yet_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[str] = []

    def attempt(directory: Path, vm_id: str) -> dict[str, str]:
        tried.append(vm_id)
        busy = vm_id == "stuck" or (vm_id == "late" and tried.count("late") < 3)
        return {str(directory / vm_id): "busy"} if busy else {}

    monkeypatch.setattr(module, "sweep", attempt)
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    with caplog.at_level(logging.WARNING):
        sweep_all(tmp_path, ["done", "late", "stuck"])
    assert [tried.count(vm) for vm in ("done", "late", "stuck")] == [1, 3, module.ATTEMPTS]
    assert [record.args for record in caplog.records] == [
        ("stuck", {str(tmp_path / "stuck"): "busy"})
    ]


async def test_a_device_host_that_has_ended_too_is_no_error(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEVICE_HOST_WAIT_S", 0.1)
    await forget(f"unix:{run_dir}/nobody.sock", [VM])
