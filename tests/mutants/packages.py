"""The packages that are mutated, and the tests that must notice it.

Must not know mutmut, or the results of a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Package:
    """A package, or modules of one, that are mutated.

    Attributes:
        name: Name of its scratch folder.
        sources: Its folder, or its modules.
        tests: Its own tests, which must notice every mutant, as folders or modules.
        left_out: Tests in them that take too long, or belong to an inner package.
        inner: Folders in its sources that belong to another package.
    """

    name: str
    sources: tuple[str, ...]
    tests: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()


PACKAGES: Final = (
    Package("trace", ("services/handshake/trace",), ("tests/unit/handshake/trace",)),
    Package(
        "handshake",
        ("services/handshake",),
        ("tests/unit/handshake",),
        ("tests/unit/handshake/trace",),
        inner=("services/handshake/trace",),
    ),
    Package(
        "vm_owner",
        ("services/vm_owner/states.py", "services/vm_owner/operations.py"),
        ("tests/unit/vm_owner/test_states.py", "tests/unit/vm_owner/test_operations.py"),
    ),
    Package(
        "accounting", ("services/devicehost/accounting",), ("tests/unit/devicehost/accounting",)
    ),
    Package("memory", ("services/devicehost/memory",), ("tests/unit/devicehost/memory",)),
    Package("virtio", ("services/devicehost/virtio",), ("tests/unit/devicehost/virtio",)),
    Package(
        "fs",
        ("services/devicehost/devices/fs",),
        ("tests/unit/devicehost/devices/fs",),
        ("tests/unit/devicehost/devices/fs/test_differential.py",),
    ),
)


def package_of(path: str) -> Package:
    """Return the package that a folder or a module belongs to.

    Raises:
        KeyError: It belongs to no package that is mutated.
    """
    for package in PACKAGES:  # the inner one of two stands first
        if any(path == source or path.startswith(f"{source}/") for source in package.sources):
            return package
    raise KeyError(path)
