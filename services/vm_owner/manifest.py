"""The manifest of component versions, read from manifest.toml next to this file.

Owns the rule that derives from a kernel's version whether it publishes a pool. Must not know VMs.
"""

from __future__ import annotations

import functools
import tomllib
from importlib import resources

from pydantic import BaseModel, ConfigDict, field_validator

from services.handshake.capabilities import component_version, publishes_pool
from services.handshake.errors import InvalidArgumentError


class Manifest(BaseModel):
    """The component versions that the handshake depends on (handshake.md section 8)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_kernel_with_pool: str
    first_device_host_with_token: str
    bundled_kernel: str
    bundled_kernel_release: str

    @field_validator("*")
    @classmethod
    def _is_a_version(cls, value: str) -> str:
        try:
            component_version(value)
        except InvalidArgumentError as error:
            raise ValueError(error.message) from None
        return value

    def publishes_pool(self, kernel_release: str) -> bool:
        """Return whether a kernel of this release publishes the pool that it reserves.

        Raises:
            InvalidArgumentError: KERNEL_RELEASE_SYNTAX, naming the string.
        """
        return publishes_pool(kernel_release, self.first_kernel_with_pool)

    def explain_missing_pool(self, kernel_release: str) -> str:
        """Explain, in half a sentence, why a kernel that was asked for a pool published none.

        Args:
            kernel_release: `uname -r` of the guest; empty when it did not report one.
        """
        try:
            new_enough = self.publishes_pool(kernel_release)
        except InvalidArgumentError:
            return f"{self.first_kernel_with_pool} is the first kernel that has one"
        if new_enough:
            return (
                f"kernel {kernel_release} is new enough (the first is "
                f"{self.first_kernel_with_pool}), so it was built without the pool or could not "
                "reserve the memory; its log says which"
            )
        return (
            f"kernel {kernel_release} is older than {self.first_kernel_with_pool}, the first that "
            "has one"
        )


@functools.cache
def load_manifest() -> Manifest:
    """Read the manifest that is part of this package."""
    text = resources.files(__package__).joinpath("manifest.toml").read_text(encoding="utf-8")
    return Manifest.model_validate(tomllib.loads(text))
