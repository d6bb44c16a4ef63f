"""The devices of a VM over time, in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.browser import answers
from tests.browser.pages import PHONE, live, shoot

if TYPE_CHECKING:
    from tests.browser.pages import Pages
    from tests.browser.stub import Stub

pytestmark = [pytest.mark.chromium, pytest.mark.asyncio(loop_scope="session")]

VM = "11111111-2222-4333-8444-555555555555"


@pytest.fixture
def address(stub: Stub) -> str:
    stub.add(answers.valid(VM))
    return f"{stub.address}/vm/{VM}/devices"


async def test_each_device_has_its_plots(pages: Pages, address: str) -> None:
    page = await pages.open(address)
    await expect(page.get_by_role("heading", level=2)).to_have_count(3)
    device = page.get_by_role("region", name="src")
    await expect(device.locator(".plot .name")).to_have_text(
        ["Bytes", "Requests", "Refusals", "Windows", "Pool", "Exhaustions"]
    )
    await expect(page.get_by_text("1 other series")).to_be_visible()
    await shoot(page, "devices-light")


async def test_devices_on_a_phone(pages: Pages, address: str) -> None:
    page = await pages.open(address, PHONE, dark=True)
    await expect(page.locator(".plot").first).to_be_visible()
    await shoot(page, "devices-dark-phone")


async def test_one_control_shows_the_values_of_all_plots(pages: Pages, address: str) -> None:
    page = await pages.open(address)
    cursor = page.get_by_role("slider", name="Values at")
    pool = page.get_by_role("region", name="The VM").locator(".legend .value")
    newest = await pool.nth(0).text_content()
    await cursor.press("Home")
    await expect(pool.nth(0)).to_have_text("0 bytes")
    await expect(pool.nth(2)).to_have_text("64 MiB")
    await cursor.press("End")
    await expect(pool.nth(0)).to_have_text(newest or "")
    await expect(page.locator("output")).to_contain_text("the newest")


async def test_the_figures_of_a_plot_are_a_table(pages: Pages, address: str) -> None:
    page = await pages.open(address)
    details = page.get_by_role("region", name="src").locator("details").first
    await details.locator("summary").click()
    await expect(details.locator("tbody tr")).to_have_count(59)  # a rate needs two points


async def test_new_points_are_shown(pages: Pages, stub: Stub, address: str) -> None:
    page = await pages.open(address)
    value = page.get_by_role("region", name="The VM").locator(".legend .value").first
    await expect(value).to_be_visible()
    await live(page)
    points = stub.metrics["series"][0]["points"]
    points.append([points[-1][0] + 10000, 7])
    stub.push("metrics", {"vm_id": VM})
    await expect(value).to_have_text("14 KiB")


async def test_a_vm_without_metrics_says_so(pages: Pages, stub: Stub, address: str) -> None:
    stub.metrics = {"series": [], "series_left_out": 0}
    page = await pages.open(address)
    await expect(page.get_by_text("No metrics of this VM are here")).to_be_visible()
