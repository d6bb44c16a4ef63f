"""What a VM's guest published, as the registry keeps it, and the tokens that contradict it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.devicehost.host import Published
from services.handshake.capabilities import GuestCapabilities
from services.handshake.errors import FailedPreconditionError, InvalidArgumentError
from services.handshake.pool import Gpa, SwiotlbPool, format_token
from tests.unit.devicehost.host.conftest import MIB, OTHER_VM, POOL, TOKEN, VM

if TYPE_CHECKING:
    from tests.unit.devicehost.host.conftest import Rig

OTHER_TOKEN = format_token(SwiotlbPool(Gpa(2 * MIB), 2 * MIB))
WITH_POOL = Published(GuestCapabilities(POOL, "6.18.26.3"), b"with a pool")
WITHOUT = Published(GuestCapabilities(None, "5.15.1"), b"without one")


def test_it_is_kept_for_its_vm_until_that_is_forgotten(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, TOKEN, WITH_POOL)
    assert rig.host.published(VM) == WITH_POOL
    assert rig.host.published(OTHER_VM) is None
    rig.create("d1", token=TOKEN)
    rig.host.remove_device(VM, "d1")
    assert rig.host.published(VM) == WITH_POOL
    rig.host.forget_vm(VM)
    assert rig.host.published(VM) is None
    rig.host.set_swiotlb(VM, OTHER_TOKEN)


def test_a_vm_without_a_pool_is_remembered_and_forgotten_with_its_devices(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, "", WITHOUT)
    rig.create("d1", token="")
    rig.host.forget_vm(VM)
    assert rig.host.published(VM) is None
    assert rig.host._vms == {}


def test_a_later_announcement_replaces_it_and_a_token_alone_leaves_it(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, "", WITHOUT)
    rig.host.set_swiotlb(VM, TOKEN, WITH_POOL)
    assert rig.host.published(VM) == WITH_POOL
    later = Published(WITH_POOL.capabilities, b"later")
    rig.host.set_swiotlb(VM, TOKEN, later)
    rig.host.set_swiotlb(VM, TOKEN)
    assert rig.host.published(VM) == later


@pytest.mark.parametrize("published", [WITHOUT, WITH_POOL])
def test_a_token_that_contradicts_it_is_refused_and_nothing_is_kept(
    rig: Rig, published: Published
) -> None:
    with pytest.raises(InvalidArgumentError, match="contradicts") as caught:
        rig.host.set_swiotlb(VM, OTHER_TOKEN, published)
    assert caught.value.reason == "SWIOTLB_TOKEN_CONTRADICTION"
    assert rig.host.published(VM) is None
    rig.create("d1", token=OTHER_TOKEN)


def test_a_vm_that_has_a_pool_cannot_lose_it(rig: Rig) -> None:
    rig.host.set_swiotlb(VM, TOKEN, WITH_POOL)
    with pytest.raises(FailedPreconditionError) as caught:
        rig.host.set_swiotlb(VM, "", WITHOUT)
    assert caught.value.reason == "SWIOTLB_CONFLICT"
    assert rig.host.published(VM) == WITH_POOL


@pytest.mark.parametrize(("published", "wrong"), [(WITHOUT, TOKEN), (WITH_POOL, OTHER_TOKEN)])
def test_a_device_whose_token_contradicts_it_is_refused(
    rig: Rig, published: Published, wrong: str
) -> None:
    rig.host.set_swiotlb(VM, "", published)
    with pytest.raises(FailedPreconditionError) as caught:
        rig.create("d1", token=wrong)
    assert caught.value.reason == "SWIOTLB_TOKEN_MISMATCH"
    rig.create("d1", token="")
    if published is WITH_POOL:
        rig.create("d2", token=TOKEN)
