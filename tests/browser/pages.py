"""Pages in a browser, and what a test asks of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.browser.chromium import AXE, SCREENSHOTS

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    from playwright.async_api import Browser, ConsoleMessage, Page

DESKTOP = (1440, 900)
PHONE = (375, 812)
FOUR_K = (3840, 2160)


@dataclass
class Pages:
    """Pages of one test.

    Attributes:
        complaints: What the console of a page has reported as an error.
        may_fail: Whether a request may fail, which the console reports.
    """

    browser: Browser
    stack: AsyncExitStack
    complaints: list[str] = field(default_factory=list)
    may_fail: bool = False

    async def open(
        self, url: str, size: tuple[int, int] = DESKTOP, *, dark: bool = False, **options: Any
    ) -> Page:
        """Open an address in a window of its own."""
        width, height = size
        context = await self.browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            **options,
        )
        self.stack.push_async_callback(context.close)
        page = await context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await page.goto(url)
        return page

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        if not (self.may_fail and message.text.startswith("Failed to load resource")):
            self.complaints.append(message.text)


async def shoot(page: Page, name: str) -> None:
    """Keep what a page looks like, as a file of the test's output."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


async def inaccessible(page: Page) -> list[str]:
    """Return what axe-core finds, one line for each element."""
    await page.evaluate(AXE.read_text())
    found = await page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]


_WIDE = """() => {
  const page = document.scrollingElement, width = page.clientWidth
  if (page.scrollWidth <= width) return []
  const right = (e) => Math.round(e.getBoundingClientRect().right)
  const clips = (e) => getComputedStyle(e).overflowX !== "visible"
  const isClipped = (e) => e !== page && e.parentElement !== page
    && (clips(e.parentElement) || isClipped(e.parentElement))
  const wide = [...page.querySelectorAll("body *")].filter((e) => right(e) > width && !isClipped(e))
  return [`the page is ${page.scrollWidth} wide, its window ${width}`,
    ...wide.map((e) => `${e.tagName}#${e.id}.${e.className} ends at ${right(e)}`)]
}"""


async def wide(page: Page) -> list[str]:
    """Return the elements that end beyond the window, if the page is wider than that."""
    return list(await page.evaluate(_WIDE))


async def live(page: Page) -> None:
    """Wait until the page hears of changes."""
    from playwright.async_api import expect

    await expect(page.locator("#live-word")).to_have_text("Live")
