"""The carrier of a TAP: what an administrator does to it, and what a flood of messages costs."""

from __future__ import annotations

import errno
import queue
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.net.tap import Tap, carrier
from services.devicehost.devices.net.tap.carrier import CarrierWatch
from services.simguest.net.namespace import NetworkNamespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.tap

DEADLINE_S = 10.0


@pytest.fixture
def namespace() -> Iterator[NetworkNamespace]:
    with NetworkNamespace() as made:
        yield made


class Opened:
    """A TAP in a namespace, and what it reports."""

    def __init__(self, namespace: NetworkNamespace) -> None:
        self.namespace = namespace
        self.reports: queue.Queue[tuple[bool, str]] = queue.Queue()
        self.tap = namespace.run(
            lambda: Tap("tap0", on_link=lambda up, why: self.reports.put((up, why)))
        )

    def change(self, **how: object) -> None:
        self.namespace.run(lambda: _change("tap0", how))

    def next_report(self) -> bool:
        return self.reports.get(timeout=DEADLINE_S)[0]


def _change(name: str, how: dict[str, object]) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=name)
        netlink.link("set", index=index, **how)


@pytest.fixture
def opened(namespace: NetworkNamespace) -> Iterator[Opened]:
    made = Opened(namespace)
    yield made
    made.tap.close()


def test_an_interface_that_is_set_up_and_down(opened: Opened) -> None:
    assert not opened.tap.has_link
    for state in ("up", "down", "up"):
        opened.change(state=state)
        assert opened.next_report() == (state == "up")


def test_an_interface_that_is_up_has_its_link_from_the_beginning(
    namespace: NetworkNamespace,
) -> None:
    from pyroute2 import IPRoute

    def make() -> None:
        with IPRoute() as netlink:
            netlink.link("add", ifname="tap0", kind="tuntap", mode="tap")
            _change("tap0", {"state": "up"})

    namespace.run(make)
    tap = namespace.run(lambda: Tap("tap0"))
    tap.close()
    assert tap.has_link


def test_an_interface_that_is_removed_is_gone_for_good(opened: Opened) -> None:
    opened.change(state="up")
    assert opened.next_report()
    opened.namespace.run(lambda: _delete("tap0"))
    assert not opened.next_report()


def _delete(name: str) -> None:
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        netlink.link("del", ifname=name)


def test_changes_that_do_not_matter_are_not_reported(opened: Opened) -> None:
    opened.change(state="up")
    assert opened.next_report()
    opened.change(mtu=1400)
    opened.change(address="02:00:00:00:00:09")
    opened.namespace.run(lambda: _change("lo", {"state": "down"}))
    opened.change(state="down")
    assert not opened.next_report()
    assert opened.reports.empty()


def test_a_flood_of_messages_costs_few_looks_and_hides_no_change(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look: Callable[[CarrierWatch], bool] = CarrierWatch._look

    def counted(watch: CarrierWatch) -> bool:
        looks.append(1)
        return look(watch)

    monkeypatch.setattr(CarrierWatch, "_look", counted)

    def flood() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as netlink:
            (index,) = netlink.link_lookup(ifname="lo")
            for number in range(3000):
                netlink.link("set", index=index, mtu=60000 + number % 2)

    opened.namespace.run(flood)
    opened.change(state="up")
    assert opened.next_report()
    assert 0 < len(looks) < 300, "3000 messages"


def test_a_look_that_fails_is_repeated(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError(errno.ENOBUFS, "no room"), TimeoutError("no answer")]
    look = CarrierWatch._look

    def flaky(watch: CarrierWatch) -> bool:
        if failures:
            raise failures.pop()
        return look(watch)

    monkeypatch.setattr(carrier, "RETRY_S", 0.01)
    monkeypatch.setattr(CarrierWatch, "_look", flaky)
    opened.change(state="up")
    assert opened.next_report()
    assert failures == []
