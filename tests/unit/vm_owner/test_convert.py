"""CreateVm's machine of QEMU, from its message."""

from __future__ import annotations

import pytest
from porthole.vmowner.v1 import vm_owner_pb2
from porthole.vmowner.v1.vm_owner_pb2 import CreateVmRequest, QemuMachine

from services.handshake.errors import InvalidArgumentError
from services.vm_owner.assembly import MachineSpec, QemuSpec
from services.vm_owner.convert import machine_spec_from_proto
from services.vm_owner.machines import Isolation


def test_a_machine_of_qemu_has_the_files_that_it_names() -> None:
    request = CreateVmRequest(qemu=QemuMachine(kernel="/k", initramfs="/i", cpus=2))
    assert machine_spec_from_proto(request) == MachineSpec(qemu=QemuSpec("/k", "/i", 2))
    request = CreateVmRequest(qemu=QemuMachine())
    assert machine_spec_from_proto(request) == MachineSpec(qemu=QemuSpec())


@pytest.mark.parametrize(
    ("value", "isolation"),
    [
        (vm_owner_pb2.ISOLATION_UNSPECIFIED, Isolation.SHARED_RAM),
        (vm_owner_pb2.ISOLATION_SHARED_RAM, Isolation.SHARED_RAM),
        (vm_owner_pb2.ISOLATION_STRICT, Isolation.STRICT),
    ],
)
def test_memory_is_shared_unless_strict_isolation_is_asked_for(
    value: vm_owner_pb2.Isolation.ValueType, isolation: Isolation
) -> None:
    spec = machine_spec_from_proto(CreateVmRequest(qemu=QemuMachine(isolation=value)))
    assert spec == MachineSpec(qemu=QemuSpec(isolation=isolation))
    assert spec.divides_pool == (isolation is Isolation.STRICT)


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (QemuMachine(cpus=65), "MACHINE_CPUS"),
        (QemuMachine(kernel="vmlinux"), "MACHINE_PATH"),
        (QemuMachine(initramfs="/a\nb"), "MACHINE_PATH"),
        (QemuMachine(isolation=7), "ISOLATION_UNKNOWN"),  # type: ignore[arg-type]
    ],
)
def test_what_no_machine_can_be_is_refused(machine: QemuMachine, reason: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        machine_spec_from_proto(CreateVmRequest(qemu=machine))
    assert refused.value.reason == reason
