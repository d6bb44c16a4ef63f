"""The settings of the VM owner.

Owns their defaults and bounds. The settings of one VM are in CreateVm.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path  # noqa: TC003 - pydantic reads it at run time
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from services.handshake.errors import PortholeError
from services.rpc.address import parse_address
from services.rpc.settings import ServiceSettings
from services.vm_owner.subnets import SUBNET_PREFIX

_LONGEST_VM_SOCKET = "vm/00000000-0000-0000-0000-000000000000/guest-init.sock"


class OwnerSettings(ServiceSettings):
    """The settings of the VM owner, in addition to those of every service."""

    name: ClassVar[str] = "owner"

    devicehost: str | None = Field(
        default=None,
        description="address of the ordinary user's device host; by default "
        "unix:<run-dir>/devicehost.sock",
    )
    elevated_devicehost: str | None = Field(
        default=None, description="address of the elevated user's device host; by default none"
    )
    peer_wait_s: Annotated[float, Field(gt=0, le=600)] = Field(
        default=10.0,
        description="longest wait for a device host, machine or guest init that is not up yet",
    )
    capabilities_deadline_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=20.0, description="longest time that a WSL2 guest gets from boot to its report"
    )
    subnet_pool: IPv4Network = Field(
        default=IPv4Network("10.231.0.0/16"),
        description="network from which adapters get subnets of four addresses",
    )

    qemu: str = Field(
        default="",
        description="QEMU that runs Linux guests, a name or a path; by default the one for the "
        "kernel's architecture",
    )
    qemu_kernel: Path | None = Field(
        default=None,
        description="kernel of Linux guests; by default what `make kernel` made, or `make guest` "
        "fetched",
    )
    qemu_initramfs: Path | None = Field(
        default=None,
        description="initramfs of Linux guests; by default what `make guest-image` made",
    )
    qemu_accel: Literal["auto", "kvm", "tcg"] = Field(
        default="auto",
        description="how Linux guests are executed; auto: by KVM where it may be used, else by "
        "emulation",
    )
    boot_deadline_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=30.0,
        description="longest time that a Linux guest gets from the start of QEMU until its init "
        "speaks",
    )

    @field_validator("devicehost", "elevated_devicehost")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            _checked(value)
        return value

    @field_validator("subnet_pool")
    @classmethod
    def _holds_a_subnet(cls, value: IPv4Network) -> IPv4Network:
        if value.prefixlen > SUBNET_PREFIX:
            raise ValueError(f"{value} is smaller than one adapter's subnet, /{SUBNET_PREFIX}")
        return value

    @model_validator(mode="after")
    def _leaves_room_for_sockets(self) -> Self:
        _checked(f"unix:{self.run_dir.absolute()}/{_LONGEST_VM_SOCKET}")
        return self

    @property
    def uses_run_dir(self) -> bool:
        """It does: the files of its VMs."""
        return True

    @property
    def devicehost_address(self) -> str:
        """Address of the ordinary user's device host."""
        return self.devicehost or f"unix:{self.run_dir.absolute()}/devicehost.sock"


def _checked(address: str) -> None:
    try:
        parse_address(address)
    except PortholeError as error:
        raise ValueError(error.message) from None
