"""The manifest: each threshold, with its predecessor."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from services.handshake.capabilities import component_version
from services.handshake.errors import InvalidArgumentError
from services.handshake.trace.vocabulary import FIRST_KERNEL_WITH_POOL
from services.vm_owner.manifest import Manifest, load_manifest
from services.vm_owner.warnings import kernel_unsupported

PREDECESSORS = {
    "first_kernel_with_pool": ("6.18.26.3-0", "6.18.26.2-9", "6.18.26.1-1", "6.18.25.9-1"),
    "first_device_host_with_token": ("1.2.28-9", "1.2.28.9-0", "1.1.99-0", "0.9.99-0"),
}
"""Each threshold, and versions that are just too old for it."""


def test_manifest() -> None:
    manifest = load_manifest()
    assert manifest.first_kernel_with_pool == "6.18.26.3-1" == FIRST_KERNEL_WITH_POOL
    assert manifest.first_device_host_with_token == "1.2.29-0"
    assert manifest.publishes_pool(manifest.bundled_kernel)
    assert manifest.publishes_pool(manifest.bundled_kernel_release)


def test_every_threshold_has_predecessors() -> None:
    thresholds = {name for name in Manifest.model_fields if name.startswith("first_")}
    assert thresholds == set(PREDECESSORS)


@pytest.mark.parametrize(
    ("threshold", "predecessor"),
    [(name, older) for name, versions in PREDECESSORS.items() for older in versions],
)
def test_a_predecessor_does_not_reach_a_threshold(threshold: str, predecessor: str) -> None:
    first = component_version(getattr(load_manifest(), threshold))
    assert first.at_least(first)
    assert not component_version(predecessor).at_least(first)
    assert first.at_least(component_version(predecessor))


@pytest.mark.parametrize("field", Manifest.model_fields)
def test_every_value_is_a_version(field: str) -> None:
    values = load_manifest().model_dump()
    with pytest.raises(ValidationError, match="weird"):
        Manifest.model_validate({**values, field: "weird"})


@pytest.mark.parametrize(
    ("release", "publishes"),
    [
        ("6.18.26.3-microsoft-standard-WSL2", True),
        ("6.18.26.3-1-microsoft-standard-WSL2", True),
        ("6.18.27", True),
        ("7.0.0", True),
        ("6.18.26.1-microsoft-standard-WSL2", False),
        ("6.18.26.2-microsoft-standard-WSL2", False),
        ("6.18.26-microsoft", False),
        ("6.18.25.9-microsoft", False),
        ("5.15.167.4-microsoft-standard-WSL2", False),
    ],
)
def test_the_kernel_version_explains_a_missing_pool(release: str, publishes: bool) -> None:
    manifest = load_manifest()
    assert manifest.publishes_pool(release) == publishes
    text = kernel_unsupported(release, manifest).text
    assert release in text
    assert ("older than 6.18.26.3-1" in text) == (not publishes)


def test_a_kernel_without_a_version_is_an_error_naming_it() -> None:
    with pytest.raises(InvalidArgumentError, match="weird"):
        load_manifest().publishes_pool("weird")
    assert "6.18.26.3-1" in kernel_unsupported("", load_manifest()).text
