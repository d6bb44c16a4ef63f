"""The version of this software, and the API versions that it speaks.

Owns the version check that precedes the first use of a peer.
"""

from __future__ import annotations

import importlib.metadata
from typing import Final

from porthole.handshake.v1.guest_capabilities_pb2 import ServiceVersion

from services.handshake.errors import FailedPreconditionError

SOFTWARE_VERSION: Final = importlib.metadata.version("porthole")
"""Version of the installed distribution."""

API_VERSIONS: Final = ("v1",)
"""API versions that this software speaks, the preferred one first."""


def service_version(full_name: str) -> ServiceVersion:
    """Return the answer of a service to GetVersion.

    Args:
        full_name: For instance "porthole.vmowner.v1.VmOwner".
    """
    return ServiceVersion(
        service=full_name, software_version=SOFTWARE_VERSION, api_versions=API_VERSIONS
    )


def check_version(service: str, theirs: ServiceVersion) -> None:
    """Refuse a peer that speaks none of our API versions.

    Args:
        service: Full name of the service that is wanted.
        theirs: The version that the peer announced.

    Raises:
        FailedPreconditionError: API_VERSION_MISMATCH, naming the versions of both sides.
    """
    if theirs.service == service and set(theirs.api_versions) & set(API_VERSIONS):
        return
    their_versions = ", ".join(theirs.api_versions) or "none"
    raise FailedPreconditionError(
        "API_VERSION_MISMATCH",
        f"{theirs.service or 'an unnamed service'} {theirs.software_version or '(no version)'} "
        f"speaks API versions {their_versions}; porthole {SOFTWARE_VERSION} needs {service} with "
        f"one of {', '.join(API_VERSIONS)}; run both sides from releases that share one",
        service=service,
        ours=", ".join(API_VERSIONS),
        theirs=their_versions,
        software_version=theirs.software_version,
    )
