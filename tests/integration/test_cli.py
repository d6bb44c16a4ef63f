"""The `porthole` command against `porthole up`, with real processes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services.cli.exit_codes import NEGATIVE, OK, REFUSED, USAGE
from services.devicehost import fastpath
from tests.support.command import CALL_S, PORTHOLE, Porthole
from tests.support.documents import check_output

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD_KERNEL = "5.15.167.4-microsoft-standard-WSL2"


@pytest.fixture(scope="module")
def porthole() -> Iterator[Porthole]:
    """One set of services for all tests that do not end it. Each test makes its own VMs."""
    run_dir = Path(tempfile.mkdtemp(prefix="ph-", dir="/tmp"))
    command = Porthole(run_dir)
    process = command.up()
    try:
        yield command
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=CALL_S)
        shutil.rmtree(run_dir)
    assert process.returncode == OK, errors
    assert "all services have ended" in errors


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    (root / "empty").touch()
    (root / "back\\slash").write_text("back")
    for number in range(20):
        (root / "sub" / f"file{number}").write_bytes(bytes([number]) * (number * 10_007))
    return root


def checksums(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_wslc_vm_from_creation_to_a_valid_handshake(porthole: Porthole, tree: Path) -> None:
    created = porthole.run("vm", "create", "--kind", "wslc")
    vm_id = created.stdout.strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", vm_id)
    assert f"porthole session apply {vm_id}" in created.stderr
    assert porthole.json("vm", "show", vm_id)["state"] == "booted"

    token = porthole.run("session", "apply", vm_id[:8]).stdout.strip()
    assert re.fullmatch(r"swiotlb=0x[0-9a-f]+,67108864", token)
    again = porthole.json("session", "apply", vm_id)
    assert (again["vm_id"], again["token"], again["already_applied"]) == (vm_id, token, True)

    share = porthole.json("share", "add", vm_id, str(tree), "--ro", "--tag", "src")
    assert (share["tag"], share["options"], share["already_existed"]) == ("src", "ro", False)
    same = porthole.json("share", "add", vm_id, str(tree), "--ro", "--tag", "src")
    assert (same["share_id"], same["already_existed"]) == (share["share_id"], True)
    listed = porthole.json("share", "list", vm_id)["shares"]
    assert [item["share_id"] for item in listed] == [share["share_id"]]

    digests = porthole.run("share", "hash", vm_id, "src").stdout
    checked = subprocess.run(
        ["sha256sum", "--check", "--quiet"],
        input=digests,
        cwd=tree,
        text=True,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert len(digests.splitlines()) == len(checksums(tree))

    shown = porthole.json("vm", "show", vm_id)
    assert (shown["state"], shown["token"], shown["warnings"]) == ("running", token, [])
    (device,) = shown["devices"]
    assert token in device["options"].split(";")
    assert device["counters"]["translations_refused"] == 0
    assert device["counters"]["bytes_out"] > sum(p.stat().st_size for p in tree.rglob("file*"))

    porthole.run("share", "remove", vm_id, "src")
    assert porthole.json("share", "list", vm_id)["shares"] == []
    child = porthole.json("share", "add", vm_id, str(tree), "--aggregate")
    assert (child["tag"], child["aggregate"]) == ("porthole-shares", True)
    same_digests = porthole.run("share", "hash", vm_id, child["tag"], child["share_id"]).stdout
    assert sorted(same_digests.splitlines()) == sorted(digests.splitlines())
    porthole.run("share", "remove", vm_id, child["share_id"])
    assert porthole.json("share", "list", vm_id)["shares"] == []
    porthole.run("vm", "terminate", vm_id)
    states = {vm["vm_id"]: vm["state"] for vm in porthole.json("vm", "list")["vms"]}
    assert states[vm_id] == "terminated"
    assert porthole.verdict(vm_id) == {"valid": True, "token": token, "devices": 2}


def test_a_wsl2_vm_with_an_old_kernel_is_warned_of_and_works(
    porthole: Porthole, tree: Path
) -> None:
    created = porthole.run(
        *("vm", "create", "--kind", "wsl2", "--kernel", OLD_KERNEL),
        *("--share", f"{tree},ro,tag=src"),
    )
    vm_id = created.stdout.strip()
    assert "MessageSwiotlbKernelUnsupported" in created.stderr
    shown = porthole.json("vm", "show", vm_id)
    assert (shown["pool_base"], shown["pool_size_bytes"], shown["token"]) == (0, 0, "")
    assert [warning["id"] for warning in shown["warnings"]] == ["MessageSwiotlbKernelUnsupported"]
    text = porthole.run("vm", "show", vm_id).stdout
    assert ["pool", "none"] in [line.split() for line in text.splitlines()]

    lines = porthole.run("share", "hash", vm_id, "src").stdout.splitlines()
    assert len(lines) == len(checksums(tree))
    (device,) = porthole.json("vm", "show", vm_id)["devices"]
    assert device["counters"]["windows_mapped"] > 0
    porthole.run("vm", "terminate", vm_id)
    assert porthole.verdict(vm_id) == {"valid": True, "token": "", "devices": 1}


def test_watching_a_vm_shows_its_states_until_it_has_terminated(porthole: Porthole) -> None:
    vm_id = porthole.json("vm", "create")["vm_id"]
    watcher = subprocess.Popen(
        [*PORTHOLE, "vm", "watch", vm_id, "--json"],
        env=porthole.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None
    first = json.loads(watcher.stdout.readline())
    check_output(("vm", "watch"), first)
    assert (first["event"], first["state"]) == ("state", "running")
    porthole.run("vm", "terminate", vm_id)
    rest, _ = watcher.communicate(timeout=CALL_S)
    events = [json.loads(line) for line in rest.splitlines()]
    for event in events:
        check_output(("vm", "watch"), event)
    states = [event.get("state") for event in events]
    assert states[-2:] == ["shutting-down", "terminated"]
    assert watcher.returncode == OK


def test_what_the_owner_refuses_is_3_with_its_reason(porthole: Porthole) -> None:
    assert "VM_NOT_FOUND" in porthole.run("vm", "show", "feed", code=REFUSED).stderr
    vm_id = porthole.run("vm", "create").stdout.strip()
    (line,) = porthole.run(
        "share", "add", vm_id, "/", "--options", "colour=red", code=REFUSED
    ).stderr.splitlines()
    assert "OPTION_UNKNOWN" in line
    assert "colour=red" in line
    (line,) = porthole.run("share", "remove", vm_id, "nothing", code=REFUSED).stderr.splitlines()
    assert "NOT_FOUND" in line


def test_a_name_that_no_request_can_carry_is_2_in_one_line(porthole: Porthole) -> None:
    vm_id = porthole.run("vm", "create").stdout.strip()
    name = os.fsdecode(b"/tmp/\xff")
    (line,) = porthole.run("share", "add", vm_id, name, code=USAGE).stderr.splitlines()
    assert repr(name) in line


def test_with_no_wait_a_service_that_is_up_is_reached(porthole: Porthole) -> None:
    porthole.run("--wait", "0", "vm", "list")


def test_the_version_names_the_owner_and_its_manifest(porthole: Porthole) -> None:
    document = porthole.json("version")
    owner = document["services"]["vm_owner"]
    assert owner["service"] == "porthole.vmowner.v1.VmOwner"
    assert owner["manifest"]["first_device_host_with_token"] == "1.2.29-0"


def test_the_version_shows_whether_the_native_fast_path_is_active(porthole: Porthole) -> None:
    device_host = porthole.json("version")["services"]["device_host"]
    features = (
        "aggregate aperture guest-capabilities rate-limit spoofing swiotlb-token user-network"
    )
    assert device_host["manifest"] == {
        "native_fast_path": fastpath.status,
        "features": features,
    }
    shown = porthole.run("version").stdout.splitlines()
    assert shown[0].endswith(f"native fast path {fastpath.status}")
    assert shown[2].endswith(f": native fast path {fastpath.status}, features {features}")
    porthole.environment["PORTHOLE_NATIVE"] = "0"
    try:
        shown = porthole.run("version").stdout.splitlines()
    finally:
        del porthole.environment["PORTHOLE_NATIVE"]
    assert shown[0].endswith("native fast path off: PORTHOLE_NATIVE is 0")
    assert f"native fast path {fastpath.status}," in shown[2], "the device host's is its own"


def test_health_is_serving_for_each_service(porthole: Porthole) -> None:
    for socket in ("owner.sock", "devicehost.sock"):
        answer = porthole.run("health", f"unix:{porthole.run_dir / socket}")
        assert answer.stdout == "SERVING\n"


def test_a_second_up_in_the_same_run_directory_is_refused(porthole: Porthole) -> None:
    (line,) = porthole.run("up", code=REFUSED).stderr.splitlines()
    assert "RUN_DIR_IN_USE" in line


def test_up_ends_with_an_error_when_a_service_dies(run_dir: Path) -> None:
    command = Porthole(run_dir)
    process = command.up()
    children = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (owner,) = [line for line in children.splitlines() if "services.vm_owner" in line]
    os.kill(int(owner.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=CALL_S)
    assert process.returncode == 4
    assert "SERVICE_ENDED" in errors
    assert "Traceback" not in errors


def test_ctrl_c_ends_vms_before_services_and_leaves_no_process(run_dir: Path) -> None:
    command = Porthole(run_dir)
    process = command.up()
    vm_id = command.run("vm", "create").stdout.strip()
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = process.communicate(timeout=CALL_S)
    assert time.monotonic() - began < 30
    assert process.returncode == OK, errors
    left = subprocess.run(
        ["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    assert not [line for line in left.splitlines() if str(run_dir) in line]
    verdict = json.loads(command.run("handshake", "verify", "--json", str(command.trace)).stdout)
    assert [vm["vm_id"] for vm in verdict["vms"]] == [vm_id]


def test_a_trace_that_was_tampered_with_is_1(
    porthole: Porthole, tree: Path, tmp_path: Path
) -> None:
    vm_id = porthole.run("vm", "create", "--share", str(tree)).stdout.strip()
    shown = porthole.json("vm", "show", vm_id)
    porthole.run("vm", "terminate", vm_id)
    text = porthole.trace.read_text()
    assert f";{shown['token']};" in text
    forged = tmp_path / "forged.jsonl"
    forged.write_text(text.replace(f";{shown['token']};", ";"))
    result = porthole.run("handshake", "verify", str(forged), code=NEGATIVE)
    assert f"{vm_id}: TOKEN_MISSING: " in result.stderr
