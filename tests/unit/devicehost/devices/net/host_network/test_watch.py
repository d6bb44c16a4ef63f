"""Who is told of changes of the host's network, of which, and what a flood of messages costs."""

from __future__ import annotations

import select
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from services.devicehost.devices.net.host_network import HostView, Subscription, watch, watching
from services.devicehost.devices.net.host_network import changes as changes_module
from services.devicehost.devices.net.host_network import view as view_module
from tests.support.descriptors import open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.unit.devicehost.devices.net.host_network.conftest import Host

pytestmark = pytest.mark.tap


@pytest.fixture
def resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "resolv.conf"
    path.write_text("nameserver 192.0.2.53\n")
    for module in (view_module, changes_module):
        monkeypatch.setattr(module, "RESOLV_CONF", path)
    return path


@pytest.fixture
def subscription(host: Host, resolv_conf: Path) -> Iterator[Subscription]:
    host.add_interface("up0", "198.51.100.5")
    host.route("198.51.100.1")
    made = host.namespace.run(watch)
    yield made
    made.close()


def next_view(subscription: Subscription) -> HostView:
    assert select.select([subscription.fd], [], [], 20)[0]
    return subscription.take()


def test_a_change_of_the_default_route(host: Host, subscription: Subscription) -> None:
    host.route("198.51.100.254", priority=50)
    assert next_view(subscription).ipv4.gateway == "198.51.100.254"


@pytest.mark.parametrize("how", ["in place", "renamed", "behind a link"])
def test_a_change_of_the_name_servers(
    resolv_conf: Path, host: Host, tmp_path: Path, how: str
) -> None:
    target = resolv_conf
    if how == "behind a link":
        target = tmp_path / "run" / "resolv.conf"
        target.parent.mkdir()
        resolv_conf.rename(target)
        resolv_conf.symlink_to(target)
    subscription = host.namespace.run(watch)
    try:
        for server in ("192.0.2.1", "192.0.2.2"):
            if how == "in place":
                target.write_text(f"nameserver {server}\n")
            else:
                (target.parent / "new").write_text(f"nameserver {server}\n")
                (target.parent / "new").rename(target)
            while next_view(subscription).name_servers != (server,):  # a file may be seen half
                continue
    finally:
        subscription.close()


def test_a_resolv_conf_that_leads_nowhere_holds_up_nothing(
    resolv_conf: Path, host: Host, subscription: Subscription
) -> None:
    resolv_conf.unlink()
    resolv_conf.symlink_to(resolv_conf)
    while next_view(subscription).name_servers:
        continue
    host.route("198.51.100.254", priority=50)
    while next_view(subscription).ipv4.gateway != "198.51.100.254":
        continue


def _set_mtu(mtu: int, netlink: Any) -> None:
    netlink.link("set", index=1, mtu=mtu)


def test_what_is_said_for_nothing_wakes_nobody(
    host: Host, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)

    def counted() -> HostView:
        seen = view_module.look()
        looks.release()
        return seen

    monkeypatch.setattr(watching, "look", counted)
    host.add_interface("up1", "203.0.113.7")
    host.do(lambda netlink: netlink.route("add", dst="192.0.2.0/24", gateway="198.51.100.9"))
    # What follows one look is done when there is another one.
    for mtu in (60000, 60001, 60002):
        host.do(partial(_set_mtu, mtu))
        assert looks.acquire(timeout=30)
    assert not select.select([subscription.fd], [], [], 0)[0]
    host.add_address("up0", "198.51.100.6")
    seen = next_view(subscription)
    assert seen.ipv4.addresses == {"198.51.100.5/24", "198.51.100.6/24"}
    assert not select.select([subscription.fd], [], [], 0)[0]


def test_a_flood_costs_few_looks_and_hides_no_change(
    host: Host, subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[HostView] = []

    def counted() -> HostView:
        looks.append(view_module.look())
        return looks[-1]

    monkeypatch.setattr(watching, "look", counted)

    def flood(netlink: Any) -> None:
        for number in range(2000):
            netlink.link("set", index=1, mtu=60000 + number % 2)

    host.do(flood)
    host.route("198.51.100.254", priority=50)
    while next_view(subscription).ipv4.gateway != "198.51.100.254":
        continue
    assert 0 < len(looks) < 40, "2000 messages"


def test_several_share_a_thread_which_ends_with_the_last(host: Host, resolv_conf: Path) -> None:
    def threads() -> int:
        return [thread.name for thread in threading.enumerate()].count("host-network")

    before, fds = threads(), open_fds()
    first, second = host.namespace.run(watch), host.namespace.run(watch)
    assert threads() == before + 1
    host.add_interface("up0", "198.51.100.5")
    host.route("198.51.100.1")
    for each in (first, second):
        while not next_view(each).is_connected:
            continue
    first.close()
    assert threads() == before + 1
    second.close()
    assert threads() == before
    assert open_fds() == fds
