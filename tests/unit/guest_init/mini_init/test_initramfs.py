"""The archives of a guest's image: the same bytes from the same files, and a bound."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

SCRIPT = Path(__file__).parents[4] / "deploy/guest_image/initramfs.py"


@pytest.fixture(scope="module")
def initramfs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("initramfs", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["initramfs"] = module
    spec.loader.exec_module(module)
    return module


def listed(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Names, modes and contents, by the format's description."""
    found: list[tuple[str, int, bytes]] = []
    place = 0
    while True:
        assert archive[place : place + 6] == b"070701"
        fields = [int(archive[at : at + 8], 16) for at in range(place + 6, place + 110, 8)]
        _, mode, uid, gid, _, mtime, size, *_, name_size, _ = fields
        assert (uid, gid, mtime) == (0, 0, 0)
        name = archive[place + 110 : place + 109 + name_size].decode()
        place += (110 + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert place == len(archive)
            return found
        found.append((name, mode, archive[place : place + size]))
        place += (size + 3) & ~3


def test_the_initramfs_has_init_and_a_console(initramfs: Any) -> None:
    archive = initramfs.archive(initramfs.init_entries(b"program"))
    assert archive == initramfs.archive(initramfs.init_entries(b"program"))
    files = {name: (mode, content) for name, mode, content in listed(archive)}
    assert files["init"] == (0o100755, b"program")
    assert files["dev/console"] == (0o020600, b"")
    assert files["proc"] == (0o040755, b"")


def test_modules_are_listed_after_what_they_need(initramfs: Any, tmp_path: Path) -> None:
    for name, needs in (("virtiofs", "fuse,virtio"), ("fuse", ""), ("virtio", "virtio-ring")):
        (tmp_path / f"{name}.ko").write_bytes(b"\0depends=" + needs.encode() + b"\0")
    (tmp_path / "virtio-ring.ko").write_bytes(b"\0depends=\0")
    files = {
        name: content
        for name, _, content in listed(initramfs.archive(initramfs.module_entries(tmp_path)))
    }
    assert files["modules/order"] == b"fuse.ko\nvirtio_ring.ko\nvirtio.ko\nvirtiofs.ko\n"


def test_an_initramfs_over_its_bound_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "init").write_bytes(bytes(2 << 20))
    files = (str(tmp_path / name) for name in ("init", "initramfs"))
    command = [sys.executable, str(SCRIPT), "init", *files]
    packed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert packed.returncode != 0
    assert "at most 2097152" in packed.stderr
    assert not (tmp_path / "initramfs").exists()
