"""Each device folder has the same files for the same roles, so that one is read like the other."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from services.devicehost import devices
from services.devicehost.devices import DEVICE_TYPES

FOLDERS = sorted(path.parent for path in Path(devices.__path__[0]).glob("*/__init__.py"))
ROLES = {"__init__.py", "device.py", "protocol.py", "backend.py"}


def test_there_are_devices() -> None:
    assert [folder.name for folder in FOLDERS] == ["fs", "net"]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_files_of_a_device(folder: Path) -> None:
    assert {path.name for path in folder.glob("*.py")} == ROLES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_roles_are_documented(folder: Path) -> None:
    text = inspect.getdoc(devices) or ""
    assert all(f"`{role}`" in text for role in ROLES - {"__init__.py"})


def test_every_device_folder_is_in_the_table() -> None:
    served = {backend.__module__ for backend in DEVICE_TYPES}
    assert served == {f"{devices.__name__}.{folder.name}.backend" for folder in FOLDERS}
