"""One handshake in a browser: the wrong hop is seen where it is, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from playwright.async_api import expect

from tests.browser import answers
from tests.browser.pages import DESKTOP, FOUR_K, PHONE, live, shoot
from tests.browser.stub import HELLO

if TYPE_CHECKING:
    from playwright.async_api import Page

    from tests.browser.pages import Pages
    from tests.browser.stub import Stub

pytestmark = [pytest.mark.chromium, pytest.mark.asyncio(loop_scope="session")]

VM = "22222222-2222-4333-8444-555555555555"


async def test_a_valid_handshake_has_no_flag(pages: Pages, stub: Stub) -> None:
    stub.add(answers.valid(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    await expect(page.locator(".banner")).to_contain_text("Valid")
    await expect(page.locator(".banner")).to_contain_text("All 5 rules are kept.")
    await expect(page.locator(".hop")).to_have_count(11)
    await expect(page.locator(".flag")).to_have_count(0)
    await expect(page.locator('.joint[data-joint="differs"]')).to_have_count(0)
    await expect(page.locator('.wire .joint[data-joint="same"]')).to_have_count(6)
    await expect(page.get_by_text("5 rules are kept", exact=True)).to_be_visible()
    await shoot(page, "valid-light")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_the_wrong_hop_is_marked_at_its_place(pages: Pages, stub: Stub, dark: bool) -> None:
    stub.add(answers.other_aperture(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}", dark=dark)
    await expect(page.locator(".banner")).to_contain_text("Broken at step 9, in the lane of eth0")
    flagged = page.locator(".hop.broken")
    await expect(flagged).to_have_count(1)
    await expect(flagged).to_have_id("event-9")
    await expect(flagged.locator(".flag")).to_contain_text("Broken here")
    await expect(flagged).to_contain_text("APERTURE_MISMATCH")
    # What it has, what the hop before has, and that they differ: in words as well.
    await expect(flagged.locator(".values")).to_contain_text("0x38200000")
    await expect(flagged.locator(".values")).to_contain_text("step 8 has 0x38000000")
    await expect(flagged.locator(".values")).to_contain_text("differs from step 8")
    await expect(flagged.locator('.wire > .joint[data-joint="differs"]')).to_have_text("≠")
    await expect(page.locator(".chain .broken")).to_have_count(1)
    # It is named at the top of the page, and in sight although the lanes are wider than the window.
    await expect(page.locator(".chain .broken a")).to_be_in_viewport()
    box = await flagged.locator(".card").bounding_box()
    assert box is not None
    assert 0 <= box["x"] <= DESKTOP[0] - box["width"]
    await shoot(page, f"broken-{'dark' if dark else 'light'}")


@pytest.mark.parametrize(("size", "name"), [(PHONE, "phone"), (FOUR_K, "4k")])
async def test_the_wrong_hop_in_other_windows(
    pages: Pages, stub: Stub, size: tuple[int, int], name: str
) -> None:
    stub.add(answers.other_aperture(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}", size)
    await page.get_by_role("link", name="Go to the broken step").click()
    await expect(page.locator("#event-9 .flag")).to_be_in_viewport()
    await expect(page.locator("#event-9")).to_be_focused()
    await shoot(page, f"broken-{name}")


async def test_without_colours_the_wrong_hop_is_still_marked(pages: Pages, stub: Stub) -> None:
    stub.add(answers.other_aperture(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}", forced_colors="active")
    flag = page.locator("#event-9 .flag")
    await expect(flag).to_be_visible()
    width = "element => parseFloat(getComputedStyle(element).borderTopWidth)"
    broken = await page.locator("#event-9 .card").evaluate(width)
    assert broken > await page.locator("#event-8 .card").evaluate(width)
    await shoot(page, "broken-forced-colours")


async def test_a_step_that_is_missing_has_a_place(pages: Pages, stub: Stub) -> None:
    stub.add(answers.no_aperture(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    missing = page.locator(".hop.missing")
    await expect(missing).to_have_count(1)
    await expect(missing.locator(".flag")).to_contain_text("Missing here")
    await expect(missing).to_contain_text("ApertureCreated")
    assert await steps(page) == ["1", "2", "3", "4", "5", "6", "7", "8", "missing", "9", "10"]
    await shoot(page, "missing-light")


async def test_a_broken_rule_about_a_span_leads_to_the_span(pages: Pages, stub: Stub) -> None:
    stub.add(answers.no_parent(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    await expect(page.locator(".flag")).to_have_count(0)
    await page.locator(".banner").get_by_role("link", name="span 0000000000000002").click()
    await expect(page.locator(f"#span-{answers.TRACE}-0000000000000002")).to_be_focused()


async def test_an_address_names_a_step(pages: Pages, stub: Stub) -> None:
    stub.add(answers.valid(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}#event-6")
    await expect(page.locator("#event-6")).to_be_focused()
    await expect(page.locator("#event-6 .card")).to_be_in_viewport()


async def test_the_spans_have_all_that_was_recorded(pages: Pages, stub: Stub) -> None:
    stub.add(answers.valid(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    button = page.get_by_role("button", name="span of VmCreated")
    await expect(button).to_have_attribute("aria-expanded", "false")
    await button.press("Enter")
    await expect(button).to_have_attribute("aria-expanded", "true")
    await expect(button).to_be_focused()
    await expect(page.locator(".below")).to_contain_text("rpc.method")
    await expect(page.locator(".below")).to_contain_text("service.name")
    await button.press("Enter")
    await expect(page.locator(".below")).to_have_count(0)


async def test_other_tools_are_linked(pages: Pages, stub: Stub) -> None:
    stub.add(answers.valid(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    link = page.get_by_role("link", name="Open in Jaeger")
    await expect(link).to_have_attribute("href", f"http://127.0.0.1:1/trace/{answers.TRACE}")
    download = page.get_by_role("link", name="Download as OTLP JSON")
    await expect(download).to_have_attribute("href", f"/api/v1/vms/{VM}/trace")


async def test_a_handshake_changes_while_it_is_read(pages: Pages, stub: Stub) -> None:
    stub.add(answers.valid(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    await expect(page.locator(".banner")).to_contain_text("Valid")
    await page.locator("#event-5-raw summary").click()
    await page.locator("#event-5-raw summary").focus()
    await live(page)
    broken = stub.add(answers.other_aperture(VM), revision=2)
    stub.push("vm", broken["vm"])
    await expect(page.locator(".banner")).to_contain_text("Broken at step 9")
    await expect(page.locator("#news")).to_have_text("This handshake: broken.")
    # The reader is where he was.
    await expect(page.locator("#event-5-raw")).to_have_attribute("open", "")
    await expect(page.locator("#event-5-raw summary")).to_be_focused()


async def test_a_change_during_the_first_look_is_not_missed(pages: Pages, stub: Stub) -> None:
    stub.add(answers.valid(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    await expect(page.locator(".banner")).to_contain_text("Valid")
    asked = [path for path in stub.asked if path.startswith(("/events", "/vms"))]
    assert asked == ["/events?", f"/vms/{VM}?"]


async def test_changes_that_are_late_are_not_waited_for(pages: Pages, stub: Stub) -> None:
    stub.greets = False
    stub.add(answers.valid(VM))
    page = await pages.open(f"{stub.address}/vm/{VM}")
    await expect(page.locator(".banner")).to_contain_text("Valid")
    await expect(page.locator("#live-word")).not_to_have_text("Live")
    # Nobody told the page of this one: it looks again because it may have missed some.
    stub.add(answers.other_aperture(VM), revision=2)
    stub.push("hello", HELLO)
    await expect(page.locator(".banner")).to_contain_text("Broken at step 9")
    await live(page)


async def test_a_vm_that_is_not_known_appears_when_its_trace_comes(
    pages: Pages, stub: Stub
) -> None:
    pages.may_fail = True
    page = await pages.open(f"{stub.address}/vm/{VM}")
    await expect(page.get_by_text("No trace of this VM is here")).to_be_visible()
    await live(page)
    stub.push("vm", stub.add(answers.valid(VM))["vm"])
    await expect(page.locator(".banner")).to_contain_text("Valid")


async def test_each_life_of_an_id_is_shown(pages: Pages, stub: Stub) -> None:
    answer = answers.other_aperture(VM)
    answer["lives"].append(answers.valid(VM)["lives"][0])
    stub.add(answer, lives=2)
    page = await pages.open(f"{stub.address}/vm/{VM}")
    # The worst is shown first.
    await expect(page.locator(".banner")).to_contain_text("Broken at step 9")
    await page.get_by_role("navigation", name="Lives").get_by_text("Life 2").click()
    await expect(page).to_have_url(f"{stub.address}/vm/{VM}?life=2")
    await expect(page.locator(".banner")).to_contain_text("Valid")


async def test_what_a_guest_wrote_is_text(pages: Pages, stub: Stub) -> None:
    stub.add(answers.hostile(answers.HOSTILE))
    page = await pages.open(stub.address)
    await expect(page.locator("table.vms")).to_contain_text(answers.HOSTILE)
    await page.locator("table.vms a").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text(answers.HOSTILE)
    await page.get_by_role("button", name=answers.HOSTILE).click()
    await expect(page.locator(".below")).to_contain_text(answers.HOSTILE)
    await expect(page.locator("main img")).to_have_count(0)
    await expect(page.locator('a[href^="javascript"]')).to_have_count(0)
    assert "owned" not in await page.title()


async def steps(page: Page) -> list[str]:
    """The strip of steps, each by its number."""
    found: list[str] = await page.locator(".chain a").evaluate_all(
        "links => links.map((link) => [...link.childNodes]"
        ".filter((each) => each.nodeType === Node.TEXT_NODE).map((each) => each.data).join(''))"
    )
    return found
