from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import FailedPreconditionError
from services.rpc.run_directory import claim, default_run_dir, guard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

both = pytest.mark.parametrize("use", [claim, guard])


def refused(use: Callable[[Path], None], path: Path) -> str:
    with pytest.raises(FailedPreconditionError) as caught:
        use(path)
    assert caught.value.reason == "RUN_DIR_UNSAFE"
    assert str(path) in caught.value.message
    return caught.value.message


def test_the_default_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_run_dir() == tmp_path / "porthole"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_run_dir().name == f"porthole-{os.geteuid()}"


@both
@pytest.mark.parametrize("mode", [0o700, 0o500])
def test_what_is_ours_alone_is_used(use: Callable[[Path], None], run_dir: Path, mode: int) -> None:
    run_dir.chmod(mode)
    use(run_dir)
    link = run_dir.with_name(f"{run_dir.name}-link")
    link.symlink_to(run_dir)
    try:
        use(link)
    finally:
        link.unlink()


@both
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o755, 0o701, 0o710])
def test_permissions_of_others_are_refused(
    use: Callable[[Path], None], run_dir: Path, mode: int
) -> None:
    run_dir.chmod(mode)
    message = refused(use, run_dir)
    assert f"{mode:04o}" in message
    assert f"chmod 700 {run_dir}" in message


@both
def test_another_users_directory_is_refused(
    use: Callable[[Path], None], run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: ours + 1)
    message = refused(use, run_dir)
    assert f"belongs to user {ours}, not to {ours + 1}" in message
    assert "--run-dir" in message


@both
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a link away")
def test_another_users_link_is_refused(use: Callable[[Path], None], run_dir: Path) -> None:
    (run_dir / "own").mkdir(mode=0o700)
    link = run_dir / "link"
    link.symlink_to(run_dir / "own")
    os.lchown(link, 65534, 65534)
    assert "belongs to user 65534" in refused(use, link)


@both
def test_a_file_is_refused(use: Callable[[Path], None], run_dir: Path) -> None:
    (run_dir / "file").touch(0o600)
    assert "not a directory" in refused(use, run_dir / "file")


def test_a_service_makes_it(run_dir: Path) -> None:
    claim(run_dir / "a" / "b")
    assert stat.S_IMODE((run_dir / "a" / "b").stat().st_mode) == 0o700


def test_a_client_makes_it_where_others_could(run_dir: Path) -> None:
    """Another user must not make it while the client waits for a service."""
    guard(run_dir / "typing error")
    guard(run_dir / "none" / "here")
    assert list(run_dir.iterdir()) == []
    run_dir.chmod(0o1777)
    guard(run_dir / "porthole")
    assert stat.S_IMODE((run_dir / "porthole").stat().st_mode) == 0o700
