"""`porthole demo` from end to end, on a small real tree: the command, its report, its trace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from services.cli.exit_codes import OK, REFUSED, UNREACHABLE
from services.simguest.net.namespace import NetworkNamespace
from tests.support.documents import check_document
from tests.support.ordinary_user import A_USER, as_ordinary_user, with_tun_for_all
from tests.support.passt import PASST, copy_passt

DEMO = (sys.executable, "-m", "services.cli.main", "demo")
DEMO_S = 240.0
TOKEN_POOL_BYTES = 64 << 20
KEPT = [".porthole-demo", "report.json", "trace.jsonl"]  # docs/getting-started.md names them


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "package" / "deep" / "deeper").mkdir(parents=True)
    for number in range(30):
        (root / "package" / f"module{number}.py").write_bytes(os.urandom(number * 997))
    (root / "package" / "deep" / "deeper" / "large").write_bytes(os.urandom(700_001))
    (root / "executable").write_text("#!/bin/sh\n")
    (root / "executable").chmod(0o755)
    (root / "private").write_text("p")
    (root / "private").chmod(0o600)
    (root / "link").symlink_to("package/module1.py")
    (root / "dangling").symlink_to("nowhere")
    return root


def demo(
    tree: Path, out: Path, *flags: str, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*prefix, *DEMO, "--tree", str(tree), "--out", str(out), *flags],
        env={"PORTHOLE_PASST": str(PASST), **os.environ},
        capture_output=True,
        text=True,
        timeout=DEMO_S,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result


def report_of(out: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((out / "report.json").read_text())
    check_document(document)
    return document


def mounts_below(directory: Path) -> list[str]:
    """Return the mounts of the demonstration; other processes may mount meanwhile."""
    table = Path("/proc/self/mountinfo").read_text()
    points = [line.split()[4] for line in table.splitlines()]
    return [point for point in points if Path(point).is_relative_to(directory)]


def interface_names() -> set[str]:
    """The interfaces of the calling thread's network."""
    return {name for _, name in socket.if_nameindex()}


