"""The settings of the user-space guest's process: flags and environment.

The VM owner's decisions for one VM (RAM, kernel, command line) come with Boot instead.
"""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pydantic reads it at run time
from typing import ClassVar, Literal

from pydantic import Field

from services.rpc.settings import ServiceSettings


class GuestSettings(ServiceSettings):
    """Settings of one user-space guest."""

    name: ClassVar[str] = "simguest"

    vm_dir: Path | None = Field(
        default=None,
        description="directory of the files that the guest's kernel publishes and of its init's "
        "socket; by default <run-dir>/guest",
    )
    rings: Literal["inside", "outside"] = Field(
        default="outside",
        description="virtqueue rings in ordinary RAM, as WSL's kernel does, or inside the pool, as "
        "upstream restricted DMA pools do; without a pool always outside",
    )
    exit_with_parent: bool = Field(
        default=False,
        description="power off when the process that started the guest is gone; otherwise the "
        "guest runs on until it gets PowerOff or SIGTERM",
    )

    @property
    def uses_run_dir(self) -> bool:
        """Whether its socket or its files are in the run directory."""
        return not self.listen or self.vm_dir is None

    @property
    def guest_dir(self) -> Path:
        """The directory of `vm_dir`, or its default."""
        return (self.vm_dir or self.run_dir / "guest").absolute()
