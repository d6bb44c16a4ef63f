"""QEMU's command line: what the guest gets, and what is added to its kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.vm_owner.machines.qemu.architecture import ARM64, X86_64, Architecture
from services.vm_owner.machines.qemu.command_line import (
    Hardware,
    Wiring,
    command_line,
    kernel_arguments,
)
from services.vm_owner.machines.qemu.guest_memory import GuestMemory, place_pools
from services.vm_owner.machines.qemu.installation import Accelerator, Installation
from services.vm_owner.machines.qemu.ports import PORTS

SHARED = GuestMemory(2 << 30)
VM_ID = "01234567-89ab-cdef-0123-456789abcdef"


def arguments(
    *,
    version: tuple[int, int] = (7, 2),
    accelerator: Accelerator = Accelerator.TCG,
    channel: str = "/run/vm/init-port.sock",
    memory: GuestMemory = SHARED,
    architecture: Architecture = X86_64,
    cpus: int = 2,
) -> list[str]:
    return command_line(
        Installation("/usr/bin/qemu-system-x86_64", version),
        VM_ID,
        Hardware(architecture, memory, cpus, accelerator),
        Path("/k/vmlinux"),
        Path("/k/initramfs"),
        "swiotlb=force hv_pci_swiotlb=67108864",
        Wiring(console_fd=7, monitor_fd=8, channel_path=Path(channel)),
    )


def value(line: list[str], flag: str) -> str:
    assert line.count(flag) == 1, flag
    return line[line.index(flag) + 1]


def values(line: list[str], flag: str) -> list[str]:
    return [line[i + 1] for i, word in enumerate(line) if word == flag]


def test_memory_is_one_memfd_that_devices_can_map() -> None:
    line = arguments()
    assert value(line, "-object") == "memory-backend-memfd,id=ram,size=2048M,share=on"
    assert value(line, "-m") == "2048M"
    assert "memory-backend=ram" in value(line, "-machine")


def test_the_kernel_gets_the_owners_words_first_and_then_the_machines() -> None:
    appended = value(arguments(), "-append")
    assert appended.startswith("swiotlb=force hv_pci_swiotlb=67108864 console=ttyS0 ")
    assert appended.endswith("no_timer_check")
    by_kvm = Hardware(X86_64, SHARED, 1, Accelerator.KVM)
    assert "no_timer_check" not in kernel_arguments("x", by_kvm)
    assert kernel_arguments("", by_kvm) == "console=ttyS0 panic=-1 reboot=t"


def test_a_divided_pool_is_told_to_the_kernel_by_the_addresses_of_the_ports() -> None:
    memory = place_pools(2 << 30, 64 << 20)
    line = arguments(memory=memory)
    assert f" {memory.kernel_words[0]} console=ttyS0 " in value(line, "-append")
    ports = [d for d in values(line, "-device") if d.startswith("pcie-root-port")]
    assert len(ports) == len(memory.pools) == value(line, "-append").count("/0000:")
    assert "memory-backend=" not in value(line, "-machine")
    files = [text for text in values(line, "-object") if "memfd" in text]
    assert len(files) == len(memory.pools)
    assert not any("share=on" in text for text in values(line, "-object") if text not in files)


@pytest.mark.parametrize(
    ("version", "accelerator", "cpu"),
    [
        ((7, 2), Accelerator.TCG, "max,la57=off"),
        ((10, 0), Accelerator.TCG, "max,la57=off,fsrs=off,fzrm=off,fsrm=off,erms=off"),
        ((10, 0), Accelerator.KVM, "host"),
    ],
)
def test_the_processor_is_the_hosts_or_one_that_is_fast_to_emulate(
    version: tuple[int, int], accelerator: Accelerator, cpu: str
) -> None:
    line = arguments(version=version, accelerator=accelerator)
    assert value(line, "-cpu") == cpu
    assert value(line, "-accel") == accelerator


@pytest.mark.parametrize(
    ("accelerator", "cpus", "smp"),
    [
        (Accelerator.TCG, 1, "1,maxcpus=2"),
        (Accelerator.TCG, 2, "2,maxcpus=2"),
        (Accelerator.TCG, 4, "4,maxcpus=4"),
        (Accelerator.KVM, 1, "1,maxcpus=1"),
    ],
)
def test_no_emulated_machine_may_have_one_processor_only(
    accelerator: Accelerator, cpus: int, smp: str
) -> None:
    assert value(arguments(accelerator=accelerator, cpus=cpus), "-smp") == smp
    divided = arguments(accelerator=accelerator, cpus=cpus, memory=place_pools(2 << 30, 64 << 20))
    [first] = [node for node in values(divided, "-numa") if "cpus=" in node]
    assert first.endswith(f",cpus=0-{int(smp[-1]) - 1}")


def test_no_device_is_there_at_boot_but_the_channels_port() -> None:
    devices = [d.split(",")[0] for d in values(arguments(), "-device")]
    assert [d for d in devices if d != "pcie-root-port"] == [
        "virtio-serial-pci",
        "virtserialport",
        "pvpanic",
    ]
    assert devices.count("pcie-root-port") == PORTS


def test_ports_have_places_of_their_own() -> None:
    ports = [d for d in values(arguments(), "-device") if d.startswith("pcie-root-port")]
    places = [port.split("addr=")[1].split(",")[0] for port in ports]
    assert len(set(places)) == PORTS
    assert places[:2] == ["10.0", "10.1"]
    assert [place for place, port in zip(places, ports, strict=True) if "multif" in port] == [
        "10.0",
        "11.0",
    ]


def test_a_comma_in_a_path_does_not_end_it() -> None:
    line = arguments(channel="/run/a,b/init.sock")
    assert "socket,id=init,path=/run/a,,b/init.sock,server=on,wait=off" in line


def test_an_arm64_guest_has_a_machine_and_a_console_of_its_own() -> None:
    line = arguments(version=(10, 0), architecture=ARM64)
    assert value(line, "-machine") == "virt,gic-version=max,memory-backend=ram"
    assert value(line, "-cpu") == "max"
    assert value(line, "-append").endswith(" console=ttyAMA0 panic=-1 reboot=t")
    devices = {d.split(",")[0] for d in values(line, "-device")}
    assert devices == {"virtio-serial-pci", "virtserialport", "pcie-root-port"}
