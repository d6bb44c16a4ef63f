"""The options of a channel, and the API version that the clients speak.

Owns what both clients need when they connect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from porthole.client.errors import FailedPreconditionError

if TYPE_CHECKING:
    from porthole.vmowner.v1 import vm_owner_pb2 as pb

API_VERSION: Final = "v1"

OPTIONS: Final = (
    # The environment's proxy is for the internet; the owner is on this machine.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.use_local_subchannel_pool", 1),
)


def check_version(address: str, answer: pb.GetVersionResponse) -> None:
    """Refuse an owner that does not speak our API version.

    Raises:
        FailedPreconditionError: API_VERSION_MISMATCH.
    """
    theirs = ", ".join(answer.version.api_versions) or "none"
    if API_VERSION not in answer.version.api_versions:
        raise FailedPreconditionError(
            "API_VERSION_MISMATCH",
            f"the VM owner at {address} speaks API versions {theirs}; this client needs "
            f"{API_VERSION}",
            {"ours": API_VERSION, "theirs": theirs},
        )
