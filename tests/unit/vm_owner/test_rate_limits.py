"""The rate limits of adapters: set with networking, and changed at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.handshake.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.handshake.features import FEATURES, RATE_LIMIT
from services.handshake.options import parse_net_options
from services.handshake.rate_limit import RateLimit, RateLimits
from services.vm_owner.networking import NetworkRequest
from services.vm_owner.wslconfig import NetworkingMode as Mode

if TYPE_CHECKING:
    from services.vm_owner.guest_devices import GuestDevice
    from services.vm_owner.vm import Vm
    from tests.support.owner_peers import Rig

SLOW = RateLimit(bps=5000, pps=7)
FAST = RateLimit(bps=10**9, burst_bytes=10**6)


async def networked(rig: Rig, options: str = "") -> tuple[Vm, GuestDevice, GuestDevice]:
    vm = await rig.owner.create(rig.vm_spec())
    request = NetworkRequest(Mode.VIRTIO_PROXY, options)
    eth0, loopback0 = (await rig.owner.configure_networking(vm.vm_id, request)).adapters
    return vm, eth0, loopback0


async def test_a_direction_that_is_not_named_stays_as_it_is(rig: Rig) -> None:
    vm, eth0, _ = await networked(rig)
    change = rig.owner.set_rate_limits
    assert (await change(vm.vm_id, eth0.instance_id, RateLimits(SLOW))).transmit == SLOW
    both = await change(vm.vm_id, eth0.instance_id, RateLimits(receive=FAST))
    assert both == RateLimits(SLOW, FAST)
    assert await change(vm.vm_id, eth0.instance_id, RateLimits()) == both


async def test_networking_takes_limits_for_eth0_alone(rig: Rig) -> None:
    options = f"limit_rx={FAST};limit_tx={SLOW}"
    _, eth0, loopback0 = await networked(rig, options)
    given = parse_net_options(eth0.options)
    assert (given.limit_tx, given.limit_rx) == (SLOW, FAST)
    assert parse_net_options(loopback0.options).limit_tx is None


async def test_a_limit_out_of_bounds_makes_no_adapter(rig: Rig) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        await networked(rig, "limit_tx=bps=1")
    assert refused.value.reason == "RATE_LIMIT_VALUE"
    assert rig.device_host.devices == {}


async def test_an_unknown_adapter_and_an_older_device_host_are_refused(rig: Rig) -> None:
    vm, eth0, _ = await networked(rig)
    with pytest.raises(NotFoundError) as unknown:
        await rig.owner.set_rate_limits(vm.vm_id, "eth0", RateLimits(SLOW))
    assert unknown.value.reason == "DEVICE_NOT_FOUND"
    rig.device_host.features = tuple(each for each in FEATURES if each != RATE_LIMIT)
    with pytest.raises(FailedPreconditionError) as older:
        await rig.owner.set_rate_limits(vm.vm_id, eth0.instance_id, RateLimits(SLOW))
    assert (older.value.reason, older.value.metadata["feature"]) == (
        "DEVICE_HOST_FEATURE",
        RATE_LIMIT,
    )


async def test_a_vm_that_has_ended_takes_no_limit(rig: Rig) -> None:
    vm, eth0, _ = await networked(rig)
    await rig.owner.terminate(vm.vm_id)
    with pytest.raises(FailedPreconditionError) as refused:
        await rig.owner.set_rate_limits(vm.vm_id, eth0.instance_id, RateLimits(SLOW))
    assert refused.value.reason == "VM_TERMINATED"
