"""Subnets of adapters: each is given once, and none that the host uses."""

from __future__ import annotations

from ipaddress import IPv4Network

import pytest

from services.handshake.errors import ResourceExhaustedError
from services.vm_owner.subnets import SubnetPool


def test_subnets_are_given_once_and_back() -> None:
    pool = SubnetPool(IPv4Network("10.9.0.0/29"))
    first, second = pool.take([]), pool.take([])
    assert (str(first), str(second)) == ("10.9.0.0/30", "10.9.0.4/30")
    with pytest.raises(ResourceExhaustedError, match="2 of 2") as exhausted:
        pool.take([])
    assert exhausted.value.reason == "SUBNETS_EXHAUSTED"
    pool.give_back(first)
    assert pool.take([]) == first


def test_a_subnet_that_the_host_uses_is_left_out() -> None:
    pool = SubnetPool(IPv4Network("10.9.0.0/24"))
    assert str(pool.take([IPv4Network("10.9.0.2/32")])) == "10.9.0.4/30"
