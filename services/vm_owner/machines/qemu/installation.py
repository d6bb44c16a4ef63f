"""The QEMU of this host: where it is, its version, and whether it may use KVM.

Owns the search and its errors. Must not know guests.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.errors import FailedPreconditionError

if TYPE_CHECKING:
    from services.vm_owner.machines.qemu.architecture import Architecture

logger = logging.getLogger(__name__)

OLDEST: Final = (7, 2)
"""The oldest version that is tested."""

VERSION_DEADLINE_S: Final = 10.0
"""Longest that `--version` takes."""

_KVM: Final = "/dev/kvm"
_KVM_GET_API_VERSION: Final = 0xAE00  # linux/kvm.h
_KVM_API_VERSION: Final = 12
_VERSION: Final = re.compile(rb"version (\d+)\.(\d+)")


class Accelerator(StrEnum):
    """The way in which a guest's instructions are executed."""

    KVM = "kvm"
    TCG = "tcg"
    """QEMU's own emulation, which works everywhere and is slower."""


@dataclass(frozen=True, slots=True)
class Installation:
    """A QEMU that can be run.

    Attributes:
        binary: Its absolute path.
        version: Major and minor number.
    """

    binary: str
    version: tuple[int, int]


async def find_qemu(architecture: Architecture, name: str = "") -> Installation:
    """Find the QEMU for guests of an architecture, and ask for its version.

    Args:
        architecture: That of the guests.
        name: Its name in PATH, or a path; empty: as Debian has it.

    Raises:
        FailedPreconditionError: QEMU_NOT_FOUND, or QEMU_TOO_OLD.
    """
    name, package = name or architecture.binary, architecture.package
    binary = shutil.which(name)
    if binary is None:
        raise FailedPreconditionError(
            "QEMU_NOT_FOUND",
            f"there is no {name} in PATH, which a real Linux guest needs; install the package "
            f"{package}, or use a user-space guest",
            binary=name,
        )
    said = await _version_text(binary)
    match = _VERSION.search(said)
    if match is None:
        raise FailedPreconditionError(
            "QEMU_NOT_FOUND",
            f"{binary} --version does not answer as QEMU does: {said[:80]!r}; install the package "
            f"{package}",
            binary=binary,
        )
    version = (int(match[1]), int(match[2]))
    if version < OLDEST:
        raise FailedPreconditionError(
            "QEMU_TOO_OLD",
            f"{binary} is version {version[0]}.{version[1]}; {OLDEST[0]}.{OLDEST[1]} is the oldest "
            "that is supported",
            version=f"{version[0]}.{version[1]}",
        )
    return Installation(binary, version)


def choose_accelerator(wanted: Accelerator | None, architecture: Architecture) -> Accelerator:
    """Choose how a guest is executed.

    Args:
        wanted: None: KVM if this process may use it, otherwise TCG with one line in the log.
        architecture: That of the guest.
    """
    if wanted is not None:
        return wanted
    host = os.uname().machine
    foreign = f"the guest is {architecture.name}, and this host {host}"
    why = _why_no_kvm() if architecture.name == host else foreign
    if why:
        logger.info("guests run by emulation (TCG), which is slower than KVM: %s", why)
        return Accelerator.TCG
    return Accelerator.KVM


async def _version_text(binary: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(binary, "--version"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        said, _ = await asyncio.wait_for(process.communicate(), VERSION_DEADLINE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return b"nothing"
    return said


def _why_no_kvm() -> str:
    try:
        kvm = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{_KVM}: {error.strerror}"
    try:
        version = fcntl.ioctl(kvm, _KVM_GET_API_VERSION)
    except OSError as error:
        return f"{_KVM}: {error.strerror}"
    finally:
        os.close(kvm)
    return "" if version == _KVM_API_VERSION else f"{_KVM} has the unknown version {version}"
