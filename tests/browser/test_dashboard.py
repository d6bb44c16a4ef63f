"""A real dashboard in a browser: what is sent to it is seen, and every broken rule at its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from services.handshake.trace.table import CLAUSES
from tests.browser.broken_handshakes import breaking, export
from tests.browser.dashboard import Dashboard
from tests.browser.pages import inaccessible, live, shoot, wide
from tests.support.handshake_traces import VALID, record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.browser.pages import Pages

pytestmark = [pytest.mark.chromium, pytest.mark.asyncio(loop_scope="session")]

JUDGED_MS = 15_000

SHOWN = ("wsl2", "wslc", "strict", "APERTURE_MISMATCH", "TOKEN_MISSING", "TRACE_SPLIT")
"""Of which screenshots are kept: one of a whole page takes a second."""


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """One for all tests: each sends VMs of its own."""
    with Dashboard(tmp_path_factory.mktemp("dashboard")) as started:
        yield started


@pytest.fixture(scope="module")
def broken(dashboard: Dashboard) -> dict[str, str]:
    """The VM that breaks each rule: all settle at once, instead of one after the other."""
    vms = {clause.rule: export(breaking(clause.rule)) for clause in CLAUSES}
    for _, requests in vms.values():
        dashboard.send(requests)
    return {rule: vm_id for rule, (vm_id, _) in vms.items()}


@pytest.mark.parametrize("case", VALID)
async def test_a_valid_handshake_is_seen(pages: Pages, dashboard: Dashboard, case: str) -> None:
    vm_id, requests = export(record(VALID[case]()))
    dashboard.send(requests)
    page = await pages.open(f"{dashboard.address}/vm/{vm_id}")
    await expect(page.locator(".banner")).to_contain_text("Valid", timeout=JUDGED_MS)
    await expect(page.locator(".flag")).to_have_count(0)
    if case in SHOWN:
        await shoot(page, f"dashboard-valid-{case}")


@pytest.mark.parametrize("rule", [clause.rule for clause in CLAUSES])
async def test_a_broken_rule_is_marked_in_place(
    pages: Pages, dashboard: Dashboard, broken: dict[str, str], rule: str
) -> None:
    page = await pages.open(f"{dashboard.address}/vm/{broken[rule]}")
    await expect(page.locator(".banner")).to_contain_text("Broken", timeout=JUDGED_MS)
    await expect(page.locator(".rules").first.get_by_text(rule, exact=True)).to_be_visible()
    # At the step where it broke, or at a span, or of the whole trace: it is never only in the list.
    violation = page.locator(".violations > li").filter(has_text=rule).first
    places = violation.locator("a")
    if await places.count():
        target = await places.first.get_attribute("href")
        await expect(page.locator(f'[id="{(target or "")[1:]}"]')).to_be_visible()
        if (target or "").startswith(("#event-", "#missing-")):
            await expect(page.locator(f'[id="{(target or "")[1:]}"] .flag')).to_be_visible()
    else:
        await expect(violation).to_contain_text("the whole of the trace")
    assert await wide(page) == []
    if rule in SHOWN:
        await shoot(page, f"dashboard-broken-{rule}")


async def test_handshakes_appear_and_change_live(pages: Pages, dashboard: Dashboard) -> None:
    page = await pages.open(dashboard.address)
    await live(page)
    vm_id, requests = export(record(VALID["wsl2"]()))
    half = len(requests) // 2
    dashboard.send(requests[:half])
    row = page.locator("tbody tr").filter(has=page.locator(f'a[title="{vm_id}"]'))
    await expect(row).to_have_count(1, timeout=JUDGED_MS)
    dashboard.send(requests[half:])
    await expect(row).to_contain_text("Valid", timeout=JUDGED_MS)


async def test_the_raw_attributes_of_a_span_are_those_that_were_sent(
    pages: Pages, dashboard: Dashboard
) -> None:
    vm_id, requests = export(record(VALID["wslc"]()))
    dashboard.send(requests)
    page = await pages.open(f"{dashboard.address}/vm/{vm_id}")
    await page.locator(".disclose").first.click(timeout=JUDGED_MS)
    await expect(page.locator(".below")).to_contain_text("service.name")
    assert await inaccessible(page) == []
