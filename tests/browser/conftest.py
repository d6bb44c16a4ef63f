"""Fixtures: a page without a dashboard, a browser, and pages in it whose console is watched."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.browser.chromium import CHROMIUM
from tests.browser.pages import Pages
from tests.browser.stub import Stub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from playwright.async_api import Browser


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A page without a dashboard."""
    with Stub() as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    # Most tests need no browser, and importing this takes a while.
    from playwright.async_api import async_playwright

    async with async_playwright() as driver:
        # root may not use Chromium's own sandbox.
        started = await driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        await started.close()


@pytest_asyncio.fixture(loop_scope="session")
async def pages(browser: Browser, stub: Stub) -> AsyncIterator[Pages]:
    """Opens pages; the test fails if one of them complains.

    They need the stub, so that they are closed before it: they would complain of its end.
    """
    async with AsyncExitStack() as stack:
        opened = Pages(browser, stack)
        yield opened
    assert opened.complaints == []
