"""What buf demands of the .proto files, and which descriptor set it compares them with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.buf import BUF

if TYPE_CHECKING:
    from collections.abc import Sequence

PROTOS = Path(__file__).resolve().parents[2] / "protos"
HANDSHAKE = "porthole/handshake/v1/guest_capabilities.proto"
DEVICE = "porthole/handshake/v1/device.proto"
OWNER = "porthole/vmowner/v1/vm_owner.proto"


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy of the folder, which a test may change."""
    copy = tmp_path / "protos"
    shutil.copytree(PROTOS, copy, ignore=shutil.ignore_patterns("gen"))
    return copy


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, *arguments], check=False, capture_output=True, text=True)


def baseline(protos: Path, *release: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [protos / "baseline.sh", *release],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable},
    )


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


FAULTS = [
    (DEVICE, "  // The bound, in the unit of the resource.\n", "", 'Field "total"'),
    (OWNER, "  // Not a kind; a request with it is refused.\n", "", "VM_KIND_UNSPECIFIED"),
    (OWNER, "  // GetVm returns one VM.\n", "", 'RPC "GetVm"'),
    (OWNER, "rpc GetVm(GetVmRequest)", "rpc GetVm(ListVmsRequest)", "multiple RPCs"),
]


@pytest.mark.buf
@pytest.mark.parametrize(("file", "old", "new", "text"), FAULTS)
def test_lint_wants_comments_and_messages_of_one_method(
    protos: Path, file: str, old: str, new: str, text: str
) -> None:
    assert buf("lint", protos).stdout == ""
    edit(protos / file, old, new)
    linted = buf("lint", protos)
    assert linted.returncode != 0
    assert text in linted.stdout


BREAKS = [
    (HANDSHAKE, "  uint64 size_bytes = 2;\n", "", "size_bytes"),
    (HANDSHAKE, "uint64 size_bytes = 2;", "uint64 size_bytes = 9;", "size_bytes"),
    (HANDSHAKE, "uint64 size_bytes = 2;", "int64 size_bytes = 2;", "changed type"),
    (HANDSHAKE, "uint64 size_bytes = 2;", "uint64 length = 2;", "changed name"),
    (HANDSHAKE, "uint64 size_bytes = 2;", "repeated uint64 size_bytes = 2;", "cardinality"),
    (DEVICE, "  DEVICE_CLASS_VIRTIO_NET = 2;\n", "", 'enum value "2"'),
    (DEVICE, "DEVICE_CLASS_VIRTIO_NET = 2;", "DEVICE_CLASS_NET = 2;", "changed name"),
    (OWNER, "  rpc GetVm(GetVmRequest) returns (GetVmResponse);\n", "", 'RPC "GetVm"'),
    (OWNER, "returns (GetVmResponse)", "returns (stream GetVmResponse)", "streaming"),
    (OWNER, "returns (GetVmResponse)", "returns (CreateVmResponse)", "response type"),
]


def breaking(protos: Path, against: Sequence[str] = ("baseline", "unreleased.binpb")) -> str:
    return buf("breaking", protos, "--against", protos.joinpath(*against)).stdout


@pytest.mark.buf
@pytest.mark.parametrize(("file", "old", "new", "text"), BREAKS)
def test_what_breaks_a_peer_is_refused(
    protos: Path, file: str, old: str, new: str, text: str
) -> None:
    assert baseline(protos).returncode == 0
    edit(protos / file, old, new)
    assert text in breaking(protos)


@pytest.mark.buf
def test_additions_break_nothing(protos: Path) -> None:
    assert baseline(protos).returncode == 0
    edit(
        protos / HANDSHAKE,
        "  uint64 size_bytes = 2;",
        "  uint64 size_bytes = 2;\n  uint64 areas = 3;",
    )
    edit(
        protos / DEVICE,
        "DEVICE_CLASS_VIRTIO_NET = 2;",
        "DEVICE_CLASS_VIRTIO_NET = 2;\nDEVICE_CLASS_X = 9;",
    )
    edit(
        protos / OWNER,
        "service VmOwner {",
        "service VmOwner {\n  rpc New(NewRequest) returns (NewResponse);",
    )
    with (protos / OWNER).open("a") as file:
        file.write("message NewRequest {}\nmessage NewResponse {}\n")
    assert breaking(protos) == ""


def names(protos: Path) -> list[str]:
    return sorted(path.name for path in (protos / "baseline").iterdir())


def test_the_baseline_of_a_release_is_written_once(protos: Path) -> None:
    (protos / "baseline" / "unreleased.binpb").write_bytes(b"")
    assert baseline(protos).returncode == 0  # before the first release it may be written again
    assert (protos / "baseline" / "unreleased.binpb").read_bytes()
    assert baseline(protos, "v1.0.0").returncode == 0
    assert names(protos) == ["v1.0.0.binpb"]
    released = protos / "baseline" / "v1.0.0.binpb"
    kept = released.read_bytes()
    edit(protos / HANDSHAKE, "  uint64 size_bytes = 2;\n", "")
    for arguments in ((), ("v1.0.0",)):
        refused = baseline(protos, *arguments)
        assert refused.returncode == 1
        assert "v1.0.0.binpb belongs to a release" in refused.stderr
        assert released.read_bytes() == kept
    assert baseline(protos, "v1.1.0").returncode == 0
    assert names(protos) == ["v1.0.0.binpb", "v1.1.0.binpb"]


def test_a_release_needs_a_version(protos: Path) -> None:
    refused = baseline(protos, "next")
    assert refused.returncode == 1
    assert "is not v<major>" in refused.stderr


def test_the_lock_of_buf_names_no_host() -> None:
    assert "://" not in (PROTOS / "package-lock.json").read_text()
