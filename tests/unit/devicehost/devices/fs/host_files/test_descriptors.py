"""Descriptors are closed by their last user, and no code uses one that is closed."""

from __future__ import annotations

import ast
import errno
import os
import re
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

import services.devicehost.devices.fs as package
from services.devicehost import fastpath
from services.devicehost.devices.fs.host_files import descriptors as module_of_descriptors
from services.devicehost.devices.fs.host_files.descriptors import (
    MAX_NODE_DESCRIPTORS,
    MAX_NODES,
    WANTED_DESCRIPTORS,
    Descriptor,
    Limits,
    first_unusable,
    open_descriptors,
    raise_descriptor_limit,
    serve_one_guest,
)
from services.devicehost.devices.fs.mount.native_mount import NativeMount
from services.devicehost.devices.fs.mount.native_tables import _Pin
from tests.support.descriptors import open_fds

CAP_SYS_RESOURCE = 24
MODULES = sorted(Path(package.__path__[0]).rglob("*.py"))


def test_the_last_reference_closes(tmp_path: Path) -> None:
    first = Descriptor(os.open(tmp_path, os.O_PATH))
    number, second = first.fd, first
    del first
    os.fstat(number)
    del second
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_the_path_leads_to_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"first")
    owner = Descriptor(os.open(tmp_path / "f", os.O_PATH))
    (tmp_path / "f").unlink()
    (tmp_path / "f").write_bytes(b"second")
    assert Path(os.fsdecode(owner.path)).read_bytes() == b"first"


@pytest.mark.skipif(fastpath.library is None, reason="the native fast path is not built")
def test_a_pin_may_be_collected_after_its_tables(tmp_path: Path) -> None:
    """A collected cycle is finalized in any order; here, in the one that the pin must survive."""
    assert fastpath.library is not None
    tables = NativeMount(
        fastpath.library,
        Descriptor(os.open(tmp_path, os.O_PATH)),
        fastpath.PhRules(),
        Limits(nodes=16, descriptors=16, handles=16),
        root_id=1,
        may_switch=False,
    )
    unpinned: list[int | None] = []
    pin = _Pin(tables, lambda pointer, _pin: unpinned.append(pointer), 0, -1)
    tables.__del__()
    del pin
    assert unpinned == []


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_number_outlives_its_owner(module: Path) -> None:
    """`table.get(n).fd` may be closed, and used for another file, before it is used."""
    temporaries = [
        f"{module.name}:{node.lineno}"
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("fd", "path")
        and isinstance(node.value, ast.Call)
    ]
    assert temporaries == []


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        limits = raise_descriptor_limit()
        raised, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised == most
        assert most == (max(hard, WANTED_DESCRIPTORS) if _may_raise_limits() else hard)
        assert 0 < limits.handles <= limits.nodes
        usable = raised - 1024
        assert limits.descriptors == min(usable // 2, MAX_NODE_DESCRIPTORS)
        assert 2 * limits.handles <= usable - usable // 32, "each with its node"
        assert (limits.all_handles, limits.one_guest) == (limits.handles, False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("hard", "may_raise", "reached"),
    [
        (4096, True, WANTED_DESCRIPTORS),
        (4096, False, 4096),
        (2 * WANTED_DESCRIPTORS, True, 2 * WANTED_DESCRIPTORS),
    ],
)
@pytest.mark.parametrize("error", [ValueError, PermissionError])
def test_what_is_reached_of_the_limit_is_divided(
    monkeypatch: pytest.MonkeyPatch,
    hard: int,
    may_raise: bool,
    reached: int,
    error: type[Exception],
) -> None:
    limits = pretend_limit(monkeypatch, hard, may_raise=may_raise, error=error)
    found = raise_descriptor_limit()
    assert limits == [(reached, reached)]
    usable = reached - 1024
    descriptors = min(usable // 2, MAX_NODE_DESCRIPTORS)
    assert found[:3] == (MAX_NODES, descriptors, (usable - usable // 32) // 2)


@pytest.mark.parametrize(("hard", "descriptors"), [(2, 1), (4, 1), (8, 2), (2048, 512)])
def test_a_share_has_a_descriptor_and_a_handle_however_low_the_limit(
    monkeypatch: pytest.MonkeyPatch, hard: int, descriptors: int
) -> None:
    pretend_limit(monkeypatch, hard, may_raise=False, error=ValueError)
    handles = {2: 1, 4: 1, 8: 2, 2048: 496}[hard]
    assert raise_descriptor_limit()[:3] == (MAX_NODES, descriptors, handles)


def test_a_process_of_one_guest_keeps_little_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1,024 descriptors, the default of many shells, it may have 465 files open."""
    monkeypatch.setattr(module_of_descriptors, "_process", SimpleNamespace(one_guest=False))
    pretend_limit(monkeypatch, 1024, may_raise=False, error=ValueError)
    assert raise_descriptor_limit().handles == 248
    serve_one_guest()
    limits = raise_descriptor_limit()
    assert (limits.handles, limits.one_guest) == (465, True)


def pretend_limit(
    monkeypatch: pytest.MonkeyPatch, hard: int, *, may_raise: bool, error: type[Exception]
) -> list[tuple[int, int]]:
    """Have a process without or with CAP_SYS_RESOURCE; returns the limits that it sets."""
    limits: list[tuple[int, int]] = []

    def set_limit(_: int, wanted: tuple[int, int]) -> None:
        if wanted[1] > hard and not may_raise:
            raise error
        limits.append(wanted)

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    return limits


class OldPath(type(Path())):  # type: ignore[misc]
    """A path on Linux before 6.2, whose /proc/self/fd has no size."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        return os.stat_result([0] * 10)


@pytest.mark.parametrize("path", [Path, OldPath])
def test_all_descriptors_of_the_process_are_counted(
    monkeypatch: pytest.MonkeyPatch, path: type[Path]
) -> None:
    monkeypatch.setattr(module_of_descriptors, "Path", path)
    before = open_fds() - 1  # without that of the listing
    assert open_descriptors() == before
    fds = [os.eventfd(0) for _ in range(3)]
    assert open_descriptors() == before + 3
    for fd in fds:
        os.close(fd)


def test_all_devices_together_leave_descriptors_to_the_rest_of_the_process(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        held = [Descriptor(os.open(tmp_path, os.O_PATH)) for _ in range(128 - before)]
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            held += [Descriptor(os.open(tmp_path, os.O_PATH)) for _ in range(before + 1)]
        os.close(os.eventfd(0))
        assert open_fds() == before + len(held), "what was refused is closed"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("limit", [1024, 2048, 4096])
def test_the_first_number_that_is_left_to_the_rest_of_the_process(limit: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        first = first_unusable()
        assert first == max(limit - 1024, limit // 2)
        for number in (first - 1, first):
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                os.fstat(number)
        last = Descriptor(os.dup2(0, first - 1, inheritable=False))
        os.fstat(last.fd)
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            Descriptor(os.dup2(0, first, inheritable=False))
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.fstat(first)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _may_raise_limits() -> bool:
    status = Path("/proc/self/status").read_text()
    [effective] = re.findall(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    return bool(int(effective, 16) >> CAP_SYS_RESOURCE & 1)
