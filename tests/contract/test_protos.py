"""The .proto files: the generated code is up to date, and no change breaks a peer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorSet

from tests.contract.breaking import breaking_changes

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ROOT / "protos"
SOURCES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("porthole/**/*.proto"))
BIN = Path(sys.executable).parent


def protoc(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS), *arguments, *SOURCES],
        check=True,
        env={"PATH": f"{BIN}:/usr/bin:/bin"},
    )


def test_the_generated_code_is_that_of_the_proto_files(tmp_path: Path) -> None:
    protoc(
        f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
        f"--mypy_out=quiet:{tmp_path}",
        f"--mypy_grpc_out=quiet,async_only:{tmp_path}",
    )
    generated = contents(tmp_path)
    committed = contents(PROTOS / "gen")
    assert sorted(generated) == sorted(committed), "run `make protos`"
    drifted = [name for name in generated if generated[name] != committed[name]]
    assert drifted == [], "run `make protos`"


def contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for pattern in ("*.py", "*.pyi")
        for path in directory.rglob(pattern)
    }


@pytest.fixture(scope="module")
def present(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    out = tmp_path_factory.mktemp("descriptors") / "present.binpb"
    protoc("--include_imports", f"--descriptor_set_out={out}")
    return FileDescriptorSet.FromString(out.read_bytes())


def test_nothing_breaks_peers_built_from_the_baseline(present: FileDescriptorSet) -> None:
    baseline = FileDescriptorSet.FromString((PROTOS / "baseline.binpb").read_bytes())
    assert breaking_changes(baseline, present) == []


HANDSHAKE = "porthole/handshake/v1/guest_capabilities.proto"
DEVICE = "porthole/handshake/v1/device.proto"
OWNER = "porthole/vmowner/v1/vm_owner.proto"


def _file(files: FileDescriptorSet, name: str) -> int:
    return [file.name for file in files.file].index(name)


def _without_field(files: FileDescriptorSet) -> None:
    del files.file[_file(files, HANDSHAKE)].message_type[0].field[1]


def _renumbered(files: FileDescriptorSet) -> None:
    files.file[_file(files, HANDSHAKE)].message_type[0].field[1].number = 9


def _swapped_numbers(files: FileDescriptorSet) -> None:
    first, second = files.file[_file(files, HANDSHAKE)].message_type[0].field
    first.number, second.number = second.number, first.number


def _retyped(files: FileDescriptorSet) -> None:
    field = files.file[_file(files, HANDSHAKE)].message_type[0].field[0]
    field.type = FieldDescriptorProto.TYPE_INT64


def _retyped_message(files: FileDescriptorSet) -> None:
    field = files.file[_file(files, HANDSHAKE)].message_type[1].field[0]
    field.type_name = ".porthole.handshake.v1.ServiceVersion"


def _repeated(files: FileDescriptorSet) -> None:
    field = files.file[_file(files, HANDSHAKE)].message_type[0].field[0]
    field.label = FieldDescriptorProto.LABEL_REPEATED


def _no_longer_optional(files: FileDescriptorSet) -> None:
    [field] = [
        field
        for field in files.file[_file(files, HANDSHAKE)].message_type[1].field
        if field.proto3_optional
    ]
    field.ClearField("proto3_optional")


def _out_of_oneof(files: FileDescriptorSet) -> None:
    [message] = [
        message
        for message in files.file[_file(files, OWNER)].message_type
        if message.name == "CreateVmRequest"
    ]
    [field] = [field for field in message.field if field.name == "embedded"]
    field.ClearField("oneof_index")


def _without_message(files: FileDescriptorSet) -> None:
    del files.file[_file(files, HANDSHAKE)].message_type[0]


def _without_file(files: FileDescriptorSet) -> None:
    del files.file[_file(files, HANDSHAKE)]


def _without_enum(files: FileDescriptorSet) -> None:
    del files.file[_file(files, DEVICE)].enum_type[0]


def _without_enum_value(files: FileDescriptorSet) -> None:
    del files.file[_file(files, DEVICE)].enum_type[0].value[1]


def _renumbered_enum_value(files: FileDescriptorSet) -> None:
    files.file[_file(files, DEVICE)].enum_type[0].value[1].number = 77


def _renamed_enum_value(files: FileDescriptorSet) -> None:
    files.file[_file(files, DEVICE)].enum_type[0].value[1].name = "OTHER"


def _without_method(files: FileDescriptorSet) -> None:
    del files.file[_file(files, OWNER)].service[0].method[5]


def _without_service(files: FileDescriptorSet) -> None:
    del files.file[_file(files, OWNER)].service[0]


def _streaming_method(files: FileDescriptorSet) -> None:
    files.file[_file(files, OWNER)].service[0].method[1].server_streaming = True


def _other_answer(files: FileDescriptorSet) -> None:
    files.file[_file(files, OWNER)].service[0].method[1].output_type = ".a.B"


def _renamed_field(files: FileDescriptorSet) -> None:
    files.file[_file(files, HANDSHAKE)].message_type[0].field[0].name = "start"


BREAKS: list[tuple[Callable[[FileDescriptorSet], None], str]] = [
    (_without_field, "field porthole.handshake.v1.SwiotlbPool.size_bytes = 2 was removed"),
    (_renumbered, "SwiotlbPool.size_bytes = 2 was removed or renumbered"),
    (_swapped_numbers, "SwiotlbPool.base = 1 was renamed to size_bytes"),
    (_retyped, "SwiotlbPool.base = 1 was retyped from TYPE_UINT64 to TYPE_INT64"),
    (_retyped_message, "GuestCapabilities.swiotlb_pool = 1 was retyped"),
    (_repeated, "SwiotlbPool.base = 1 was changed between singular and repeated"),
    (_no_longer_optional, "seccomp_user_notification = 3 gained or lost `optional`"),
    (_out_of_oneof, "CreateVmRequest.embedded = 5 was moved into or out of a oneof"),
    (_without_message, "message porthole.handshake.v1.SwiotlbPool was removed"),
    (_without_file, "message porthole.handshake.v1.GuestCapabilities was removed"),
    (_without_enum, "enum porthole.handshake.v1.DeviceClass was removed"),
    (_without_enum_value, "DEVICE_CLASS_VIRTIO_FS was removed or renumbered"),
    (_renumbered_enum_value, "DEVICE_CLASS_VIRTIO_FS was removed or renumbered"),
    (_renamed_enum_value, "DEVICE_CLASS_VIRTIO_FS was renamed to OTHER"),
    (_without_method, "VmOwner/ApplyGuestCapabilities was removed"),
    (_without_service, "VmOwner/GetVersion was removed"),
    (_streaming_method, "VmOwner/CreateVm changed its messages or its streaming"),
    (_other_answer, "VmOwner/CreateVm changed its messages or its streaming"),
    (_renamed_field, "SwiotlbPool.base = 1 was renamed to start"),
]


@pytest.mark.parametrize(("change", "text"), BREAKS, ids=[change.__name__ for change, _ in BREAKS])
def test_each_kind_of_break_is_caught(
    present: FileDescriptorSet, change: Callable[[FileDescriptorSet], None], text: str
) -> None:
    changed = FileDescriptorSet()
    changed.CopyFrom(present)
    change(changed)
    assert text in "\n".join(breaking_changes(present, changed))


def test_additions_break_nothing(present: FileDescriptorSet) -> None:
    grown = FileDescriptorSet()
    grown.CopyFrom(present)
    handshake = grown.file[_file(grown, HANDSHAKE)]
    handshake.message_type[1].field.add(
        name="new", number=4, type=FieldDescriptorProto.TYPE_STRING, label=1
    )
    handshake.message_type.add(name="New")
    grown.file[_file(grown, DEVICE)].enum_type[0].value.add(name="DEVICE_CLASS_NEW", number=9)
    service = grown.file[_file(grown, OWNER)].service[0]
    service.method.add(name="New", input_type=".a.B", output_type=".a.C")
    assert breaking_changes(present, grown) == []
