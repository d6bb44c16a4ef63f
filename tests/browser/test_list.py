"""The list of handshakes in a browser: filters, changes while it is open, and an empty one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.browser import answers
from tests.browser.pages import FOUR_K, PHONE, live, shoot

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page

    from tests.browser.pages import Pages
    from tests.browser.stub import Stub

pytestmark = [pytest.mark.chromium, pytest.mark.asyncio(loop_scope="session")]

GOOD, BAD, OTHER = "11111111-good", "22222222-bad", "33333333-other"


@pytest.fixture
def filled(stub: Stub) -> Stub:
    """A valid handshake, a broken one, and an open one of another kind."""
    stub.add(answers.valid(GOOD))
    stub.add(answers.other_aperture(BAD), started_ms=answers.NOW_MS + 1)
    stub.add(answers.valid(OTHER), kind="WSLC", verdict="open", started_ms=answers.NOW_MS + 2)
    return stub


def rows(page: Page) -> Locator:
    return page.locator("table.vms tbody tr")


def row_of(page: Page, vm_id: str) -> Locator:
    return rows(page).filter(has=page.locator(f'a[title="{vm_id}"]'))


async def test_all_handshakes_are_listed_with_their_verdicts(pages: Pages, filled: Stub) -> None:
    page = await pages.open(filled.address)
    await expect(rows(page)).to_have_count(3)
    await expect(rows(page).nth(0)).to_contain_text("Open")
    await expect(rows(page).nth(1)).to_contain_text("Broken")
    await expect(rows(page).nth(1)).to_contain_text("APERTURE_MISMATCH")
    await expect(rows(page).nth(2)).to_contain_text("Valid")
    await expect(rows(page).nth(2)).to_contain_text("64 MiB at 0x38000000")
    await expect(page.locator("#summary")).to_have_text("3 handshakes, 1 broken.")
    await expect(page).to_have_title("Handshakes · Porthole")
    await live(page)
    await shoot(page, "list-light")


@pytest.mark.parametrize(("size", "name"), [(PHONE, "phone"), (FOUR_K, "4k")])
async def test_the_list_in_other_windows(
    pages: Pages, filled: Stub, size: tuple[int, int], name: str
) -> None:
    page = await pages.open(filled.address, size, dark=True)
    await expect(rows(page)).to_have_count(3)
    await shoot(page, f"list-dark-{name}")


async def test_filters_are_in_the_address(pages: Pages, filled: Stub) -> None:
    page = await pages.open(filled.address)
    await page.get_by_role("navigation", name="Filter by verdict").get_by_text("Broken").click()
    await expect(rows(page)).to_have_count(1)
    await page.get_by_label("Broken rule").select_option("APERTURE_MISMATCH")
    await expect(page).to_have_url(f"{filled.address}/?verdict=broken&rule=APERTURE_MISMATCH")
    await expect(row_of(page, BAD)).to_have_count(1)
    address = page.url
    await page.get_by_text("Clear the filters").first.click()
    await expect(rows(page)).to_have_count(3)

    linked = await pages.open(address)
    await expect(rows(linked)).to_have_count(1)
    await expect(linked.get_by_label("Broken rule")).to_have_value("APERTURE_MISMATCH")
    await linked.get_by_label("Kind").select_option("WSLC")
    await expect(linked.get_by_text("No handshake passes these filters")).to_be_visible()


async def test_a_reader_goes_back_to_the_same_list(pages: Pages, filled: Stub) -> None:
    page = await pages.open(f"{filled.address}/?verdict=broken")
    await page.locator(f'a[title="{BAD}"]').click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text(BAD)
    await page.go_back()
    await expect(rows(page)).to_have_count(1)
    await expect(page).to_have_url(f"{filled.address}/?verdict=broken")


async def test_a_list_that_has_nothing_yet_says_how_to_send(pages: Pages, stub: Stub) -> None:
    page = await pages.open(stub.address)
    await expect(page.get_by_text("Nothing is here yet")).to_be_visible()
    await expect(page.get_by_text("porthole demo --dashboard")).to_be_visible()
    # The addresses are those of this dashboard.
    await expect(page.get_by_text("PORTHOLE_OTLP_ENDPOINT=127.0.0.1:14317")).to_be_visible()
    await shoot(page, "empty-light")

    await live(page)
    first = stub.add(answers.valid(GOOD))
    stub.push("vm", first["vm"])
    await expect(row_of(page, GOOD)).to_contain_text("Valid")
    await expect(page.get_by_text("Nothing is here yet")).to_have_count(0)


async def test_a_row_changes_in_place(pages: Pages, filled: Stub) -> None:
    page = await pages.open(filled.address)
    link = page.locator(f'a[title="{OTHER}"]')
    await link.focus()
    await live(page)
    changed = answers.row(OTHER, "broken", kind="WSLC", revision=2) | {
        "started_ms": answers.NOW_MS + 2
    }
    filled.vms[OTHER]["vm"] = changed
    filled.push("vm", changed)
    await expect(row_of(page, OTHER)).to_contain_text("Broken")
    await expect(link).to_be_focused()
    await expect(page.locator("#news")).to_have_text("VM 33333333…: broken: APERTURE_MISMATCH.")
    await expect(page.locator("#summary")).to_have_text("3 handshakes, 2 broken.")
    assert await rows(page).count() == 3

    # An older state of the row that comes late changes nothing.
    filled.push("vm", changed | {"verdict": "valid", "revision": 1})
    filled.push("gone", {"vm_ids": [GOOD]})
    await expect(rows(page)).to_have_count(2)
    await expect(row_of(page, OTHER)).to_contain_text("Broken")


async def test_a_row_comes_and_goes_with_the_filters(pages: Pages, filled: Stub) -> None:
    page = await pages.open(f"{filled.address}/?verdict=valid")
    await expect(rows(page)).to_have_count(1)
    await live(page)
    filled.push("vm", answers.row("44444444-new", started_ms=answers.NOW_MS + 9))
    filled.push("vm", answers.row("55555555-new", "broken"))
    await expect(row_of(page, "44444444-new")).to_have_count(1)
    await expect(rows(page).nth(0)).to_contain_text("44444444")
    filled.push("vm", answers.row(GOOD, "broken", revision=2))
    await expect(row_of(page, GOOD)).to_have_count(0)
    assert await rows(page).count() == 1


async def test_more_rows_are_shown_on_demand(pages: Pages, stub: Stub) -> None:
    for number in range(150):
        stub.add(answers.valid(f"{number:08}-vm"), started_ms=answers.NOW_MS + number)
    page = await pages.open(stub.address)
    await expect(rows(page)).to_have_count(100)
    await page.get_by_role("button", name="Show more").click()
    await expect(rows(page)).to_have_count(150)
    # The reader goes on at the first of the new rows.
    await expect(page.locator('a[title="00000049-vm"]')).to_be_focused()


async def test_a_list_that_fails_can_be_tried_again(pages: Pages, filled: Stub) -> None:
    pages.may_fail = True
    filled.fails_with = 503
    page = await pages.open(filled.address)
    await expect(page.get_by_role("alert")).to_contain_text("The test has it fail.")
    filled.fails_with = 0
    await page.get_by_role("button", name="Try again").click()
    await expect(rows(page)).to_have_count(3)


async def test_a_token_is_asked_for(pages: Pages, filled: Stub) -> None:
    pages.may_fail = True
    filled.fails_with = 401
    page = await pages.open(filled.address)
    await page.get_by_label("Token").fill("a & b")
    filled.fails_with = 0
    await page.get_by_role("button", name="Continue").click()
    await expect(page).to_have_url(f"{filled.address}/?token=a%20%26%20b")
