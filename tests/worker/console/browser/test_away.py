"""Redis away, a worker away: the page says so, and goes on by itself."""

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.conftest import PrivateRedis
from tests.worker.console.browser.conftest import OpenPage
from tests.worker.console.browser.plant import CALIBRATE, LEARN, serving
from tests.worker.faults.processes import running_worker, write_config

LINE = "press-3"


def test_the_page_says_that_redis_or_the_worker_is_away_and_recovers(
    private_redis: PrivateRedis, tmp_path: Path, open_page: OpenPage, faults: list[str]
) -> None:
    config = write_config(tmp_path, private_redis.url, LINE, tmp_path / "snapshots", learn=LEARN, calibrate=CALIBRATE)
    with serving(tmp_path, config, private_redis.url, LINE, "", "") as plant:
        page = open_page(f"/lines/{LINE}", url=plant.url)
        expect(page.locator("[data-note]")).to_contain_text("No worker has opened this line yet")
        with running_worker(config) as worker:
            plant.begin(LINE)
            expect(page.locator(".badge").first).to_have_text("scoring")
            expect(page.locator("[data-note]")).to_be_hidden()

            private_redis.kill()
            expect(page.locator("#away")).to_contain_text("Redis")
            expect(page.locator("#live-text")).to_have_text("waiting")
            other = page.context.new_page()
            other.goto(f"{plant.url}/")
            expect(other.locator("h1")).to_have_text("Nothing to see at the moment")
            who_leaves = open_page("/", url=plant.url)
            who_leaves.click("#logout")
            expect(who_leaves.locator("#login-link")).to_be_visible()
            page.click("#pause")
            page.click("#ask-confirm")
            expect(page.locator("#answer")).to_contain_text(re.compile("Not done: Redis (is away|did not take it)"))

            private_redis.start()
            expect(page.locator("#away")).to_be_hidden()
            expect(page.locator("#live-text")).to_have_text("live")
            expect(other.locator("h1")).to_have_text("Lines")
            assert plant.stain(LINE, "after-the-outage")["anomalous"]
            expect(page.locator("#results tbody a").first).to_have_text("after-the-outage")
            expect(page.locator(".badge").first).to_have_text("scoring")

            worker.terminate()
            expect(page.locator("[data-note]")).to_contain_text("No worker keeps this line")
            expect(page.locator("[data-figure=keeper]").first).to_have_attribute("data-alarm", "")
    expect(page.locator("#away")).to_contain_text("The console does not answer")
    faults.clear()
