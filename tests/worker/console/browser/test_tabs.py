"""Tabs that nobody sees, and what a page shows when somebody comes back to it."""

import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, expect

from tests.worker.console.browser.conftest import ARGUMENTS, OpenPage, live
from tests.worker.console.browser.plant import Plant
from tests.worker.console.site import Filled
from tests.worker.helpers import encoded, eventually, picture
from worker.message import Image


@pytest.fixture
def tabs(chromium: Browser, tmp_path: Path) -> Iterator[BrowserContext]:
    """A browser whose tabs know whether they are seen; of its own, Playwright has each one believe that it is."""
    program, told = shutil.which("chromium"), tmp_path / "profile" / "DevToolsActivePort"
    options = [*ARGUMENTS, "--headless", "--remote-debugging-port=0", f"--user-data-dir={told.parent}"]
    process = subprocess.Popen([str(program), *options, "about:blank"], stderr=subprocess.DEVNULL)
    try:
        port = eventually(lambda: told.exists() and told.read_text().partition("\n")[0])
        browser = chromium.browser_type.connect_over_cdp(f"http://127.0.0.1:{port}", no_defaults=True)
        yield browser.contexts[0]
        browser.close()
    finally:
        process.terminate()
        process.wait(60)


def test_a_tab_that_was_never_seen_holds_no_connection_until_it_is(plant: Plant, tabs: BrowserContext) -> None:
    front = tabs.pages[0]
    front.goto(plant.url)
    live(front)
    with tabs.expect_page() as opened:
        front.click(f"text={plant.shown}", button="middle")
    behind = opened.value
    expect(behind.locator("#live-text")).to_have_text("resting")
    assert behind.evaluate("document.hidden")
    behind.bring_to_front()
    live(behind)
    expect(front.locator("#live-text")).to_have_text("resting")


def test_who_comes_back_finds_the_gallery_in_the_order_that_was_chosen(plant: Plant, open_page: OpenPage) -> None:
    filled = Filled(plant.client, f"filled-{uuid.uuid4().hex[:6]}")
    plant.known(filled.line)
    for name, score in (("low", 3.0), ("high", 9.0), ("middle", 5.0)):
        filled.flagged(name, score)
    page = open_page(f"/lines/{filled.line}")
    names = page.locator("#gallery .cap > .soft")
    expect(names).to_have_text(["middle", "high", "low"])
    page.check("#order-largest", force=True)
    expect(names).to_have_text(["high", "middle", "low"])
    page.locator("#gallery a").first.click()
    expect(page.locator("h1")).to_have_text("high")
    live(page)
    page.go_back()
    expect(page.locator("#order-largest")).to_be_checked()
    expect(names).to_have_text(["high", "middle", "low"])
    assert "order=largest" in (page.locator("#gallery a").first.get_attribute("href") or "")


def test_the_arrows_go_in_the_order_that_the_gallery_shows(plant: Plant, open_page: OpenPage) -> None:
    """Of those with one score the newest first, and at the end those that have none."""
    filled = Filled(plant.client, f"filled-{uuid.uuid4().hex[:6]}")
    plant.known(filled.line)
    filled.flagged("oldest", 4.00001)  # as large as the others in all the digits that are looked at
    filled.reviewed(Image("aside-1", "png", encoded(picture())), None, "quarantined")
    filled.flagged("older", 4.0)
    filled.reviewed(Image("aside-2", "png", encoded(picture())), None, "quarantined")
    filled.flagged("newer", 4.0)
    order = ["newer", "older", "oldest", "aside-2", "aside-1"]
    page = open_page(f"/lines/{filled.line}")
    page.check("#order-largest", force=True)
    names = page.locator("#gallery .cap > .soft")
    expect(names).to_have_text(order)
    page.locator("#gallery a").first.click()
    for name in order[1:]:
        live(page)
        page.keyboard.press("ArrowRight")
        expect(page.locator("h1")).to_have_text(name)
    expect(page.locator("#next")).to_have_attribute("aria-disabled", "true")