def test_the_demonstration_compares_everything_and_leaves_a_valid_trace(
    tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = demo(tree, out, "--keep")
    assert result.returncode == OK, result.stderr
    report = report_of(out)
    assert report["handshake"] == "valid"
    assert report["tree_files"] == 33
    kinds = [(vm["kind"], vm["degraded"]) for vm in report["vms"]]
    assert kinds == [("WSL2", False), ("WSLC", False), ("WSL2", True)]
    for vm in report["vms"]:
        assert (vm["files"], vm["mismatches"], vm["refused"]) == (33, 0, 0), vm
        assert vm["bytes_out"] > 700_001
        assert vm["copied"] == {
            "directories": 3,
            "files": 33,
            "symbolic_links": 2,
            "bytes_copied": report["tree_bytes"],
        }
    for vm in report["vms"][:2]:
        assert vm["size_bytes"] == TOKEN_POOL_BYTES
        assert vm["token"] == f"swiotlb=0x{vm['gpa_base']:x},{vm['size_bytes']}"
        assert (vm["windows_mapped"], vm["warnings"]) == (0, [])
        assert 0 < vm["pool_slots_high_water"] <= vm["pool_slots"]
    old = report["vms"][2]
    assert old["kernel"].startswith("5.15.167.4")
    assert (old["gpa_base"], old["size_bytes"], old["token"]) == (0, 0, "")
    assert old["windows_mapped"] > 0
    assert old["warnings"] == ["MessageSwiotlbKernelUnsupported"]
    copied = out / "vm1" / "target"
    assert (copied / "package/deep/deeper/large").read_bytes() == (
        tree / "package/deep/deeper/large"
    ).read_bytes()
    assert (copied / "private").stat().st_mode & 0o777 == 0o600
    assert (out / "trace.jsonl").stat().st_size > 0


@pytest.mark.tap
@pytest.mark.passt
def test_an_ordinary_user_sees_names_http_and_a_mapped_port(tree: Path, run_dir: Path) -> None:
    (tree / "private").unlink()
    run_dir.chmod(0o755)
    out = run_dir / "out"
    out.mkdir()
    os.chown(out, A_USER, A_USER)
    shutil.copytree(tree, run_dir / "tree", symlinks=True)
    passt = f"PORTHOLE_PASST={copy_passt(run_dir)}"
    prefix = (*with_tun_for_all(as_ordinary_user([])), "env", "HOME=/", passt)
    result = demo(run_dir / "tree", out, prefix=prefix)
    assert result.returncode == OK, result.stderr
    report = report_of(out)
    assert report["not_shown"] == ["a real mount point: not shown, it needs root"]
    for vm in report["vms"]:
        assert (vm["networking"], vm["files"]) == ("virtio-proxy", 32)
        assert (vm["ping"]["sent"], vm["ping"]["received"]) == (3, 3)
        assert vm["resolved"] == ["192.0.2.1"]
        assert (vm["http"]["status"], vm["http"]["size_bytes"]) == (200, 700_001)
        assert (vm["mapped_port"]["status"], vm["mapped_port"]["size_bytes"]) == (200, 100_000)


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.tap
@pytest.mark.passt
def test_with_root_it_shows_the_mount_point_and_the_network(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with NetworkNamespace() as host:  # where nobody else makes interfaces meanwhile
        interfaces = host.run(interface_names)
        result = host.run(lambda: demo(tree, out))
        assert host.run(interface_names) == interfaces
    assert result.returncode == OK, result.stderr
    report = report_of(out)
    assert report["not_shown"] == []
    assert [vm["networking"] for vm in report["vms"]] == ["virtio-proxy", "virtio-proxy", "nat"]
    for vm in report["vms"]:
        assert vm["devices"] == 4
        assert vm["files_through_mount_point"] == 33
        assert (vm["ping"]["sent"], vm["ping"]["received"]) == (3, 3)
        assert (vm["http"]["status"], vm["http"]["size_bytes"]) == (200, 700_001)
    for vm in report["vms"][:2]:
        assert vm["resolved"] == ["192.0.2.1"]
        assert (vm["mapped_port"]["status"], vm["mapped_port"]["size_bytes"]) == (200, 100_000)
    assert mounts_below(out) == [], "it works in its own namespaces, so the host has not changed"


@pytest.mark.guest_image
@pytest.mark.guest_kernel
@pytest.mark.tap
def test_linux_guests_do_the_same(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = demo(tree, out, "--guest", "qemu", "--keep")
    assert result.returncode == OK, result.stderr
    report = report_of(out)
    assert (report["handshake"], report["not_shown"]) == ("valid", [])
    kinds = [(vm["name"], vm["kind"]) for vm in report["vms"]]
    assert kinds == [("WSL2", "WSL2"), ("WSLC", "WSLC"), ("WSL2, strict", "WSL2")]
    for vm in report["vms"]:
        assert vm["kernel"].endswith("-porthole")
        assert vm["token"] == f"swiotlb=0x{vm['gpa_base']:x},{vm['size_bytes']}"
        assert (vm["devices"], vm["files"], vm["mismatches"], vm["refused"]) == (5, 33, 0, 0), vm
        assert vm["copied"] == {
            "directories": 3,
            "files": 33,
            "symbolic_links": 2,
            "bytes_copied": report["tree_bytes"],
        }
        assert (vm["ping"]["sent"], vm["ping"]["received"]) == (3, 3)
        assert (vm["http"]["status"], vm["http"]["size_bytes"]) == (200, 700_001)


@pytest.mark.root
def test_without_rights_it_says_what_is_lacking_and_does_the_rest(
    tree: Path, tmp_path: Path
) -> None:
    # Root without the capabilities for mounts and networks, and without user namespaces, as in a
    # container. Their bound is that of each user namespace, so the machine's stays.
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    inside = ("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    out = tmp_path / "out"
    result = demo(tree, out, prefix=(*inside, "setpriv", "--bounding-set=-sys_admin,-net_admin"))
    assert result.returncode == OK, result.stderr
    report = report_of(out)
    mount, network = report["not_shown"]
    assert mount == "a real mount point: not shown, it needs root"
    assert network.startswith(
        "the network (ping, names, HTTP, mapped ports): not shown, it needs root"
    )
    assert network.endswith("raise user.max_user_namespaces, which is 0")
    assert all(line in result.stdout for line in report["not_shown"])
    for vm in report["vms"]:
        assert (vm["files"], vm["devices"]) == (33, 2)
        assert vm["files_through_mount_point"] is None
        assert (vm["ping"], vm["http"]) == (None, None)


def test_a_portion_is_written_and_the_directory_is_emptied_first(
    tree: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    no_passt = ("env", "PORTHOLE_PASST=no-such-passt")
    result = demo(tree, out, "--portion", "1", prefix=no_passt)
    assert result.returncode == OK, result.stderr
    for line in report_of(out)["not_shown"]:
        assert line in result.stdout
    # Without a network of its own it lacks more than passt.
    assert any("passt" in line or "HTTP" in line for line in report_of(out)["not_shown"])
    assert sorted(path.name for path in out.iterdir()) == KEPT
    assert [vm["copied"]["files"] for vm in report_of(out)["vms"]] == [1, 1, 1]
    (out / "vm1").mkdir()
    (out / "vm1" / "stale").touch()
    assert demo(tree / "package", out).returncode == OK
    assert not (out / "vm1" / "stale").exists()
    assert report_of(out)["tree_files"] == 31


def test_a_device_host_that_dies_fails_the_demonstration(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*DEMO, "--tree", str(tree), "--out", str(out)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("WSL2: booting"):
        assert line, "the demonstration ended before it booted a VM"
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (device_host,) = [child for child in children.splitlines() if "services.devicehost" in child]
    os.kill(int(device_host.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=DEMO_S)
    assert process.returncode == UNREACHABLE, errors
    assert "Traceback" not in errors
    assert "the device host ended with status -9" in errors
    assert "SERVICE_ENDED" in errors
    assert (out / "services.log").exists(), "a failure keeps what explains it"


def test_two_demonstrations_do_not_share_a_directory(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = subprocess.Popen(
        [*DEMO, "--tree", str(tree), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert first.stderr is not None
    assert first.stderr.readline()
    second = demo(tree, out)
    assert second.returncode == REFUSED
    assert "DEMO_RUNNING" in second.stderr
    _, errors = first.communicate(timeout=DEMO_S)
    assert first.returncode == OK, errors
