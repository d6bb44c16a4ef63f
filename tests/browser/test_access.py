"""What every view has: it can be used without a mouse, without eyes, and in every window."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.browser import answers
from tests.browser.pages import DESKTOP, FOUR_K, PHONE, inaccessible, live, wide

if TYPE_CHECKING:
    from playwright.async_api import Page

    from tests.browser.pages import Pages
    from tests.browser.stub import Stub

pytestmark = [pytest.mark.chromium, pytest.mark.asyncio(loop_scope="session")]

GOOD, BAD, LACKING = "11111111-good", "22222222-bad", "33333333-lacking"
VIEWS = {
    "list": "/",
    "filtered": "/?verdict=broken&since=1700000000000",
    "nothing passes": "/?kind=WSLC",
    "valid": f"/vm/{GOOD}",
    "broken": f"/vm/{BAD}",
    "missing": f"/vm/{LACKING}",
    "devices": f"/vm/{GOOD}/devices",
    "unknown": "/vm/a/b",
}


@pytest.fixture
def filled(stub: Stub) -> Stub:
    stub.add(answers.valid(GOOD))
    stub.add(answers.other_aperture(BAD))
    stub.add(answers.no_aperture(LACKING))
    return stub


async def settle(page: Page) -> None:
    """Wait until a view has what it loads, and open all that is on demand."""
    await live(page)
    await expect(page.locator('[aria-busy="true"]')).to_have_count(0)
    await page.evaluate(
        "() => { for (const each of document.querySelectorAll('details')) each.open = true; }"
    )


@pytest.mark.parametrize(
    ("size", "dark"), [(PHONE, True), (DESKTOP, False)], ids=["dark phone", "light desktop"]
)
@pytest.mark.parametrize("view", VIEWS)
async def test_a_view_is_accessible(
    pages: Pages, filled: Stub, view: str, size: tuple[int, int], dark: bool
) -> None:
    page = await pages.open(filled.address + VIEWS[view], size, dark=dark)
    await settle(page)
    for role in ("banner", "main"):
        await expect(page.get_by_role(role)).to_have_count(1)
    await expect(page.get_by_role("heading", level=1)).to_have_count(1)
    assert await inaccessible(page) == []


async def test_axe_finds_nothing_in_an_empty_list(pages: Pages, stub: Stub) -> None:
    page = await pages.open(stub.address)
    await expect(page.get_by_text("Nothing is here yet")).to_be_visible()
    await settle(page)
    assert await inaccessible(page) == []


@pytest.mark.parametrize("size", [PHONE, (768, 1024), DESKTOP, FOUR_K], ids=str)
@pytest.mark.parametrize("view", VIEWS)
async def test_no_view_is_wider_than_its_window(
    pages: Pages, filled: Stub, view: str, size: tuple[int, int]
) -> None:
    page = await pages.open(filled.address + VIEWS[view], size)
    await settle(page)
    assert await wide(page) == []


async def test_all_is_reached_by_keyboard(pages: Pages, filled: Stub) -> None:
    page = await pages.open(filled.address)
    await expect(page.locator("table.vms tbody tr")).to_have_count(3)
    await page.keyboard.press("Tab")
    await expect(page.get_by_text("Skip to the content")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#main")).to_be_focused()
    link = page.locator(f'a[title="{BAD}"]')
    for _ in range(40):
        await page.keyboard.press("Tab")
        if await link.evaluate("element => element === document.activeElement"):
            break
    await page.keyboard.press("Enter")
    heading = page.get_by_role("heading", level=1)
    await expect(heading).to_contain_text(BAD)
    await expect(heading).to_be_focused()
    go = page.get_by_role("link", name="Go to the broken step")
    await go.press("Enter")
    await expect(page.locator("#event-9")).to_be_focused()


async def test_the_colours_are_the_readers_choice(pages: Pages, filled: Stub) -> None:
    page = await pages.open(filled.address, dark=True)
    ground = "() => getComputedStyle(document.body).backgroundColor"
    dark = await page.evaluate(ground)
    await page.get_by_role("radio", name="Light").check()
    light = await page.evaluate(ground)
    assert light != dark
    await page.reload()
    assert await page.evaluate(ground) == light
    await expect(page.get_by_role("radio", name="Light")).to_be_checked()
    await page.get_by_role("radio", name="System").check()
    assert await page.evaluate(ground) == dark
